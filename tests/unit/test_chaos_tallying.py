"""Counters of processes that begin anew are added up, and a stopped process's last word is not lost."""

from pathlib import Path

import msgspec
import pytest

from meshim.deploy import state
from meshim.deploy.state import DataFolder, MeshState, Phase, RoleState
from scripts.harness.chaos.counters import Tally


class Mesh:
    """A data folder as a supervisor and its roles write it."""

    def __init__(self, folder: Path) -> None:
        self.data = DataFolder(folder)
        self.data.create()
        (self.data.run / "counters").mkdir()

    def runs(self, role: str, pid: int | None) -> None:
        roles = [RoleState(f"{role}1", role, pid, Phase.RUNNING, None, 0)]
        state.write(self.data, MeshState(1, Phase.RUNNING, None, roles, []))

    def counted(self, role: str, pid: int, **counters: int) -> None:
        file = self.data.run / "counters" / f"{role}-{role}1.json"
        file.write_bytes(msgspec.json.encode({"pid": pid, "counters": counters}))


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


def test_the_lives_of_a_process_are_added_up(mesh: Mesh) -> None:
    tally = Tally(mesh.data)
    for pid, synced in ((10, 3), (10, 5), (11, 2)):
        mesh.runs("connector", pid)
        mesh.counted("connector", pid, synced=synced, fenced=1)
        tally.look()
    assert (tally.sums()["synced"], tally.sums()["fenced"]) == (7, 2)
    assert tally.all() == {"connector": {"synced": 7, "fenced": 2}}


def test_what_a_process_counted_last_before_it_ended_is_taken_in(mesh: Mesh) -> None:
    tally = Tally(mesh.data)
    mesh.runs("writer", 10)
    mesh.counted("writer", 10, fenced=1)
    tally.look()
    mesh.counted("writer", 10, fenced=4)
    mesh.runs("writer", None)
    tally.look()
    assert tally.sums()["fenced"] == 4


def test_the_file_of_an_earlier_process_is_not_counted_twice(mesh: Mesh) -> None:
    tally = Tally(mesh.data)
    mesh.runs("transfer", 10)
    mesh.counted("transfer", 10, stored=6)
    tally.look()
    mesh.runs("transfer", 11)
    for _ in range(3):
        tally.look()
    assert tally.sums()["stored"] == 6


def test_clients_count_once_they_are_closed(mesh: Mesh) -> None:
    tally = Tally(mesh.data)
    tally.add("client", {"resent": 4, "deduplicated": 2, "skipped": 1})
    assert (tally.sums()["resent"], tally.sums()["deduplicated"]) == (4, 2)
