"""Slices of `scripts/bounds.py`: hostile and heavy clients on a real mesh, while two others talk.

Memory is bounded, the two are not cut, and half of their messages take no longer than a few times as long as before.
(The tail of so few messages says nothing; the script looks at it.)
"""

import pytest

from scripts.harness.abuse.scenarios import Ordeal, endure
from tests.mesh.real_mesh import RealMesh


def slice_of(
    name: str, count: str, least: float, *, people: int = 2, seconds: float = 3.0, size: int = 0, stored: int = 0,
    grown_mib: float = 32.0, files_left: int = 150, at_most: float = 1e9,
) -> Ordeal:  # fmt: skip
    return Ordeal(
        name, people, seconds, size, stored, grown_mib, p50=10.0, p99=1e6, p99_after=1e6, files_left=files_left,
        quiet_s=0.7, calm_s=0.3, expected=((count, least),), at_most=((count, at_most),),
    )  # fmt: skip


@pytest.mark.parametrize(
    "ordeal",
    [
        slice_of("never_reads", "sent", 100, people=6, seconds=4.0, size=16_384),
        slice_of("early_frames", "thrown", 100, people=16, seconds=2.0),
        slice_of("endless_submits", "submitted", 1_000, people=4, size=128, seconds=2.0, at_most=40_000),
        slice_of("nonsense", "thrown", 200, seconds=2.0, at_most=25_000),
        slice_of("syncs", "synced", 10_000, size=10_000, stored=10_000, seconds=20.0),
        slice_of("everybody_greets", "welcomed", 300, people=300, grown_mib=64.0, files_left=700),
    ],
    ids=lambda ordeal: ordeal.name,
)
async def test_nobody_else_suffers(mesh: RealMesh, ordeal: Ordeal) -> None:
    result = await endure(mesh.data.root, ordeal)
    assert result["broken"] == [], result
