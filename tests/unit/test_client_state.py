"""The state file: what `apply` returned from is there after kill -9, for one process, in a file of meshim's own."""

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
    Drop,
    HeldMessage,
    NoteReceipt,
    PutIn,
    PutOrder,
    PutOut,
    PutStream,
    Release,
    SettleOut,
    Snapshot,
)
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, UsageError
from meshim.wire.envelope import Destination, DestinationType, Stream

BOB = Destination(DestinationType.USER, 2)
BOBS_PHONE = Destination(DestinationType.DEVICE, 2, 20)
FROM_BOB = Stream(2, 20, (1 << 64) - 1, Destination(DestinationType.USER, 1))
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
    """As another process finds the file."""
    state.close()
    return StateFile(state.path)


def out(seq: int, to: Destination = BOB, envelope: bytes = b"envelope") -> PutOut:
    return PutOut(to, seq, 1, 1, seq.to_bytes(16), envelope)


def arrived(stream: Stream, *seqs: int, released: bool = True) -> list[PutIn | Release]:
    changes: list[PutIn | Release] = []
    for seq in seqs:
        changes.append(PutIn(stream, seq, b"%d" % seq, False))
        changes += [Release(stream, seq, 0)] if released else []
    return changes


def turns(state: StateFile, after: int = 0) -> list[tuple[int, Stream, int]]:
    return [(row.number, row.stream, row.seq) for row in state.received(after, 100)]


# ---------------------------------------------------------------- whose file it is


def test_a_new_file_is_for_nobody_else_to_read_and_has_an_epoch_for_ever(path: Path) -> None:
    state = StateFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    epoch = state.epoch
    assert 0 < epoch < 1 << 64
    other = StateFile(path.with_name("other.db"))
    assert other.epoch != epoch
    other.close()
    again = reopened(state)
    assert again.epoch == epoch
    again.close()


def test_folders_are_made(tmp_path: Path) -> None:
    StateFile(tmp_path / "a" / "b" / "alice.db").close()
    assert (tmp_path / "a" / "b" / "alice.db").exists()


