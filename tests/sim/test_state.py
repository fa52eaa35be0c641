"""The state file of the simulation against the real one: whatever a run wrote, both know the same afterwards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.client import state as state_file
from meshim.client.events import Change, Snapshot
from meshim.client.state import StateFile
from tests.sim.simulation import run
from tests.sim.state import State


def _recorded(seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[State, list[tuple[str, Any]]]:
    """All that was written to each state file of a run, in order."""
    written: dict[State, list[tuple[str, Any]]] = {}
    apply, handled = State.apply, State.handled

    def applied(self: State, changes: Sequence[Change]) -> None:
        written.setdefault(self, []).append(("apply", tuple(changes)))
        apply(self, changes)

    def was_handled(self: State, turn: int) -> None:
        written.setdefault(self, []).append(("handled", turn))
        handled(self, turn)

    monkeypatch.setattr(State, "apply", applied)
    monkeypatch.setattr(State, "handled", was_handled)
    assert run(seed).violations == []
    monkeypatch.undo()
    return written


def _known(snapshot: Snapshot) -> list[list[bytes]]:
    return [sorted(msgspec.msgpack.encode(each) for each in part) for part in snapshot]


def test_the_simulated_state_file_knows_what_the_real_one_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    written = _recorded(2, monkeypatch)
    monkeypatch.setattr(state_file, "_DURABLE", "synchronous=OFF")  # no power is lost here
    assert len(written) >= 10
    for number, (state, calls) in enumerate(written.items()):
        again, real = State(state.epoch), StateFile(tmp_path / f"{number}.db")
        try:
            for call, argument in calls:
                if call == "apply":
                    again.apply(argument)
                    real.apply(argument)
                else:
                    again.handled(argument)
                    real.handled((argument,))
            assert _known(again.load()) == _known(real.load())
            following = real.received(0, 1)
            mine = again.next(0)
            assert (following[0][:] if following else None) == (mine[:] if mine else None)
        finally:
            real.close()
