"""Gives an application its received messages: in order, each once, and again after a restart until it handled them.

A message whose key this device lacks waits in the state file until REST has answered, and with it the later messages of
its stream, whose order is promised.  Other streams go on: there is no order between streams, and otherwise one friend
who names a key that does not exist would stop the messages of all friends while REST is away.

A message that cannot be opened, for whatever reason, is given with its `problem`: an exception would come again with
the same message, first of all, for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import msgspec

from meshim.client.application.message import Message, OrderFlag
from meshim.client.friends.contacts import Contacts
from meshim.client.friends.key_requests import KeyRequests
from meshim.client.state import Received, StateFile
from meshim.client.statistics import Statistics
from meshim.client.streams.receipts import Receipts
from meshim.client.wall_clock import SENT_AT_MS_MAX
from meshim.errors import MeshimError, SealBroken, UsageError, one_line
from meshim.runtime.crypto import open_sealed
from meshim.wire.envelope import Envelope, Kind, Stream, associated_data, decode_envelope, decode_text

PAGE = 64
"""Messages read from the state file at once; the others stay there until these are handled."""


class _KeyUnknown(Exception):
    """A message has to wait for its key."""


class InboxReader:
    """Reads the inbox of one state file."""

    def __init__(
        self,
        state: StateFile,
        lock: asyncio.Lock,
        contacts: Contacts,
        receipts: Receipts,
        mark_read: Callable[[Stream, int], Awaitable[None]],
        statistics: Statistics,
    ) -> None:
        """`lock` is held while the file is used.  `receipts` knows what was read; `mark_read` sends a read receipt."""
        self._state = state
        self._lock = lock
        self._contacts = contacts
        self._receipts = receipts
        self._mark_read = mark_read
        self._statistics = statistics
        self._keys = KeyRequests(contacts, lambda: state.latest, self._release)
        contacts.on_new_keys = self._release
        self.on_handled: Callable[[], None] = lambda: None
        """Called when the application has handled messages."""
        self._available = asyncio.Event()
        self._failure: MeshimError | None = None
        self._after = 0
        """The number up to which messages were given, or wait."""
        self._last_given = 0
        """The number of the last message that the application got."""
        self._waiting: dict[Stream, int] = {}
        """Streams whose next message waits for a key, with the user whose key it is."""
        self._again = False
        """Streams wait no more: read from the first message on."""
        self._reader: object = None
        """The `messages` loop that reads now; only the latest one may."""

    def notify(self) -> None:
        """The state file has new messages."""
        self._available.set()

    def fail(self, error: MeshimError) -> None:
        """Raise this error in the loops that read, now and later."""
        self._failure = error
        self._keys.stop()
        self._available.set()

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages, and wait for more.

        Raises the error that ended the client, and UsageError when a later call of this method has begun to read.
        """
        reader = self._reader = object()
        self._available.set()  # wake an earlier loop: it must see that it was replaced
        while True:
            self._available.clear()
            async with self._lock:
                self._check()
                if self._reader is not reader:  # both loops would get the same messages
                    self._available.set()  # this wake-up may have been for the other loop
                    raise UsageError("Another loop reads the messages of this client now: one at a time.")
                if self._last_given:
                    self._state.handled((self._last_given,))  # the application left its loop, and began another
                    self.on_handled()
                if self._again:
                    self._again, self._after = False, 0
                page = self._state.received(self._after, PAGE)
            for row in page:
                # After a wait, first the messages that waited: later ones of their streams may be in this page.
                if self._reader is not reader or self._again:
                    break
                self._after = row.number
                try:
                    message = self._read(row)
                except _KeyUnknown:
                    continue
                if message is not None:
                    self._last_given = row.number
                    yield message
                await self._done(row.number)
                self._check()
            if not page:
                await self._available.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._keys.check()

    def _release(self, peer: int) -> None:
        """There may be keys for what waits."""
        waiting = {stream: user for stream, user in self._waiting.items() if user != peer}
        self._again = self._again or len(waiting) < len(self._waiting)
        self._waiting = waiting
        self._available.set()

    async def _done(self, number: int) -> None:
        async with self._lock:
            if self._failure is None:
                self._state.handled((number,))
                self.on_handled()

    def _read(self, row: Received) -> Message | None:
        """The message of a row; None for a kind that this version does not know.  Raises _KeyUnknown."""
        if row.stream in self._waiting:
            raise _KeyUnknown
        try:
            envelope = decode_envelope(row.envelope)
            if envelope.kind != Kind.TEXT:
                self._statistics.skipped += 1
                return None
            text, problem = self._text(row, envelope)
            sent_at = datetime.fromtimestamp(min(envelope.sent_at, SENT_AT_MS_MAX) / 1000, UTC)
            return self._message(row, envelope.id.hex(), sent_at, text, problem)
        except _KeyUnknown:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is: an exception would come again, for ever
            self._statistics.inbox_failures += 1
            problem = f"the message cannot be opened: {one_line(error)}"
            return self._message(row, "", datetime.fromtimestamp(0, UTC), "", problem)

    def _message(self, row: Received, name: str, sent_at: datetime, text: str, problem: str) -> Message:
        stream = row.stream
        own = stream.user == self._contacts.me
        return Message(
            id=name,
            sender=self._contacts.name_of(stream.user),
            sender_device=stream.device,
            recipient=self._contacts.name_of(stream.to.id),
            text=text,
            sent_at=sent_at,
            own=own,
            stored=row.stored,
            already_read=not own and self._receipts.state(stream, row.seq) == "read",
            order=OrderFlag(row.flag),
            problem=problem,
            stream=stream,
            seq=row.seq,
            done=lambda: self._done(row.number),
            read=lambda: self._mark_read(stream, row.seq),
        )

    def _text(self, row: Received, envelope: Envelope) -> tuple[str, str]:
        """(text, problem): one of them is empty."""
        peer = envelope.to.id if envelope.user == self._contacts.me else envelope.user
        key = self._contacts.key(peer, envelope.key)
        if key is None:
            if not self._keys.is_missing(peer, row.number):
                self._waiting[row.stream] = peer
                self._keys.request(peer, envelope.key)
                raise _KeyUnknown
            return "", f"the key of this message, version {envelope.key}, is not to be had"
        try:
            return decode_text(open_sealed(key, envelope.body, associated_data(envelope))).text, ""
        except (SealBroken, msgspec.DecodeError) as error:
            return "", f"the message cannot be opened: {one_line(error)}"
