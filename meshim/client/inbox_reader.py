"""Gives an application its received messages: in order, each once, and again after a restart until it handled them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from meshim.client.application.message import Message, OrderFlag
from meshim.client.friends.contacts import Contacts
from meshim.client.state import Received, StateFile
from meshim.client.statistics import Statistics
from meshim.client.streams.receipts import Receipts
from meshim.client.wall_clock import SENT_AT_MS_MAX
from meshim.errors import BackendUnavailable, MeshimError, SealBroken, UsageError
from meshim.runtime.crypto import open_sealed
from meshim.wire.envelope import Envelope, Kind, Stream, associated_data, decode_envelope, decode_text

PAGE = 64
"""Messages read from the state file at once; the others stay there until these are handled."""
_KEY_RETRY_MIN_S = 0.2
_KEY_RETRY_MAX_S = 5.0
"""Between two requests for a missing key while REST is unavailable; the wait doubles."""


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
        self._available = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: MeshimError | None = None
        self._last_given = 0
        """The number of the last message that the application got."""
        self._reader: object = None
        """The `messages` loop that reads now; only the latest one may."""

    def notify(self) -> None:
        """The state file has new messages."""
        self._available.set()

    def fail(self, error: MeshimError) -> None:
        """Raise this error in the loops that read, now and later."""
        self._failure = error
        self._failed.set()
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
                page = self._state.received(self._last_given, PAGE)
            for row in page:
                message = await self._open(row)
                self._check()
                if self._reader is not reader:
                    break
                if message is not None:
                    self._last_given = row.number
                    yield message
                await self._done(row.number)
            if not page:
                await self._available.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _done(self, number: int) -> None:
        async with self._lock:
            if self._failure is None:
                self._state.handled((number,))

    async def _open(self, row: Received) -> Message | None:
        """The message of a row; None for a kind that this version does not know."""
        envelope = decode_envelope(row.envelope)
        if envelope.kind != Kind.TEXT:
            self._statistics.skipped += 1
            return None
        own = envelope.user == self._contacts.me
        text, problem = await self._text(envelope, envelope.to.id if own else envelope.user)
        return Message(
            id=envelope.id.hex(),
            sender=self._contacts.name_of(envelope.user),
            sender_device=envelope.device,
            recipient=self._contacts.name_of(envelope.to.id),
            text=text,
            sent_at=datetime.fromtimestamp(min(envelope.sent_at, SENT_AT_MS_MAX) / 1000, UTC),
            own=own,
            stored=row.stored,
            already_read=not own and self._receipts.state(row.stream, row.seq) == "read",
            order=OrderFlag(row.flag),
            problem=problem,
            stream=row.stream,
            seq=row.seq,
            done=lambda: self._done(row.number),
            read=lambda: self._mark_read(row.stream, row.seq),
        )

    async def _text(self, envelope: Envelope, peer: int) -> tuple[str, str]:
        """(text, problem): one of them is empty."""
        key = await self._key(peer, envelope.key)
        if key is None:
            return "", f"the key of this message, version {envelope.key}, is not to be had"
        try:
            return decode_text(open_sealed(key, envelope.body, associated_data(envelope))).text, ""
        except (SealBroken, msgspec.DecodeError) as error:
            return "", f"the message cannot be opened: {error}"

    async def _key(self, peer: int, version: int) -> bytes | None:
        """The content key; None when REST does not know it.

        Waits while REST is unavailable: a message given without its text would be lost.
        """
        wait_s = _KEY_RETRY_MIN_S
        while True:
            try:
                return await self._contacts.key_of(peer, version)
            except BackendUnavailable:
                self._check()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._failed.wait()
            self._check()
            wait_s = min(2 * wait_s, _KEY_RETRY_MAX_S)
