"""The events of a client's core, the changes it makes to the state file, and the actions it asks its shell for."""

from collections.abc import Sequence
from typing import NamedTuple

from meshim.errors import Code
from meshim.protocol.ranges import Range
from meshim.wire.envelope import Destination, Envelope, Stream

STATES = ("", "pending", "sent", "delivered", "read", "rejected")
"""The states of a sent message, in order: a message never goes back.  "": no receipt yet; `rejected` is final."""

RANK = {state: rank for rank, state in enumerate(STATES)}
"""State to its place in `STATES`."""

# ---------------------------------------------------------------- events


class Connected(NamedTuple):
    """A connection to a connector stands.  `link` is the new link epoch, `token` goes into the greeting."""

    link: int
    token: bytes


class FramesReceived(NamedTuple):
    """Frames from the connector, in the order received."""

    batch: Sequence[bytes]


class ConnectionLost(NamedTuple):
    """The transport reported that the connection is gone."""


class Composed(NamedTuple):
    """New envelopes of the application, with the `seq` and `base` from `ClientCore.reserve`."""

    envelopes: Sequence[Envelope]


class MessagesRead(NamedTuple):
    """The application has read these messages, each (stream, seq)."""

    messages: Sequence[tuple[Stream, int]]


class UserTyped(NamedTuple):
    """The user types a message to this destination."""

    to: Destination


class Persisted(NamedTuple):
    """The state file holds the changes of every Persist up to this serial."""

    serial: int


class UnsendableFound(NamedTuple):
    """The state file holds unsettled messages that no connector would take, each (to, seq, why): reject them."""

    messages: Sequence[tuple[Destination, int, str]]


Event = Connected | FramesReceived | ConnectionLost | Composed | MessagesRead | UserTyped | Persisted | UnsendableFound

# ---------------------------------------------------------------- changes to the state file


class PutStream(NamedTuple):
    """A stream that this device sends: its next seq, and the cookie of its latest outcome."""

    to: Destination
    next_seq: int
    cookie: bytes


class AddToOutbox(NamedTuple):
    """A message to deliver."""

    to: Destination
    seq: int
    base: int
    kind: int
    id: bytes
    envelope: bytes
    receipt: str = ""
    """`delivered` or `read`, when a receipt arrived before the message was settled."""


class RecordReceipt(NamedTuple):
    """A receipt arrived before the message was settled; `state` is delivered or read."""

    to: Destination
    seq: int
    state: str


class SettleMessage(NamedTuple):
    """The message is not sent again.  `state` is sent, delivered, read, or rejected (with its code and sentence)."""

    to: Destination
    seq: int
    state: str
    code: int = 0
    sentence: str = ""


class DropFromOutbox(NamedTuple):
    """A receipt or base update is settled: nothing more can become of it."""

    to: Destination
    seq: int


class PutOrder(NamedTuple):
    """The position in a stream that this device receives; see `protocol.ordering`."""

    stream: Stream
    watermark: int
    holes: tuple[tuple[int, int], ...]
    flag: int = 0
    """AFTER_GAP when a message was dropped behind a gap, so that the next one for the application tells of it."""


class PutReceipts(NamedTuple):
    """Which messages of a stream are delivered or read, as far as this device knows; see `client.streams.receipts`."""

    stream: Stream
    delivered: tuple[Range, ...]
    read: tuple[Range, ...]
    owed_delivered: tuple[Range, ...]
    owed_read: tuple[Range, ...]


class AddToInbox(NamedTuple):
    """A received message; the application does not get it before its Release."""

    stream: Stream
    seq: int
    envelope: bytes
    stored: bool


class Release(NamedTuple):
    """The application may read this message now, after all messages released before it."""

    stream: Stream
    seq: int
    flag: int


class DropFromInbox(NamedTuple):
    """The message took its place in the order, with this flag, and is not for the application."""

    stream: Stream
    seq: int
    flag: int


Change = (
    PutStream
    | AddToOutbox
    | RecordReceipt
    | SettleMessage
    | DropFromOutbox
    | PutOrder
    | PutReceipts
    | AddToInbox
    | Release
    | DropFromInbox
)


class EarlyMessage(NamedTuple):
    """A message in the state file that waits until an earlier one of its stream arrives."""

    stream: Stream
    seq: int
    envelope: bytes


class Snapshot(NamedTuple):
    """The contents of the state file, as a core needs them at its start."""

    streams: Sequence[PutStream]
    unsettled: Sequence[AddToOutbox]
    """In the order they were composed."""
    settled: Sequence[SettleMessage]
    """The latest settled messages: receipts for them may still come."""
    orders: Sequence[PutOrder]
    early: Sequence[EarlyMessage]
    receipts: Sequence[PutReceipts] = ()


# ---------------------------------------------------------------- actions


class SendFrame(NamedTuple):
    """Send this frame to the connector; drop it when the socket has no room, as the window sends it again."""

    frame: bytes


class Persist(NamedTuple):
    """Write these changes in one transaction, then answer with Persisted."""

    serial: int
    changes: Sequence[Change]


class Disconnect(NamedTuple):
    """End the connection.  `code` is the one of the connector's close frame, or None when there was none.

    `wait_s` is how long the connector says to wait before the next greeting.
    """

    code: Code | None
    sentence: str
    wait_s: float = 0.0


class Online(NamedTuple):
    """The connector has welcomed this device, and takes bodies of up to `body_bytes`."""

    body_bytes: int


class StoredDelayed(NamedTuple):
    """Whether stored messages for this device are delayed because the mesh's database is away."""

    delayed: bool


class StatusChanged(NamedTuple):
    """A sent message is now `sent`, `delivered`, `read` or `rejected` (with its code and sentence)."""

    to: Destination
    seq: int
    state: str
    code: int
    sentence: str
    hidden: bool = False
    """It is a receipt or base update of this library."""


class StreamDelayed(NamedTuple):
    """The mesh takes no more messages to this destination for a while, for this reason.  They are kept."""

    to: Destination
    code: int
    sentence: str


class TypingChanged(NamedTuple):
    """A friend types to this user, or does so no more."""

    user: int
    typing: bool


class AccountChanged(NamedTuple):
    """The connector says that this user's account changed; `what` are the bits of a Changed frame."""

    what: int


class StreamProgressed(NamedTuple):
    """A receipt told something new about messages that this device did not send.

    Of another device of this user: they are `delivered` or `read`.  Of a friend: this user has read them elsewhere.
    """

    stream: Stream
    state: str
    ranges: tuple[Range, ...]


class MessagesAvailable(NamedTuple):
    """The state file holds messages that the application has not read."""


Action = (
    SendFrame
    | Persist
    | Disconnect
    | Online
    | StoredDelayed
    | StatusChanged
    | StreamDelayed
    | StreamProgressed
    | TypingChanged
    | AccountChanged
    | MessagesAvailable
)
