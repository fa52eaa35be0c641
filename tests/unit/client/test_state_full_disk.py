"""A state file on a full disk: a sentence for the application, and nothing is lost when there is room again."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshim.client.events import AddToOutbox
from meshim.client.state import StateFile
from meshim.errors import UsageError
from meshim.wire.envelope import Destination, DestinationType
from tests.small_disk import SmallDisk, small_disk

BOB = Destination(DestinationType.USER, 2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 4) as disk:
        yield disk


def out(seq: int) -> AddToOutbox:
    return AddToOutbox(BOB, seq, 1, 1, seq.to_bytes(16), bytes(60_000))


def kept(state: StateFile) -> list[int]:
    return [message.seq for message in state.load().unsettled]


def test_what_is_refused_is_not_there_and_the_rest_is(disk: SmallDisk) -> None:
    state = StateFile(disk.folder / "alice.db")
    state.apply([out(1)])
    disk.fill()
    with pytest.raises(UsageError, match=r"alice\.db cannot be written: database or disk is full\."):
        state.apply([out(2), out(3)])
    assert kept(state) == [1]
    disk.free()
    state.apply([out(2)])
    state.close()
    again = StateFile(disk.folder / "alice.db")
    assert kept(again) == [1, 2]
    again.close()


def test_a_new_file_on_a_full_disk_is_no_foreign_file(disk: SmallDisk) -> None:
    disk.fill()
    with pytest.raises(UsageError, match=r"The state file .*alice\.db cannot be opened: ") as refused:
        StateFile(disk.folder / "alice.db")
    assert "version" not in refused.value.sentence
    disk.free()
    state = StateFile(disk.folder / "alice.db")
    state.apply([out(1)])
    assert kept(state) == [1]
    state.close()


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "alice.db")
    database: Any = state._db

    class Broken:
        in_transaction = False

        def execute(self, *_: object) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

    state._db = Broken()  # type: ignore[assignment]
    for use in (state.load, state.peers, lambda: state.received(0, 1), lambda: state.handled((1,))):
        with pytest.raises(UsageError, match=r"alice\.db cannot be (used|written): disk I/O error\."):
            use()
    state._db = database
    state.close()
