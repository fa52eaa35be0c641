"""The state file: changes survive kill -9, one process at a time uses it, and no other file is ever changed."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshim.client import state as state_module
from meshim.client.events import (
    AddToInbox,
    AddToOutbox,
    DropFromInbox,
    DropFromOutbox,
    EarlyMessage,
    PutOrder,
    PutReceipts,
    PutStream,
    RecordReceipt,
    Release,
    SettleMessage,
    Snapshot,
)
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, UsageError
from meshim.wire.envelope import Destination, DestinationType, Stream

BOB = Destination(DestinationType.USER, 2)
CAROL = Destination(DestinationType.USER, 3)
FROM_BOB = Stream(2, 20, (1 << 53) - 1, Destination(DestinationType.USER, 1))
OF_MY_PHONE = Stream(1, 11, 3, BOB)
FROM_CAROL = Stream(3, 30, 0, Destination(DestinationType.USER, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice.db"


@pytest.fixture
def state(path: Path) -> Iterator[StateFile]:
    state = StateFile(path)
    yield state
    state.close()


def reopened(state: StateFile) -> StateFile:
    """The file, closed and opened again, as by another process."""
    state.close()
    return StateFile(state.path)


def out(seq: int, to: Destination = BOB, envelope: bytes = b"envelope") -> AddToOutbox:
    return AddToOutbox(to, seq, 1, 1, seq.to_bytes(16), envelope)


def arrived(stream: Stream, *seqs: int, released: bool = True) -> list[AddToInbox | Release]:
    changes: list[AddToInbox | Release] = []
    for seq in seqs:
        changes.append(AddToInbox(stream, seq, b"%d" % seq, False))
        changes += [Release(stream, seq, 0)] if released else []
    return changes


def numbers(state: StateFile, after: int = 0) -> list[tuple[int, Stream, int]]:
    return [(row.number, row.stream, row.seq) for row in state.received(after, 100)]


# ---------------------------------------------------------------- opening


def test_a_new_file_is_readable_by_its_owner_only_and_keeps_its_epoch(path: Path) -> None:
    state = StateFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    epoch = state.epoch
    assert 0 < epoch < 1 << 53
    other = StateFile(path.with_name("other.db"))
    assert other.epoch != epoch
    other.close()
    again = reopened(state)
    assert again.epoch == epoch
    again.close()


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("a", "file"):
        with pytest.raises(UsageError, match=f"There is no folder {tmp_path / name} for the state file: make it"):
            StateFile(tmp_path / name / "alice.db")
    assert not (tmp_path / "a").exists()


HOLD = """
import signal, sys
from pathlib import Path
from meshim.client.state import StateFile
from meshim.client.events import *
from meshim.wire.envelope import Destination
state = StateFile(Path(sys.argv[1]))
state.apply([AddToOutbox(Destination(1, 2), 1, 1, 1, bytes(16), b"safe"), PutStream(Destination(1, 2), 2, b'')])
print("applied", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("name", ["alice.db", "link.db"])
def test_the_file_is_locked_by_one_process_and_free_with_all_changes_after_kill_9(path: Path, name: str) -> None:
    (path.parent / "link.db").symlink_to(path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"applied\n"
        with pytest.raises(UsageError, match=r"Another process uses the state file .*alice\.db"):
            StateFile(path.with_name(name))
        holder.send_signal(signal.SIGKILL)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    state = StateFile(path.with_name(name))
    assert state.load().unsettled == [AddToOutbox(BOB, 1, 1, 1, bytes(16), b"safe")]
    state.close()


def test_the_same_process_cannot_open_the_file_twice(state: StateFile) -> None:
    with pytest.raises(UsageError, match="Another process"):
        StateFile(state.path)
    assert state.load().unsettled == []


def test_a_file_that_is_no_database_is_refused_and_unchanged(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(UsageError, match=r"alice\.db is not a state file"):
        StateFile(path)
    assert path.read_bytes() == b"Dear diary, " * 1000


@pytest.mark.parametrize("version", [0, 1])
def test_the_database_of_another_program_is_refused_and_unchanged(path: Path, version: int) -> None:
    database = sqlite3.connect(path)
    database.executescript(f"CREATE TABLE meta (key TEXT, value TEXT); PRAGMA user_version={version};")
    database.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="it is another database"):
        StateFile(path)
    assert path.read_bytes() == before
    path.unlink()
    StateFile(path).close()  # the lock is free again


def test_a_file_of_a_newer_version_is_refused(state: StateFile) -> None:
    state._db.execute("PRAGMA user_version=4")
    with pytest.raises(UsageError, match="it has version 4, 3 is known"):
        reopened(state)


def test_a_path_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The state file .*cannot be used: .*: File name too long"):
        StateFile(tmp_path / ("long" * 100))
    with pytest.raises(UsageError, match=r"cannot be used: .*: Is a directory"):
        StateFile(tmp_path)


# ---------------------------------------------------------------- durable and atomic


def synchronous(state: StateFile) -> tuple[object, object]:
    pragma = state._db.execute
    return pragma("PRAGMA journal_mode").fetchone()[0], pragma("PRAGMA synchronous").fetchone()[0]


def test_every_commit_of_apply_is_synced(state: StateFile) -> None:
    assert synchronous(state) == ("wal", 2)
    state.apply(arrived(FROM_BOB, 1, 2))
    state.handled((1,))
    assert synchronous(state) == ("wal", 2)
    state._db.execute("CREATE TRIGGER broken BEFORE DELETE ON inbox BEGIN SELECT raise(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError):
        state.handled((2,))
    assert synchronous(state) == ("wal", 2)


def test_apply_is_all_or_nothing(state: StateFile) -> None:
    state.apply([out(1)])
    with pytest.raises(sqlite3.IntegrityError):
        state.apply([out(2), *arrived(FROM_BOB, 1), out(1)])
    assert [each.seq for each in state.load().unsettled] == [1]
    assert numbers(state) == []
    state.apply([out(2)])  # no transaction is open


def test_a_full_disk_is_a_usage_error_and_loses_nothing_written_before(state: StateFile) -> None:
    state.apply([out(1)])
    state._db.execute(f"PRAGMA max_page_count={state._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(UsageError, match=r"alice\.db cannot be written: database or disk is full"):
        state.apply([out(seq, envelope=bytes(10_000)) for seq in range(2, 20)])
    again = reopened(state)
    assert [each.seq for each in again.load().unsettled] == [1]
    again.close()


def test_threads_wait_for_one_another(state: StateFile) -> None:
    """A transaction belongs to the connection: without the lock, one thread would commit half of another's."""

    def write(first: int) -> None:
        for seq in range(first, first + 20):
            state.apply([out(seq), PutStream(BOB, seq + 1, b"")])

    threads = [threading.Thread(target=write, args=(first,)) for first in (1, 101, 201)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        state.handled((1,))
        state.load()
    for thread in threads:
        thread.join()
    assert len(state.load().unsettled) == 60


def test_every_method_of_a_closed_file_raises_client_closed(state: StateFile) -> None:
    state.close()
    state.close()
    for method in (
        state.load,
        state.peers,
        lambda: state.apply([]),
        lambda: state.received(0, 1),
        lambda: state.get("x"),
    ):
        with pytest.raises(ClientClosed):
            method()


# ---------------------------------------------------------------- contents


def test_the_snapshot_holds_all_applied_changes(state: StateFile) -> None:
    state.apply(
        [
            *(out(seq) for seq in (1, 2, 3)),
            out(1, CAROL),
            PutStream(BOB, 4, bytes(1_024)),
            PutStream(CAROL, 2, b""),
            RecordReceipt(BOB, 2, "read"),
            SettleMessage(BOB, 1, "sent"),
            SettleMessage(BOB, 3, "rejected", 6, "not friends"),
            AddToInbox(FROM_BOB, 1, b"one", False),
            Release(FROM_BOB, 1, 0),
            AddToInbox(FROM_BOB, 2, b"base", False),
            DropFromInbox(FROM_BOB, 2, 0),
            AddToInbox(FROM_BOB, 5, b"early", True),
            PutOrder(FROM_BOB, 3, ((1, 2), (7, 9))),
            PutOrder(FROM_CAROL, 1, (), 1),
            out(4),
            DropFromOutbox(BOB, 4),
            PutReceipts(FROM_BOB, (), ((1, 2),), ((4, 4),), ()),
            PutReceipts(OF_MY_PHONE, ((1, 9), (11, 11)), ((1, 3),), (), ()),
        ]
    )
    state.apply([SettleMessage(BOB, 1, "delivered"), PutReceipts(FROM_BOB, (), ((1, 4),), (), ((4, 4),))])
    again = reopened(state)
    assert again.load() == Snapshot(
        streams=[PutStream(BOB, 4, bytes(1_024)), PutStream(CAROL, 2, b"")],
        unsettled=[out(2)._replace(receipt="read"), out(1, CAROL)],
        settled=[SettleMessage(BOB, 1, "delivered"), SettleMessage(BOB, 3, "rejected", 6, "not friends")],
        orders=[PutOrder(FROM_BOB, 3, ((1, 2), (7, 9))), PutOrder(FROM_CAROL, 1, (), 1)],
        early=[EarlyMessage(FROM_BOB, 5, b"early")],
        receipts=[
            PutReceipts(OF_MY_PHONE, ((1, 9), (11, 11)), ((1, 3),), (), ()),
            PutReceipts(FROM_BOB, (), ((1, 4),), (), ((4, 4),)),
        ],
    )
    again.close()


def test_contacts_and_keys_are_stored_and_updated(state: StateFile) -> None:
    state.put_peers([(2, "bob", "friends"), (3, "carol", "asked")], [(2, 1, b"k1"), (2, 2, b"k2")])
    state.put_peers([(3, "carol", "friends")], [(3, 1, b"c1"), (2, 2, b"k2 again")])
    state.put_peers([(4, "bob", "friends")], [])  # another user of that name, after the server's data was deleted
    again = reopened(state)
    assert sorted(again.peers()) == [(3, "carol", "friends"), (4, "bob", "friends")]
    assert sorted(again.content_keys()) == [(2, 1, b"k1"), (2, 2, b"k2 again"), (3, 1, b"c1")]
    again.close()


def test_settled_messages_lose_their_envelope_and_the_oldest_are_deleted(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_SETTLED_MAX", 3)
    state.apply([out(seq) for seq in range(1, 11)])
    state.apply([SettleMessage(BOB, seq, "sent") for seq in range(2, 11)])
    snapshot = state.load()
    assert [each.seq for each in snapshot.unsettled] == [1]  # although it is the oldest
    assert [each.seq for each in snapshot.settled] == [7, 8, 9, 10]
    envelopes = state._db.execute("SELECT count(*) FROM outbox WHERE envelope IS NOT NULL").fetchone()[0]
    assert envelopes == 1


def test_reassigning_the_outbox_replaces_envelopes_and_clears_cookies(state: StateFile) -> None:
    state.apply([out(1), out(2), PutStream(BOB, 3, b"cookie")])
    state.reassign_outbox([(BOB, 2, b"anew")])
    snapshot = state.load()
    assert [each.envelope for each in snapshot.unsettled] == [b"envelope", b"anew"]
    assert snapshot.streams == [PutStream(BOB, 3, b"")]


# ---------------------------------------------------------------- messages for the application


def test_messages_are_numbered_in_the_order_of_their_release(state: StateFile) -> None:
    state.apply(arrived(FROM_BOB, 2, 3, released=False))
    assert numbers(state) == []
    state.apply([*arrived(FROM_CAROL, 1), *arrived(FROM_BOB, 1), Release(FROM_BOB, 2, 0), Release(FROM_BOB, 3, 2)])
    assert numbers(state) == [(1, FROM_CAROL, 1), (2, FROM_BOB, 1), (3, FROM_BOB, 2), (4, FROM_BOB, 3)]
    assert [row.flag for row in state.received(0, 9)] == [0, 0, 0, 2]
    assert numbers(state, after=3) == [(4, FROM_BOB, 3)]
    assert len(state.received(0, 2)) == 2


def test_unhandled_messages_come_first_after_a_restart(state: StateFile) -> None:
    state.apply(arrived(FROM_BOB, 1, 2, 3))
    state.handled((1,))
    again = reopened(state)
    assert numbers(again) == [(2, FROM_BOB, 2), (3, FROM_BOB, 3)]
    again.handled((2, 3))
    third = reopened(again)
    third.apply(arrived(FROM_BOB, 4))
    assert [(stream, seq) for _, stream, seq in numbers(third)] == [(FROM_BOB, 4)]
    third.close()


def test_numbers_continue_after_a_restart(state: StateFile) -> None:
    state.apply(arrived(FROM_BOB, 1, 2))
    state.handled((1,))
    again = reopened(state)
    again.apply(arrived(FROM_CAROL, 1))
    assert numbers(again) == [(2, FROM_BOB, 2), (3, FROM_CAROL, 1)]
    again.close()


def test_close_leaves_no_open_file(state: StateFile) -> None:
    state.apply([out(1)])
    state.close()
    opened = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit() and _is_open(fd)}
    assert not any(str(state.path) in each for each in opened)


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


# ---------------------------------------------------------------- what is unread


def test_unread_bytes_are_those_of_released_messages(state: StateFile) -> None:
    envelope = bytes(1_000)
    state.apply([AddToInbox(FROM_BOB, seq, envelope, False) for seq in (1, 2, 3)])
    assert state.unread_bytes == 0, "they wait for an earlier one: the application cannot read them"
    state.apply([Release(FROM_BOB, seq, 0) for seq in (1, 2)])
    assert state.unread_bytes == 2_000
    again = reopened(state)
    assert again.unread_bytes == 2_000
    first, _ = (number for number, _, _ in numbers(again))
    again.handled((first, first, 99))
    assert again.unread_bytes == 1_000
    again.close()
