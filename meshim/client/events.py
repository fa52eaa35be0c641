"""What happens to a client, what its core asks to be done, and what it wants written to the state file."""

from collections.abc import Sequence
from typing import NamedTuple

from meshim.errors import Code
from meshim.wire.bounds import Positions
from meshim.wire.envelope import Destination, Envelope, Stream

# ---------------------------------------------------------------- events


class Connected(NamedTuple):
    """A connection to a connector stands.  `link` is the new link epoch, `token` what to greet with."""

    link: int
    token: bytes


class FramesReceived(NamedTuple):
    batch: Sequence[bytes]


class ConnectionLost(NamedTuple):
    pass


class Composed(NamedTuple):
    """New envelopes, with the `seq` and `base` that `ClientCore.reserve` gave."""

    envelopes: Sequence[Envelope]


class MessagesRead(NamedTuple):
    """The application has read these messages, each (stream, seq)."""

    messages: Sequence[tuple[Stream, int]]


class Saved(NamedTuple):
    """Everything up to this Save is in the state file."""

    serial: int


Event = Connected | FramesReceived | ConnectionLost | Composed | MessagesRead | Saved

# ---------------------------------------------------------------- the state file


class PutStream(NamedTuple):
    """A stream of ours: the next seq, and where copies were stored."""

    to: Destination
    next_seq: int
    after: Positions


class PutOut(NamedTuple):
    """A message that has to be delivered."""

    to: Destination
    seq: int
    base: int
    kind: int
    id: bytes
    envelope: bytes
    receipt: str = ""
    """What a receipt said of it before it was settled."""


class NoteReceipt(NamedTuple):
    """A receipt came before the message was settled."""

    to: Destination
    seq: int
    state: str


class SettleOut(NamedTuple):
    """It is not sent again; `state` is sent, delivered, read or rejected (with its code and sentence)."""

    to: Destination
    seq: int
    state: str
    code: int = 0
    sentence: str = ""


class PutOrder(NamedTuple):
    """What was seen of a stream."""

    stream: Stream
    watermark: int
    holes: tuple[tuple[int, int], ...]


class PutIn(NamedTuple):
    """A message that came; held back until a Release."""

    stream: Stream
    seq: int
    envelope: bytes
    stored: bool


class Release(NamedTuple):
    """The application may have it now, after everything released before."""

    stream: Stream
    seq: int
    flag: int


class Drop(NamedTuple):
    """It came and is not for the application."""

    stream: Stream
    seq: int


Change = PutStream | PutOut | NoteReceipt | SettleOut | PutOrder | PutIn | Release | Drop


class HeldMessage(NamedTuple):
    """A message in the state file that waits for its turn."""

    stream: Stream
    seq: int
    envelope: bytes


class Snapshot(NamedTuple):
    """The state file as the core needs it."""

    streams: Sequence[PutStream]
    unsettled: Sequence[PutOut]
    """In the order they were composed."""
    settled: Sequence[SettleOut]
    """The latest ones, for which receipts may still come."""
    orders: Sequence[PutOrder]
    held: Sequence[HeldMessage]


# ---------------------------------------------------------------- actions


class SendFrame(NamedTuple):
    frame: bytes


class Save(NamedTuple):
    """Write these in one transaction.  Answered by Saved."""

    serial: int
    changes: Sequence[Change]


class Disconnect(NamedTuple):
    """The link is over.  `code` is what the connector said, or None when it said nothing."""

    code: Code | None
    sentence: str


class Online(NamedTuple):
    """The connector has welcomed us, and takes bodies of that many bytes."""

    body_bytes: int


class StoredDelayed(NamedTuple):
    """Whether messages that were stored for us come later, because the database is away."""

    delayed: bool


class Progress(NamedTuple):
    """A message of ours is now `sent`, `delivered`, `read` or `rejected`."""

    to: Destination
    seq: int
    state: str
    code: int
    sentence: str


class InboxGrew(NamedTuple):
    """Messages for the application are in the state file."""


Action = SendFrame | Save | Disconnect | Online | StoredDelayed | Progress | InboxGrew
