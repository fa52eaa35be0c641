"""The state file: what a device must not forget, in SQLite.

    meta       who we are: epoch, ids, token, names
    peer       people we know: names and relations
    content_key   keys by peer and version; they outlive the messages
    stream     our streams: next seq, `after`
    outbox     our messages: the envelope until settled, then only how far they came
    seen       streams that reach us: watermark and holes
    inbox      messages for the application, until it has handled them

WAL with `synchronous=FULL`: what `apply` has returned from survives a power loss.  One process at a time
has the file; another one is refused with a sentence.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import msgspec

from meshim.client.events import (
    Change,
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
from meshim.errors import ClientClosed, UsageError
from meshim.runtime.file_lock import try_lock
from meshim.wire.envelope import Destination, Stream

_APPLICATION = 0x6D657368
"""Tells our files from other SQLite databases."""
_VERSION = 1
_DURABLE = "synchronous=FULL"
_TRACKED = 10_000
"""How many settled messages are kept for receipts that may come."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE peer (user_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL);
CREATE TABLE content_key (
    user_id INTEGER, version INTEGER, key BLOB NOT NULL, PRIMARY KEY (user_id, version)
) WITHOUT ROWID;
CREATE TABLE stream (destination BLOB PRIMARY KEY, next_seq INTEGER NOT NULL, after BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, destination BLOB NOT NULL, seq INTEGER NOT NULL, base INTEGER NOT NULL,
    kind INTEGER NOT NULL, id BLOB NOT NULL, envelope BLOB, receipt TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'pending', code INTEGER NOT NULL DEFAULT 0, sentence TEXT NOT NULL DEFAULT '',
    UNIQUE (destination, seq)
);
CREATE TABLE seen (stream BLOB PRIMARY KEY, watermark INTEGER NOT NULL, holes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE inbox (
    stream BLOB NOT NULL, seq INTEGER NOT NULL, envelope BLOB NOT NULL, stored INTEGER NOT NULL,
    flag INTEGER NOT NULL DEFAULT 0, turn INTEGER, PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE INDEX inbox_turn ON inbox (turn) WHERE turn IS NOT NULL;
INSERT INTO meta VALUES ('epoch', randomblob(8));
"""

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

_pack = msgspec.msgpack.Encoder().encode
_destination = msgspec.msgpack.Decoder(Destination).decode
_stream = msgspec.msgpack.Decoder(Stream).decode
_after = msgspec.msgpack.Decoder(tuple[tuple[int, int, int], ...]).decode
_holes = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...]).decode


class Received(NamedTuple):
    """A message for the application.  `number` orders them, and names them to `handled`."""

    number: int
    stream: Stream
    seq: int
    envelope: bytes
    stored: bool
    flag: int


def _alone(
    method: Callable[Concatenate["StateFile", _Arguments], _Answer],
) -> Callable[Concatenate["StateFile", _Arguments], _Answer]:
    """One use at a time, whichever threads they come from: a transaction is of the connection, not of a thread."""

    @wraps(method)
    def alone(self: "StateFile", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        with self._using:
            if self._closed:  # by another task, while this one was out asking REST
                raise ClientClosed("the client was closed")
            return method(self, *args, **kwargs)

    return alone


class StateFile:
    """One device's memory.  For any thread; whoever comes while another one uses it waits."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.  Raises UsageError when another process has it or it is no state file."""
        self.path = path
        self._using = threading.RLock()
        self._closed = False
        try:
            path = path.resolve()  # one file, one lock, whatever it is called
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
        except OSError as error:
            raise UsageError(f"the state file {self.path} cannot be used: {error.filename}: {error.strerror}") from None
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare()
            self._number: int = self._one("SELECT coalesce(max(turn), 0) FROM inbox")
            self.epoch = int.from_bytes(self._one("SELECT value FROM meta WHERE key = 'epoch'"), "big")
            """Made with the file."""
        except sqlite3.DatabaseError as error:
            self.close()
            raise UsageError(f"{self.path} is not a state file of this version of meshim: {error}") from None

    def _prepare(self) -> None:
        # Before anything is written: the file may be somebody else's.
        kind, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        new = self._one("SELECT count(*) FROM sqlite_schema") == 0
        if not new and kind != _APPLICATION:
            raise sqlite3.DatabaseError("it is another database")
        if not new and version != _VERSION:
            raise sqlite3.DatabaseError(f"it has version {version}, {_VERSION} is known")
        for pragma in ("journal_mode=WAL", _DURABLE):
            self._db.execute(f"PRAGMA {pragma}")
        if new:
            kind_and_version = f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={_VERSION};"
            self._db.executescript(f"BEGIN; {_SCHEMA} {kind_and_version} COMMIT;")

    def close(self) -> None:
        """Waits for who uses it; whoever comes after that is told ClientClosed."""
        with self._using:
            if not self._closed:
                self._closed = True
                self._db.close()
                os.close(self._lock)

    # ---- who we are, and whom we know

    @_alone
    def get(self, key: str) -> bytes | None:
        found = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if found is None else bytes(found)

    @_alone
    def put(self, key: str, value: bytes) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @_alone
    def put_peers(self, peers: Sequence[tuple[int, str, str]], keys: Sequence[tuple[int, int, bytes]]) -> None:
        """Peers as (user id, name, state), keys as (user id, version, key)."""
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO peer VALUES (?, ?, ?)", peers)
            self._db.executemany("INSERT OR REPLACE INTO content_key VALUES (?, ?, ?)", keys)

    @_alone
    def peers(self) -> list[tuple[int, str, str]]:
        return self._db.execute("SELECT user_id, name, state FROM peer").fetchall()

    @_alone
    def content_keys(self) -> list[tuple[int, int, bytes]]:
        return self._db.execute("SELECT user_id, version, key FROM content_key ORDER BY version").fetchall()

    # ---- what the core keeps

    @_alone
    def load(self) -> Snapshot:
        """Everything the core needs to go on."""
        rows = self._db.execute
        return Snapshot(
            streams=[
                PutStream(_destination(to), seq, _after(after)) for to, seq, after in rows("SELECT * FROM stream")
            ],
            unsettled=[
                PutOut(_destination(to), seq, base, kind, name, envelope, receipt)
                for to, seq, base, kind, name, envelope, receipt in rows(
                    "SELECT destination, seq, base, kind, id, envelope, receipt FROM outbox"
                    " WHERE state = 'pending' ORDER BY number"
                )
            ],
            settled=[
                SettleOut(_destination(to), seq, state, code, sentence)
                for to, seq, state, code, sentence in rows(
                    "SELECT destination, seq, state, code, sentence FROM outbox"
                    " WHERE state <> 'pending' ORDER BY number"
                )
            ],
            orders=[
                PutOrder(_stream(s), watermark, _holes(holes)) for s, watermark, holes in rows("SELECT * FROM seen")
            ],
            held=[
                HeldMessage(_stream(stream), seq, envelope)
                for stream, seq, envelope in rows(
                    "SELECT stream, seq, envelope FROM inbox WHERE turn IS NULL ORDER BY stream, seq"
                )
            ],
        )

    @_alone
    def apply(self, changes: Sequence[Change]) -> None:
        """Write changes, in order, in one transaction that is on disk when this returns."""
        with self._transaction():
            for change in changes:
                self._apply(change)

    def _apply(self, change: Change) -> None:
        run = self._db.execute
        match change:
            case PutStream(to, next_seq, after):
                run("INSERT OR REPLACE INTO stream VALUES (?, ?, ?)", (_pack(to), next_seq, _pack(after)))
            case PutOut(to, seq, base, kind, name, envelope, _):
                run(
                    "INSERT INTO outbox (destination, seq, base, kind, id, envelope) VALUES (?, ?, ?, ?, ?, ?)",
                    (_pack(to), seq, base, kind, name, envelope),
                )
            case NoteReceipt(to, seq, state):
                run("UPDATE outbox SET receipt = ? WHERE destination = ? AND seq = ?", (state, _pack(to), seq))
            case SettleOut(to, seq, state, code, sentence):
                run(
                    "UPDATE outbox SET state = ?, code = ?, sentence = ?, envelope = NULL"
                    " WHERE destination = ? AND seq = ?",
                    (state, code, sentence, _pack(to), seq),
                )
                run(
                    "DELETE FROM outbox WHERE state <> 'pending' AND number < (SELECT max(number) FROM outbox) - ?",
                    (_TRACKED,),
                )
            case PutOrder(stream, watermark, holes):
                run("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (_pack(stream), watermark, _pack(holes)))
            case PutIn(stream, seq, envelope, stored):
                run(
                    "INSERT INTO inbox (stream, seq, envelope, stored) VALUES (?, ?, ?, ?)",
                    (_pack(stream), seq, envelope, stored),
                )
            case Release(stream, seq, flag):
                self._number += 1
                run(
                    "UPDATE inbox SET turn = ?, flag = ? WHERE stream = ? AND seq = ?",
                    (self._number, flag, _pack(stream), seq),
                )
            case Drop(stream, seq):
                run("DELETE FROM inbox WHERE stream = ? AND seq = ?", (_pack(stream), seq))

    @_alone
    def readdress(self, messages: Sequence[tuple[Destination, int, bytes]]) -> None:
        """Change envelopes in the outbox, each (to, seq, envelope); we are another device, and our streams are new."""
        with self._transaction():
            self._db.executemany(
                "UPDATE outbox SET envelope = ? WHERE destination = ? AND seq = ?",
                [(envelope, _pack(to), seq) for to, seq, envelope in messages],
            )
            self._db.execute("UPDATE stream SET after = ?", (_pack(()),))

    # ---- what the application reads

    @_alone
    def received(self, after: int, most: int) -> list[Received]:
        """The next messages for the application, in order; `after` is the turn of the last one it was given."""
        return [
            Received(number, _stream(stream), seq, envelope, bool(stored), flag)
            for number, stream, seq, envelope, stored, flag in self._db.execute(
                "SELECT turn, stream, seq, envelope, stored, flag FROM inbox WHERE turn > ? ORDER BY turn LIMIT ?",
                (after, most),
            )
        ]

    @_alone
    def handled(self, turns: Sequence[int]) -> None:
        """The application is done with these: they are not given again, unless the machine lost power right now."""
        # It is once a message, and in the way of the next one: safe from a crash of ours is enough.
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            with self._transaction():
                self._db.executemany("DELETE FROM inbox WHERE turn = ?", [(number,) for number in turns])
        finally:
            self._db.execute(f"PRAGMA {_DURABLE}")

    # ---- SQLite

    def _one(self, sql: str, *arguments: object) -> Any:
        row = self._db.execute(sql, arguments).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:  # SQLite ends some by itself
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise UsageError(f"the state file {self.path} cannot be written: {error}") from error
            raise


def _lock(path: Path) -> int:
    """Make the file if it is missing, and lock it for this process; the descriptor that holds the lock."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # it holds keys: for nobody else to read
    try:
        # A lock of another kind than those of SQLite, which come and go.
        if try_lock(lock):
            return lock
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    raise UsageError(
        f"another process uses the state file {path}: stop it, or be another device with a file of its own"
    )
