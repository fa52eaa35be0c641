"""The state file of the simulation holds the same as the real one after the same writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.client import state as state_file
from meshim.client.events import Change, Snapshot
from meshim.client.state import StateFile
from tests.sim.simulation import run
from tests.sim.state_file import MemoryStateFile


def _recorded(seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[MemoryStateFile, list[tuple[str, Any]]]:
    """All writes to each state file of a run, in order."""
    written: dict[MemoryStateFile, list[tuple[str, Any]]] = {}
    apply, handled = MemoryStateFile.apply, MemoryStateFile.handled

    def recorded_apply(self: MemoryStateFile, changes: Sequence[Change]) -> None:
        written.setdefault(self, []).append(("apply", tuple(changes)))
        apply(self, changes)

    def recorded_handled(self: MemoryStateFile, number: int) -> None:
        written.setdefault(self, []).append(("handled", number))
        handled(self, number)

    monkeypatch.setattr(MemoryStateFile, "apply", recorded_apply)
    monkeypatch.setattr(MemoryStateFile, "handled", recorded_handled)
    assert run(seed).violations == []
    monkeypatch.undo()
    return written


def _content(snapshot: Snapshot) -> list[list[bytes]]:
    return [sorted(msgspec.msgpack.encode(each) for each in part) for part in snapshot]


def test_the_simulated_state_file_holds_the_same_as_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    written = _recorded(2, monkeypatch)
    monkeypatch.setattr(state_file, "_DURABLE", "synchronous=OFF")  # no power loss in this test
    assert len(written) >= 10
    for number, (state, calls) in enumerate(written.items()):
        again, real = MemoryStateFile(state.epoch), StateFile(tmp_path / f"{number}.db")
        try:
            for call, argument in calls:
                if call == "apply":
                    again.apply(argument)
                    real.apply(argument)
                else:
                    again.handled(argument)
                    real.handled((argument,))
            assert _content(again.load()) == _content(real.load())
            following = real.received(0, 1)
            mine = again.next(0)
            assert (following[0][:] if following else None) == (mine[:] if mine else None)
        finally:
            real.close()
