"""Counters of restarted processes are added up, and the last counters of a stopped process are not lost."""

import importlib
from pathlib import Path

import msgspec
import pytest

from meshim.deploy import state
from meshim.deploy.state import DataFolder, MeshState, Phase, RoleState
from scripts.harness.chaos.counters import SHOWN, MeshCounters


class Mesh:
    """A data folder, as the supervisor and the roles write it."""

    def __init__(self, folder: Path) -> None:
        self.data = DataFolder(folder)
        self.data.create()
        (self.data.run / "counters").mkdir()

    def runs(self, role: str, pid: int | None) -> None:
        roles = [RoleState(name=f"{role}1", role=role, pid=pid, state=Phase.RUNNING, endpoint=None, restarts=0)]
        state.write(self.data, MeshState(1, Phase.RUNNING, None, roles, []))

    def counted(self, role: str, pid: int, **values: int) -> None:
        file = self.data.run / "counters" / f"{role}-{role}1.json"
        file.write_bytes(msgspec.json.encode({"pid": pid, "counters": values}))


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


def test_the_counters_of_restarted_processes_are_added_up(mesh: Mesh) -> None:
    counters = MeshCounters(mesh.data)
    for pid, synced in ((10, 3), (10, 5), (11, 2)):
        mesh.runs("connector", pid)
        mesh.counted("connector", pid, synced=synced, fenced=1)
        counters.sample()
    assert (counters.sums()["synced"], counters.sums()["fenced"]) == (7, 2)
    assert counters.all() == {"connector": {"synced": 7, "fenced": 2}}


def test_the_last_counters_before_the_end_of_a_process_count(mesh: Mesh) -> None:
    counters = MeshCounters(mesh.data)
    mesh.runs("writer", 10)
    mesh.counted("writer", 10, fenced=1)
    counters.sample()
    mesh.counted("writer", 10, fenced=4)
    mesh.runs("writer", None)
    counters.sample()
    assert counters.sums()["fenced"] == 4


def test_the_file_of_an_earlier_process_is_not_counted_twice(mesh: Mesh) -> None:
    counters = MeshCounters(mesh.data)
    mesh.runs("transfer", 10)
    mesh.counted("transfer", 10, stored=6)
    counters.sample()
    mesh.runs("transfer", 11)
    for _ in range(3):
        counters.sample()
    assert counters.sums()["stored"] == 6


def test_the_counters_of_clients_are_added(mesh: Mesh) -> None:
    counters = MeshCounters(mesh.data)
    counters.add("client", {"resent": 4, "deduplicated": 2, "skipped": 1})
    assert (counters.sums()["resent"], counters.sums()["deduplicated"]) == (4, 2)


@pytest.mark.parametrize("role", ["connector", "transfer", "writer"])
def test_every_shown_counter_is_a_statistic_of_its_roles(role: str) -> None:
    statistics = importlib.import_module(f"meshim.{role}.statistics").Statistics
    shown = {name for name, roles in SHOWN.items() if role in roles}
    assert shown <= statistics.__annotations__.keys()
