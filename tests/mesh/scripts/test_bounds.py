"""Short runs of `scripts/bounds.py`: attacks on a real mesh while two background clients exchange messages.

Memory is bounded, the background clients are not cut, and their median latency stays below ten times that before.
(The p99 of so few messages means nothing; the script itself checks it.)
"""

from pathlib import Path

import msgspec
import pytest

from scripts.harness.abuse.run import run
from scripts.harness.abuse.scenarios import Scenario, topology
from tests.mesh.harness.real_mesh import RealMesh, running


def short(
    name: str, count: str, least: float, *, people: int = 2, seconds: float = 3.0, size: int = 0, stored: int = 0,
    grown_mib: float = 32.0, files_left: int = 150, at_most: tuple[tuple[str, float], ...] = (),
) -> Scenario:  # fmt: skip
    return Scenario(
        name, people, seconds, size, stored, grown_mib, p50=10.0, p99=1e6, p99_after=1e6, files_left=files_left,
        quiet_s=0.7, calm_s=0.3, expected=((count, least),), at_most=at_most,
    )  # fmt: skip


@pytest.mark.parametrize("transport", ["zeromq", "websocket"])
@pytest.mark.parametrize(
    "scenario",
    [
        short("never_reads", "sent", 100, people=6, seconds=4.0, size=16_384),
        short("endless_submits", "submitted", 1_000, people=4, size=128, seconds=2.0, at_most=(("submitted", 40_000),)),
        short("free_frames", "connections", 2, seconds=2.0),
        short("undecodable_frames", "sent", 200, seconds=2.0, at_most=(("counted_malformed", 25_000),)),
        short(
            "repeated_greetings",
            "counted_greetings_limited",
            20,
            size=20,
            files_left=1_000,
            at_most=(("counted_greeted", 200),),
        ),
        short("large_sync", "synced", 10_000, size=10_000, stored=10_000, seconds=20.0),
        short("greeting_storm", "welcomed", 300, people=300, grown_mib=64.0, files_left=700),
    ],
    ids=lambda scenario: scenario.name,
)
async def test_every_bound_holds(mesh: RealMesh, scenario: Scenario, transport: str) -> None:
    result = await run(mesh.data.root, scenario, transport)
    assert result["broken"] == [], result


@pytest.mark.parametrize(
    "scenario",
    [
        short("slow_requests", "connections", 4_500, seconds=6.0, size=4_500, grown_mib=128.0),
        short("endless_headers", "connections", 20, size=4),
    ],
    ids=lambda scenario: scenario.name,
)
async def test_strangers_at_rest_keep_nobody_out(mesh: RealMesh, scenario: Scenario) -> None:
    """More slow requests than connections, and headers without end: memory is bounded, another address is served."""
    scenario = msgspec.structs.replace(scenario, at_most=(("failed", 0), ("slowest_s", 3.0)), p50=30.0)
    result = await run(mesh.data.root, scenario)
    assert result["broken"] == [], result
    assert result["counts"]["answered"] >= 5


async def test_unfinished_messages_of_strangers_are_bounded_together(tmp_path: Path) -> None:
    """200 times 3.75 MiB, over and over, on a mesh without CURVE, where that takes no client of one's own."""
    scenario = short("unfinished_messages", "connections", 200, size=200, grown_mib=96.0, files_left=250)
    scenario = msgspec.structs.replace(scenario, p50=30.0, curve=False)
    with running(tmp_path, topology(curve=False)) as plain:
        result = await run(plain.data.root, scenario)
    assert result["broken"] == [], result


async def test_strangers_who_connect_again_at_once_are_bounded(mesh: RealMesh) -> None:
    """3,000 handshakes a second and 300 at once, and those that wait at the end; one message of each is looked at."""
    most = 300 + 2 * 3_000 + 2_000
    scenario = short(
        "reconnecting_strangers", "connections", 500, seconds=2.0, size=32, grown_mib=160.0, files_left=2_500,
        at_most=(("counted_websocket_opened", 1.2 * most), ("counted_malformed", 1.2 * most)),
    )  # fmt: skip
    scenario = msgspec.structs.replace(scenario, p50=30.0, quiet_s=2.0)
    result = await run(mesh.data.root, scenario, "websocket")
    assert result["broken"] == [], result
