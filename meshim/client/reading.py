"""How an application reads its messages: in order, each once, given again until it has handled them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from meshim.client.message import Message, OrderFlag
from meshim.client.people import People
from meshim.client.state import Received, StateFile
from meshim.errors import BackendUnavailable, MeshimError, SealBroken, UsageError
from meshim.runtime.crypto import open_sealed
from meshim.wire.envelope import Envelope, Kind, Stream, associated_data, decode_envelope, decode_text

PAGE = 64
"""How many messages are read from the file at once; the rest waits there."""
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
"""Between two questions for a missing key, while REST is away."""


class Reading:
    """The reading end of one inbox."""

    def __init__(
        self,
        state: StateFile,
        lock: asyncio.Lock,
        people: People,
        mark_read: Callable[[Stream, int], Awaitable[None]],
    ) -> None:
        self._state = state
        self._lock = lock
        self._people = people
        self._mark_read = mark_read
        self._more = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: MeshimError | None = None
        self._number = 0
        """Of the last message that was given out."""
        self._reader: object = None
        """The loop that reads now."""
        self.skipped = 0
        """Messages of kinds that this version does not know."""

    def grew(self) -> None:
        self._more.set()

    def fail(self, error: MeshimError) -> None:
        self._failure = error
        self._failed.set()
        self._more.set()

    async def messages(self) -> AsyncIterator[Message]:
        """Messages for the application; raises what ended the client, and UsageError when another loop has begun."""
        reader = self._reader = object()
        self._more.set()  # for an earlier loop to see it
        while True:
            self._more.clear()
            async with self._lock:
                self._check()
                if self._reader is not reader:  # both would be given the same messages
                    self._more.set()  # in case that was for the other one
                    raise UsageError("another loop reads the messages of this client now: one at a time")
                if self._number:
                    self._state.handled((self._number,))  # also when the loop was left and entered again
                page = self._state.received(self._number, PAGE)
            for row in page:
                message = await self._open(row)
                self._check()
                if self._reader is not reader:
                    break
                if message is not None:
                    self._number = row.number
                    yield message
                await self._done(row.number)
            if not page:
                await self._more.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _done(self, number: int) -> None:
        async with self._lock:
            if self._failure is None:
                self._state.handled((number,))

    async def _open(self, row: Received) -> Message | None:
        envelope = decode_envelope(row.envelope)
        if envelope.kind != Kind.TEXT:
            self.skipped += 1
            return None
        own = envelope.user == self._people.me
        text, problem = await self._text(envelope, envelope.to.id if own else envelope.user)
        return Message(
            id=envelope.id.hex(),
            sender=self._people.name_of(envelope.user),
            sender_device=envelope.device,
            recipient=self._people.name_of(envelope.to.id),
            text=text,
            sent_at=datetime.fromtimestamp(envelope.sent_at / 1000, UTC),
            own=own,
            stored=row.stored,
            place=OrderFlag(row.flag),
            problem=problem,
            stream=row.stream,
            seq=row.seq,
            done=lambda: self._done(row.number),
            read=lambda: self._mark_read(row.stream, row.seq),
        )

    async def _text(self, envelope: Envelope, peer: int) -> tuple[str, str]:
        """(Text, why it could not be read)."""
        key = await self._key(peer, envelope.key)
        if key is None:
            return "", f"the key of this message, version {envelope.key}, is not to be had"
        try:
            return decode_text(open_sealed(key, envelope.body, associated_data(envelope))).text, ""
        except (SealBroken, msgspec.DecodeError) as error:
            return "", f"the message cannot be opened: {error}"

    async def _key(self, peer: int, version: int) -> bytes | None:
        """The key; waits for REST if it has to be asked: no message is given up because the service is away."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return await self._people.key_of(peer, version)
            except BackendUnavailable:
                self._check()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._failed.wait()
            self._check()
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
