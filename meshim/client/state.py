"""The state file: everything that a device must keep when its process ends, in SQLite.

    meta          epoch of the file, and the login
    peer          the contacts: names and relations
    content_key   keys by contact and version; they outlive the messages
    stream        streams that this device sends: next seq, cookie
    outbox        sent messages: the envelope until settled, then only the state
    seen          streams that this device receives: watermark and holes
    receipt       the messages of such a stream that are delivered or read, and the receipts that are owed
    inbox         received messages, until the application has handled them; `turn` is their order of release

WAL with `synchronous=FULL`: the changes are on disk when `apply` returns, and survive a power loss.  One process at a
time may use the file; another one gets a UsageError.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from meshim.client.events import (
    AddToInbox,
    AddToOutbox,
    Change,
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
from meshim.client.state_lock import check_folder, lock
from meshim.errors import ClientClosed, UsageError
from meshim.wire import codec
from meshim.wire.envelope import Destination, Stream

_APPLICATION = 0x6D657368
"""Distinguishes state files from other SQLite databases (`application_id`): "mesh" in ASCII."""
_VERSION = 3
_DURABLE = "synchronous=FULL"
_SETTLED_MAX = 10_000
"""Rows of settled messages, kept for the receipts that may still come."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE peer (user_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL);
CREATE TABLE content_key (
    user_id INTEGER, version INTEGER, key BLOB NOT NULL, PRIMARY KEY (user_id, version)
) WITHOUT ROWID;
CREATE TABLE stream (destination BLOB PRIMARY KEY, next_seq INTEGER NOT NULL, cookie BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, destination BLOB NOT NULL, seq INTEGER NOT NULL, base INTEGER NOT NULL,
    kind INTEGER NOT NULL, id BLOB NOT NULL, envelope BLOB, receipt TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'pending', code INTEGER NOT NULL DEFAULT 0, sentence TEXT NOT NULL DEFAULT '',
    UNIQUE (destination, seq)
);
CREATE TABLE seen (
    stream BLOB PRIMARY KEY, watermark INTEGER NOT NULL, holes BLOB NOT NULL, flag INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE receipt (
    stream BLOB PRIMARY KEY, delivered BLOB NOT NULL, read BLOB NOT NULL,
    owed_delivered BLOB NOT NULL, owed_read BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE inbox (
    stream BLOB NOT NULL, seq INTEGER NOT NULL, envelope BLOB NOT NULL, stored INTEGER NOT NULL,
    flag INTEGER NOT NULL DEFAULT 0, turn INTEGER, PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE INDEX inbox_turn ON inbox (turn) WHERE turn IS NOT NULL;
INSERT INTO meta VALUES ('epoch', random() & 0x1fffffffffffff);
"""

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

_destination: Callable[[bytes], Destination] = codec.decoder(Destination)
_stream: Callable[[bytes], Stream] = codec.decoder(Stream)
_ranges: Callable[[bytes], tuple[tuple[int, int], ...]] = codec.decoder(tuple[tuple[int, int], ...])
_pack = codec.encode


class Received(NamedTuple):
    """A message for the application.  `number` is its place in the order of release, and its name for `handled`."""

    number: int
    stream: Stream
    seq: int
    envelope: bytes
    stored: bool
    flag: int


def _exclusive(
    method: Callable[Concatenate["StateFile", _Arguments], _Answer],
) -> Callable[Concatenate["StateFile", _Arguments], _Answer]:
    """Run one method at a time, whichever threads they run in: a transaction belongs to the connection."""

    @wraps(method)
    def exclusive(self: "StateFile", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        with self._using:
            if self._closed:  # by another task, while this one waited for REST
                raise ClientClosed("The client was closed.")
            try:
                return method(self, *args, **kwargs)
            except sqlite3.OperationalError as error:
                if not _is_refused(error):
                    raise
                raise UsageError(f"The state file {self.path} cannot be used: {error}.") from error

    return exclusive


class StateFile:
    """The state of one device.  Any thread may use it; the methods wait for one another."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.  Raises UsageError when another process uses it, or it is no state file."""
        self._writers: dict[type[Any], Callable[[Any], None]] = {
            PutStream: self._put_stream,
            AddToOutbox: self._add_to_outbox,
            RecordReceipt: self._record_receipt,
            SettleMessage: self._settle_message,
            DropFromOutbox: self._drop_from_outbox,
            PutOrder: self._put_order,
            PutReceipts: self._put_receipts,
            AddToInbox: self._add_to_inbox,
            Release: self._release,
            DropFromInbox: self._drop_from_inbox,
        }
        self.path = path
        self._using = threading.RLock()
        self._closed = False
        try:
            path = path.resolve()  # a symbolic link must lead to the same lock
            check_folder(path)
            self._lock = lock(path)
        except OSError as error:
            raise UsageError(
                f"The state file {self.path} cannot be used: {error.filename}: {error.strerror}."
            ) from None
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except sqlite3.OperationalError as error:
            os.close(self._lock)
            raise UsageError(f"The state file {self.path} cannot be opened: {error}.") from None
        try:
            self._prepare()
            self.latest: int = self._one("SELECT coalesce(max(turn), 0) FROM inbox")
            """The number of the message that was released last; 0 before the first one."""
            self.unread_bytes: int = self._one("SELECT coalesce(sum(length(envelope)), 0) FROM inbox WHERE turn > 0")
            """Of the messages that the application can read and has not handled."""
            self.epoch: int = self._one("SELECT value FROM meta WHERE key = 'epoch'")
            """53 random bits, made with the file."""
        except sqlite3.DatabaseError as error:
            self.close()
            if _is_refused(error):
                raise UsageError(f"The state file {self.path} cannot be opened: {error}.") from None
            raise UsageError(f"{self.path} is not a state file of this version of meshim: {error}.") from None

    def _prepare(self) -> None:
        # Before anything is written: the file may belong to another program.
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
        """Close the file, after the method that uses it; all methods raise ClientClosed from then on."""
        with self._using:
            if not self._closed:
                self._closed = True
                self._db.close()
                os.close(self._lock)

    # ---------------------------------------------------------------- the login and the contacts

    @_exclusive
    def get(self, key: str) -> bytes | None:
        """Return an entry of `meta`; None when it is missing."""
        found = self._one("SELECT value FROM meta WHERE key = ?", key)
        return found if found is None or isinstance(found, bytes) else b""  # damaged

    @_exclusive
    def put(self, key: str, value: bytes) -> None:
        """Write an entry of `meta`."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @_exclusive
    def put_peers(self, peers: Sequence[tuple[int, str, str]], keys: Sequence[tuple[int, int, bytes]]) -> None:
        """Write contacts, each (user id, name, relation), and keys, each (user id, version, key)."""
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO peer VALUES (?, ?, ?)", peers)
            self._db.executemany("INSERT OR REPLACE INTO content_key VALUES (?, ?, ?)", keys)

    @_exclusive
    def peers(self) -> list[tuple[int, str, str]]:
        """Return the contacts, each (user id, name, relation)."""
        return self._db.execute("SELECT user_id, name, state FROM peer").fetchall()

    @_exclusive
    def content_keys(self) -> list[tuple[int, int, bytes]]:
        """Return the keys, each (user id, version, key), by version."""
        return self._db.execute("SELECT user_id, version, key FROM content_key ORDER BY version").fetchall()

    # ---------------------------------------------------------------- the state of the core

    @_exclusive
    def load(self) -> Snapshot:
        """Return what the core needs at its start."""
        rows = self._db.execute
        return Snapshot(
            streams=[
                PutStream(_destination(to), seq, bytes(cookie)) for to, seq, cookie in rows("SELECT * FROM stream")
            ],
            unsettled=[
                AddToOutbox(
                    to=_destination(to), seq=seq, base=base, kind=kind, id=name, envelope=envelope, receipt=receipt
                )
                for to, seq, base, kind, name, envelope, receipt in rows(
                    "SELECT destination, seq, base, kind, id, envelope, receipt FROM outbox"
                    " WHERE state = 'pending' ORDER BY number"
                )
            ],
            settled=[
                SettleMessage(_destination(to), seq, state, code, sentence)
                for to, seq, state, code, sentence in rows(
                    "SELECT destination, seq, state, code, sentence FROM outbox"
                    " WHERE state <> 'pending' ORDER BY number"
                )
            ],
            orders=[
                PutOrder(_stream(stream), watermark, _ranges(holes), flag)
                for stream, watermark, holes, flag in rows("SELECT * FROM seen")
            ],
            early=[
                EarlyMessage(_stream(stream), seq, envelope)
                for stream, seq, envelope in rows(
                    "SELECT stream, seq, envelope FROM inbox WHERE turn IS NULL ORDER BY stream, seq"
                )
            ],
            receipts=[
                PutReceipts(_stream(stream), *map(_ranges, ranges)) for stream, *ranges in rows("SELECT * FROM receipt")
            ],
        )

    @_exclusive
    def apply(self, changes: Sequence[Change]) -> None:
        """Write these changes, in order, in one transaction; they are on disk when this returns.

        Raises UsageError when the file cannot be written; then it holds none of them.
        """
        with self._transaction():
            for change in changes:
                self._apply(change)

    def _apply(self, change: Change) -> None:
        self._writers[type(change)](change)

    def _put_stream(self, change: PutStream) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO stream VALUES (?, ?, ?)", (_pack(change.to), change.next_seq, change.cookie)
        )

    def _add_to_outbox(self, change: AddToOutbox) -> None:
        self._db.execute(
            "INSERT INTO outbox (destination, seq, base, kind, id, envelope) VALUES (?, ?, ?, ?, ?, ?)",
            (_pack(change.to), change.seq, change.base, change.kind, change.id, change.envelope),
        )

    def _record_receipt(self, change: RecordReceipt) -> None:
        self._db.execute(
            "UPDATE outbox SET receipt = ? WHERE destination = ? AND seq = ?",
            (change.state, _pack(change.to), change.seq),
        )

    def _settle_message(self, change: SettleMessage) -> None:
        self._db.execute(
            "UPDATE outbox SET state = ?, code = ?, sentence = ?, envelope = NULL WHERE destination = ? AND seq = ?",
            (change.state, change.code, change.sentence, _pack(change.to), change.seq),
        )
        self._db.execute(
            "DELETE FROM outbox WHERE state <> 'pending' AND number < (SELECT max(number) FROM outbox) - ?",
            (_SETTLED_MAX,),
        )

    def _drop_from_outbox(self, change: DropFromOutbox) -> None:
        self._db.execute("DELETE FROM outbox WHERE destination = ? AND seq = ?", (_pack(change.to), change.seq))

    def _put_order(self, change: PutOrder) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)",
            (_pack(change.stream), change.watermark, _pack(change.holes), change.flag),
        )

    def _put_receipts(self, change: PutReceipts) -> None:
        self._db.execute("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?, ?, ?)", [_pack(field) for field in change])

    def _add_to_inbox(self, change: AddToInbox) -> None:
        self._db.execute(
            "INSERT INTO inbox (stream, seq, envelope, stored) VALUES (?, ?, ?, ?)",
            (_pack(change.stream), change.seq, change.envelope, change.stored),
        )

    def _release(self, change: Release) -> None:
        self.latest += 1
        self.unread_bytes += self._one(
            "UPDATE inbox SET turn = ?, flag = ? WHERE stream = ? AND seq = ? RETURNING length(envelope)",
            self.latest, change.flag, _pack(change.stream), change.seq,
        )  # fmt: skip

    def _drop_from_inbox(self, change: DropFromInbox) -> None:
        self._db.execute("DELETE FROM inbox WHERE stream = ? AND seq = ?", (_pack(change.stream), change.seq))

    @_exclusive
    def reassign_outbox(self, messages: Sequence[tuple[Destination, int, bytes]]) -> None:
        """Replace envelopes of the outbox, each (to, seq, envelope), by those of another sending device.

        Its streams are new, so no copy of them is stored anywhere: their cookies become empty.
        """
        with self._transaction():
            self._db.executemany(
                "UPDATE outbox SET envelope = ? WHERE destination = ? AND seq = ?",
                [(envelope, _pack(to), seq) for to, seq, envelope in messages],
            )
            self._db.execute("UPDATE stream SET cookie = x''")

    # ---------------------------------------------------------------- the messages for the application

    @_exclusive
    def received(self, after: int, limit: int) -> list[Received]:
        """Return up to `limit` messages with numbers above `after`, in order."""
        return [
            Received(number=number, stream=_stream(stream), seq=seq, envelope=envelope, stored=bool(stored), flag=flag)
            for number, stream, seq, envelope, stored, flag in self._db.execute(
                "SELECT turn, stream, seq, envelope, stored, flag FROM inbox WHERE turn > ? ORDER BY turn LIMIT ?",
                (after, limit),
            )
        ]

    @_exclusive
    def handled(self, numbers: Sequence[int]) -> None:
        """The application has handled these messages; delete them.

        A power loss in the same moment may undo it, and the application gets them once more.
        """
        # Once for every message, before the next one: it has to survive a crash of this process, and no more.
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            with self._transaction():
                delete = "DELETE FROM inbox WHERE turn = ? RETURNING length(envelope)"
                handled_bytes = sum(self._one(delete, number) or 0 for number in numbers)
            self.unread_bytes -= handled_bytes
        finally:
            self._db.execute(f"PRAGMA {_DURABLE}")

    # ---------------------------------------------------------------- SQLite

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
            if self._db.in_transaction:  # SQLite rolls back by itself on some errors
                with suppress(sqlite3.OperationalError):  # on a broken disk; the first error tells why
                    self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise UsageError(f"The state file {self.path} cannot be written: {error}.") from error
            raise


def _is_refused(error: sqlite3.Error) -> bool:
    """Whether the system refused, and not SQLite: the disk is full or broken, or there is no descriptor or memory."""
    refused = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in refused
