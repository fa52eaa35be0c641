"""What an application holds in its hands: messages it got, and messages it sent."""

import asyncio
import enum
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec

from meshim.errors import Code, MeshimError, Refused
from meshim.protocol.ordering import Flag
from meshim.wire.envelope import Stream


class OrderFlag(enum.IntEnum):
    """How a message came to be shown."""

    IN_ORDER = Flag.IN_ORDER
    AFTER_GAP = Flag.AFTER_GAP
    """The message before it did not come in time."""
    LATE = Flag.LATE
    """Later ones were shown before it."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message that came.

    `sender` and `recipient` are names; `own` says that another device of ours sent it.  `id` is 32 hexadecimal
    digits, `sent_at` the sender's clock.  `stored` says that it had waited in the store.
    `problem` is empty, or says why `text` could not be read.
    """

    id: str
    sender: str
    sender_device: int
    recipient: str
    text: str
    sent_at: datetime
    own: bool
    stored: bool
    place: OrderFlag
    problem: str = ""
    stream: Stream
    seq: int
    done: Callable[[], Awaitable[None]]
    """It counts as handled now, and is not given again after a restart; asking for the next message does the same."""
    read: Callable[[], Awaitable[None]]

    async def mark_read(self) -> None:
        """Tell the sender that it was read; returns once that is in the state file.  Also `done`."""
        await self.read()
        await self.done()


class Outgoing:
    """A message that was sent: it is in the durable outbox, and goes on from there by itself.

    `state` is `pending`, `sent`, `delivered`, `read` or `rejected`.  The waits return when it has come so far,
    at once if it has already, and raise Refused when it was rejected, or what ended the client.
    """

    def __init__(self, message_id: str, recipient: str, seq: int) -> None:
        self.id = message_id
        self.recipient = recipient
        self.seq = seq
        self.state = "pending"
        self._error: MeshimError | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def wait_sent(self) -> None:
        """Every device of the recipient has it, or a copy for it is on disk in the mesh."""
        await self._wait("sent")

    async def wait_delivered(self) -> None:
        """A device of the recipient has it."""
        await self._wait("delivered")

    async def wait_read(self) -> None:
        """The recipient has read it."""
        await self._wait("read")

    async def _wait(self, state: str) -> None:
        if self.state != "rejected" and _STATES.index(self.state) >= _STATES.index(state):
            return
        if self._error is not None:
            raise self._error
        waiting = (_STATES.index(state), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting[1]
        finally:  # also for who does not want to wait any longer
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def advance(self, state: str, code: int, sentence: str) -> None:
        """For the client: it has come this far."""
        if state == "rejected":
            self.state = state
            self.fail(_refusal(code, sentence))
        elif _STATES.index(state) > _STATES.index(self.state):
            self.state = state
            reached = _STATES.index(state)
            for at, future in self._waiting:
                if at <= reached and not future.done():
                    future.set_result(None)
            self._waiting = [(at, future) for at, future in self._waiting if at > reached]

    def fail(self, error: MeshimError) -> None:
        """For the client: it will not come further in this process."""
        self._error = error
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be waiting any more
        self._waiting.clear()


def _refusal(code: int, sentence: str) -> Refused:
    """Codes are an open list: one of the future is told by its number."""
    if code in Code.__members__.values():
        return Refused(Code(code), sentence)
    return Refused(Code.MALFORMED, f"{sentence} (code {code})")


_STATES = ("pending", "sent", "delivered", "read", "rejected")
