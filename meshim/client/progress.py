"""Tells an application what became of messages that this device did not send: delivered, or read elsewhere."""

import asyncio
from collections.abc import AsyncIterator

import msgspec

from meshim.client.events import StreamProgressed
from meshim.client.message import Message
from meshim.errors import MeshimError
from meshim.protocol.ranges import Range, Ranges
from meshim.wire.envelope import Stream


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of one stream that are now `delivered` or `read`.

    ::

        async for progress in client.progress():
            for message in shown:
                if progress.covers(message):
                    print(message.id, progress.state)

    Of messages that another device of this user sent (`Message.own`): their recipient has them, or has read them.
    Of messages of others: this user has read them on another device.
    """

    stream: Stream
    state: str
    """`delivered` or `read`."""
    ranges: tuple[Range, ...]
    """Each (first `seq`, last `seq`)."""

    def covers(self, message: Message) -> bool:
        """Return whether this is about the message."""
        return message.stream == self.stream and any(first <= message.seq <= last for first, last in self.ranges)


class ProgressReader:
    """Gathers progress while the application handles the last one, so that a slow application costs no memory."""

    def __init__(self) -> None:
        self._gathered: dict[tuple[Stream, str], Ranges] = {}
        self._available = asyncio.Event()
        self._failure: MeshimError | None = None
        self._reading = 0
        """Loops that read now; without one nothing is gathered."""

    def notify(self, action: StreamProgressed) -> None:
        """Take in what a receipt told."""
        if not self._reading:
            return
        ranges = self._gathered.setdefault((action.stream, action.state), Ranges())
        for first, last in action.ranges:
            ranges.add(first, last)
        self._available.set()

    def fail(self, error: MeshimError) -> None:
        """Raise this error in the loops that read, now and later."""
        self._failure = error
        self._available.set()

    async def read(self) -> AsyncIterator[Progress]:
        """Yield progress from now on.  Raises the error that ended the client."""
        self._reading += 1
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                while self._gathered:
                    stream, state = key = next(iter(self._gathered))
                    yield Progress(stream=stream, state=state, ranges=tuple(self._gathered.pop(key)))
                self._available.clear()
                if self._failure is None:
                    await self._available.wait()
        finally:
            self._reading -= 1
            if not self._reading:
                self._gathered.clear()