HOLD = """
import signal, sys
from pathlib import Path
from meshim.client.state import StateFile
from meshim.client.events import *
from meshim.wire.envelope import Destination
state = StateFile(Path(sys.argv[1]))
state.apply([PutOut(Destination(1, 2), 1, 1, 1, bytes(16), b"safe"), PutStream(Destination(1, 2), 2, ())])
print("applied", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("name", ["alice.db", "link.db"])
def test_one_process_has_the_file_and_its_death_frees_it_with_all_that_was_applied(path: Path, name: str) -> None:
    (path.parent / "link.db").symlink_to(path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"applied\n"
        with pytest.raises(UsageError, match=r"another process uses the state file .*alice\.db"):
            StateFile(path.with_name(name))
        holder.send_signal(signal.SIGKILL)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    state = StateFile(path.with_name(name))
    assert state.load().unsettled == [PutOut(BOB, 1, 1, 1, bytes(16), b"safe")]
    state.close()


def test_the_same_process_cannot_open_it_twice_either(state: StateFile) -> None:
    with pytest.raises(UsageError, match="another process"):
        StateFile(state.path)
    assert state.load().unsettled == []


def test_what_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(UsageError, match=r"alice\.db is not a state file"):
        StateFile(path)
    assert path.read_bytes() == b"Dear diary, " * 1000


@pytest.mark.parametrize("version", [0, 1])
def test_the_database_of_another_program_is_refused_and_left_alone(path: Path, version: int) -> None:
    database = sqlite3.connect(path)
    database.executescript(f"CREATE TABLE meta (key TEXT, value TEXT); PRAGMA user_version={version};")
    database.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="it is another database"):
        StateFile(path)
    assert path.read_bytes() == before
    path.unlink()
    StateFile(path).close()  # the lock was given up too


def test_the_file_of_a_newer_version_is_refused(state: StateFile) -> None:
    state._db.execute("PRAGMA user_version=2")
    with pytest.raises(UsageError, match="it has version 2, 1 is known"):
        reopened(state)


def test_a_path_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"the state file .*cannot be used: .*/file: File exists"):
        StateFile(tmp_path / "file" / "alice.db")
    with pytest.raises(UsageError, match=r"cannot be used: .*: Is a directory"):
        StateFile(tmp_path)


# ---------------------------------------------------------------- durable, and all or nothing


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
    assert turns(state) == []
    state.apply([out(2)])  # no transaction was left open


def test_a_full_disk_is_told_in_a_sentence_and_costs_nothing_that_was_there(state: StateFile) -> None:
    state.apply([out(1)])
    state._db.execute(f"PRAGMA max_page_count={state._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(UsageError, match=r"alice\.db cannot be written: database or disk is full"):
        state.apply([out(seq, envelope=bytes(10_000)) for seq in range(2, 20)])
    again = reopened(state)
    assert [each.seq for each in again.load().unsettled] == [1]
    again.close()


def test_threads_take_turns(state: StateFile) -> None:
    """A transaction is of the connection: without turns one would commit the half of another."""

    def write(first: int) -> None:
        for seq in range(first, first + 20):
            state.apply([out(seq), PutStream(BOB, seq + 1, ())])

    threads = [threading.Thread(target=write, args=(first,)) for first in (1, 101, 201)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        state.handled((1,))
        state.load()
    for thread in threads:
        thread.join()
    assert len(state.load().unsettled) == 60


def test_a_closed_file_says_so_whatever_is_asked_of_it(state: StateFile) -> None:
    state.close()
    state.close()
    for use in (state.load, state.peers, lambda: state.apply([]), lambda: state.received(0, 1), lambda: state.get("x")):
        with pytest.raises(ClientClosed):
            use()


# ---------------------------------------------------------------- what is kept


def test_snapshot_is_what_was_applied(state: StateFile) -> None:
    state.apply(
        [
            *(out(seq) for seq in (1, 2, 3)),
            out(1, BOBS_PHONE),
            PutStream(BOB, 4, ((2, 0, (1 << 63) - 1),)),
            PutStream(BOBS_PHONE, 2, ()),
            NoteReceipt(BOB, 2, "read"),
            SettleOut(BOB, 1, "sent"),
            SettleOut(BOB, 3, "rejected", 6, "not friends"),
            PutIn(FROM_BOB, 1, b"one", False),
            Release(FROM_BOB, 1, 0),
            PutIn(FROM_BOB, 2, b"base", False),
            Drop(FROM_BOB, 2),
            PutIn(FROM_BOB, 5, b"early", True),
            PutOrder(FROM_BOB, 3, ((1, 2), (7, 9))),
            PutOrder(FROM_CAROL, 1, ()),
        ]
    )
    state.apply([SettleOut(BOB, 1, "delivered")])
    again = reopened(state)
    assert again.load() == Snapshot(
        streams=[PutStream(BOB, 4, ((2, 0, (1 << 63) - 1),)), PutStream(BOBS_PHONE, 2, ())],
        unsettled=[out(2)._replace(receipt="read"), out(1, BOBS_PHONE)],
        settled=[SettleOut(BOB, 1, "delivered"), SettleOut(BOB, 3, "rejected", 6, "not friends")],
        orders=[PutOrder(FROM_BOB, 3, ((1, 2), (7, 9))), PutOrder(FROM_CAROL, 1, ())],
        held=[HeldMessage(FROM_BOB, 5, b"early")],
    )
    again.close()


def test_people_and_keys_are_kept_and_renewed(state: StateFile) -> None:
    state.put_peers([(2, "bob", "friends"), (3, "carol", "asked")], [(2, 1, b"k1"), (2, 2, b"k2")])
    state.put_peers([(3, "carol", "friends")], [(3, 1, b"c1"), (2, 2, b"k2 again")])
    state.put_peers([(4, "bob", "friends")], [])  # another bob, after the server was made anew
    again = reopened(state)
    assert sorted(again.peers()) == [(3, "carol", "friends"), (4, "bob", "friends")]
    assert sorted(again.content_keys()) == [(2, 1, b"k1"), (2, 2, b"k2 again"), (3, 1, b"c1")]
    again.close()


def test_envelopes_go_when_they_are_settled_and_so_do_old_messages(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_TRACKED", 3)
    state.apply([out(seq) for seq in range(1, 11)])
    state.apply([SettleOut(BOB, seq, "sent") for seq in range(2, 11)])
    snapshot = state.load()
    assert [each.seq for each in snapshot.unsettled] == [1]  # however old
    assert [each.seq for each in snapshot.settled] == [7, 8, 9, 10]
    kept = state._db.execute("SELECT count(*) FROM outbox WHERE envelope IS NOT NULL").fetchone()[0]
    assert kept == 1


def test_messages_of_a_forgotten_device_are_addressed_anew(state: StateFile) -> None:
    state.apply([out(1), out(2), PutStream(BOB, 3, ((2, 0, 77),))])
    state.readdress([(BOB, 2, b"anew")])
    snapshot = state.load()
    assert [each.envelope for each in snapshot.unsettled] == [b"envelope", b"anew"]
    assert snapshot.streams == [PutStream(BOB, 3, ())]


# ---------------------------------------------------------------- what the application reads


def test_messages_take_turns_in_the_order_of_their_release(state: StateFile) -> None:
    state.apply(arrived(FROM_BOB, 2, 3, released=False))
    assert turns(state) == []
    state.apply([*arrived(FROM_CAROL, 1), *arrived(FROM_BOB, 1), Release(FROM_BOB, 2, 0), Release(FROM_BOB, 3, 2)])
    assert turns(state) == [(1, FROM_CAROL, 1), (2, FROM_BOB, 1), (3, FROM_BOB, 2), (4, FROM_BOB, 3)]
    assert [row.flag for row in state.received(0, 9)] == [0, 0, 0, 2]
    assert turns(state, after=3) == [(4, FROM_BOB, 3)]
    assert len(state.received(0, 2)) == 2


def test_what_was_not_handled_is_given_again_after_a_restart_and_comes_before_anything_new(state: StateFile) -> None:
    state.apply(arrived(FROM_BOB, 1, 2, 3))
    state.handled((1,))
    again = reopened(state)
    assert turns(again) == [(2, FROM_BOB, 2), (3, FROM_BOB, 3)]
    again.handled((2, 3))
    third = reopened(again)
    third.apply(arrived(FROM_BOB, 4))
    assert [(stream, seq) for _, stream, seq in turns(third)] == [(FROM_BOB, 4)]
    third.close()


def test_turns_go_on_above_those_that_still_wait(state: StateFile) -> None:
    state.apply(arrived(FROM_BOB, 1, 2))
    state.handled((1,))
    again = reopened(state)
    again.apply(arrived(FROM_CAROL, 1))
    assert turns(again) == [(2, FROM_BOB, 2), (3, FROM_CAROL, 1)]
    again.close()


def test_nothing_is_left_open(state: StateFile) -> None:
    state.apply([out(1)])
    state.close()
    held = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit() and _is_open(fd)}
    assert not any(str(state.path) in each for each in held)


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
