"""The messages that an application handles: received ones (`Message`) and sent ones (`Outgoing`)."""

import asyncio
import enum
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec

from meshim.client.events import RANK
from meshim.errors import Code, MeshimError, Refused, as_sentence
from meshim.protocol.ordering import Flag
from meshim.wire.envelope import Stream


class OrderFlag(enum.IntEnum):
    """Where a message stands among the messages of its stream.

    ::

        if message.order is not OrderFlag.IN_ORDER:
            print("(out of order)")
    """

    IN_ORDER = Flag.IN_ORDER
    """All messages before it were given to the application before it, or were never meant for this device."""
    AFTER_GAP = Flag.AFTER_GAP
    """The message before it did not arrive within `gap_release_s`."""
    LATE = Flag.LATE
    """Later messages of its stream were given to the application before it."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A received message.

    ::

        async for message in client.messages():
            print(message.sender, message.problem or message.text)
            await message.mark_read()
    """

    id: str
    """32 hexadecimal digits, made by the sender."""
    sender: str
    """The name of a user; `user-ID` while it is unknown."""
    sender_device: int
    """The id of the sending device."""
    recipient: str
    """The name of a user: the owner of this client, unless `own`."""
    text: str
    """Empty when there is a `problem`."""
    sent_at: datetime
    """The sender's clock, in UTC."""
    own: bool
    """Another device of this user sent it."""
    stored: bool
    """It was stored in the mesh before it was delivered."""
    order: OrderFlag
    already_read: bool = False
    """The user has read it before: on another device, or on this one before it was handled."""
    problem: str = ""
    """Why the text cannot be read; empty when it can."""
    stream: Stream
    seq: int
    """(stream, seq) names the message for ever."""
    done: Callable[[], Awaitable[None]]
    """Count the message as handled: `messages()` does not give it again after a restart.

    A power loss in the same moment may undo that.  Asking `messages()` for the next message does the same.
    """
    read: Callable[[], Awaitable[None]]
    """Send a read receipt, without `done`.  Raises as `mark_read`."""

    async def mark_read(self) -> None:
        """Send a read receipt, and count the message as handled (`done`).

        The receipt goes to all devices of the sender, and to the other devices of this user.  None is sent for a
        message that was read before.  Returns once the receipt is in the state file.  Raises the MeshimError that
        ended the client.
        """
        await self.read()
        await self.done()


class Outgoing:
    """A sent message.  It is in the state file; the client submits it until the mesh has it.

    ::

        outgoing = await ann.send("ben", "hello")
        await outgoing.wait_delivered()

    `id` is 32 hexadecimal digits, `recipient` the name given to `send`; (`stream`, `seq`) names the message for ever.
    `state` is `pending`, then `sent`, `delivered`, `read`, in this order and perhaps with some left out; or `rejected`.

    Each `wait_` method returns when the message has reached that state or a later one, at once if it already has.
    It raises Refused when the mesh rejected the message, or the MeshimError that ended the client.  It has no timeout:
    use `asyncio.timeout`.
    """

    def __init__(self, message_id: str, recipient: str, stream: Stream, seq: int) -> None:
        self.id = message_id
        self.recipient = recipient
        self.stream = stream
        self.seq = seq
        self.state = "pending"
        self._error: MeshimError | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        """Each (rank of the state to reach, future)."""

    async def wait_sent(self) -> None:
        """Wait until every device of the recipient has the message, or a copy for it is on disk in the mesh."""
        await self._wait("sent")

    async def wait_delivered(self) -> None:
        """Wait until a device of the recipient has the message."""
        await self._wait("delivered")

    async def wait_read(self) -> None:
        """Wait until the recipient's application has marked the message as read."""
        await self._wait("read")

    async def _wait(self, state: str) -> None:
        if self.state != "rejected" and RANK[self.state] >= RANK[state]:
            return
        if self._error is not None:
            raise self._error
        waiting = (RANK[state], asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting[1]
        finally:  # a cancelled wait must leave nothing behind
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def advance(self, state: str, code: int, sentence: str) -> None:
        """For `Client`: the message has reached this state."""
        if state == "rejected":
            self.state = state
            self.fail(_refusal(code, sentence))
        elif RANK[state] > RANK[self.state]:
            self.state = state
            reached = RANK[state]
            for rank, future in self._waiting:
                if rank <= reached and not future.done():
                    future.set_result(None)
            self._waiting = [(rank, future) for rank, future in self._waiting if rank > reached]

    def fail(self, error: MeshimError) -> None:
        """For `Client`: the message reaches no further state in this process."""
        self._error = error
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # its task may be cancelled: asyncio must not report the exception as lost
        self._waiting.clear()


def _refusal(code: int, sentence: str) -> Refused:
    """The error of a rejection.  Codes are an open list: an unknown one goes into the sentence."""
    if code in Code.__members__.values():
        return Refused(Code(code), as_sentence(sentence))
    return Refused(Code.MALFORMED, as_sentence(f"{sentence} (code {code})"))
