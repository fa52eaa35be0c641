"""Short runs of `scripts/bounds.py`: attacks on a real mesh while two background clients exchange messages.

Memory is bounded, the background clients are not cut, and their median latency stays below ten times that before.
(The p99 of so few messages means nothing; the script itself checks it.)
"""

import msgspec
import pytest

from scripts.harness.abuse.run import run
from scripts.harness.abuse.scenarios import Scenario
from tests.mesh.harness.real_mesh import RealMesh

NOT_BOUNDED = ("sent", "websocket")
"""What a stranger may count whose connections are cut: it connects again at once, which is cheap without CURVE, and how
often is not bounded (docs/guarantees.md).  Memory and the latency of others are, also then."""


def short(
    name: str, count: str, least: float, *, people: int = 2, seconds: float = 3.0, size: int = 0, stored: int = 0,
    grown_mib: float = 32.0, files_left: int = 150, at_most: float = 1e9,
) -> Scenario:  # fmt: skip
    return Scenario(
        name, people, seconds, size, stored, grown_mib, p50=10.0, p99=1e6, p99_after=1e6, files_left=files_left,
        quiet_s=0.7, calm_s=0.3, expected=((count, least),), at_most=((count, at_most),),
    )  # fmt: skip


@pytest.mark.parametrize("transport", ["zeromq", "websocket"])
@pytest.mark.parametrize(
    "scenario",
    [
        short("never_reads", "sent", 100, people=6, seconds=4.0, size=16_384),
        short("endless_submits", "submitted", 1_000, people=4, size=128, seconds=2.0, at_most=40_000),
        short("undecodable_frames", "sent", 200, seconds=2.0, at_most=25_000),
        short("large_sync", "synced", 10_000, size=10_000, stored=10_000, seconds=20.0),
        short("greeting_storm", "welcomed", 300, people=300, grown_mib=64.0, files_left=700),
    ],
    ids=lambda scenario: scenario.name,
)
async def test_every_bound_holds(mesh: RealMesh, scenario: Scenario, transport: str) -> None:
    at_most = tuple(each for each in scenario.at_most if (each[0], transport) != NOT_BOUNDED)
    result = await run(mesh.data.root, msgspec.structs.replace(scenario, at_most=at_most), transport)
    assert result["broken"] == [], result
