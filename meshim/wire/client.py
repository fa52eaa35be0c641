"""The link between a client (DEALER) and a connector (ROUTER)."""

import enum
from collections.abc import Callable

import msgspec

from meshim.wire import codec
from meshim.wire.bounds import U8, U31, U53, Cookie, Id, Milliseconds, Sentence, Seq, Token, WindowSize
from meshim.wire.envelope import Destination
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset


class Greet(Frame, array_like=True, frozen=True, gc=False, tag=1):
    """The first frame of a client: its token, and the link epoch that all later frames carry.

    `epoch` is that of the client's state file, and must be the one that it logged in with.  `window` is how many
    unacknowledged data frames the client takes.  `silence_ms` is how long it asks to be allowed to be silent; 0 leaves
    that to the connector.
    """

    version: U31
    token: Token
    epoch: U53
    link: U53
    window: WindowSize
    silence_ms: U31 = 0


class Welcome(Frame, array_like=True, frozen=True, gc=False, tag=2):
    """The connector accepts the greeting.

    The connector sends a Ping when it has sent nothing for `heartbeat_ms`.  An end that was silent for `silence_ms` is
    dead.  The client must acknowledge a data frame within `ack_ms`.  `now` is the clock of the connector, in
    milliseconds since 1970-01-01 UTC.
    """

    version: U31
    link: U53
    session: U53
    user: Id
    device: Id
    window: WindowSize
    body_bytes: U31
    frame_bytes: U31
    heartbeat_ms: U31
    silence_ms: U31
    ack_ms: U31
    now: Milliseconds


class Stored(Frame, array_like=True, frozen=True, gc=False, tag=10):
    """The state of the offline queue: all messages are pushed, or `delayed` because the database does not answer."""

    link: U53
    delayed: bool


class Change(enum.IntFlag):
    """What of an account changed, as bits of `Changed.what`."""

    RELATIONS = 1
    """The state of a relation: a request, a friend, the end of either."""
    KEYS = 2
    """With whom the user shares a content key to seal with: a friendship began or ended."""
    DEVICES = 4
    PROFILE = 8
    """Reserved."""


class Changed(Frame, array_like=True, frozen=True, gc=False, tag=11):
    """The account of this user changed, by the bits of `Change`: ask the REST service for what is of interest."""

    link: U53
    what: U31


class Submit(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Client to connector: an envelope to deliver.

    `cookie` is that of the latest outcome of the stream.  It names, for each device for which a copy of the stream was
    stored, the highest position: a live copy for that device waits until the offline queue is pushed up to there.
    """

    envelope: bytes
    cookie: Cookie = b""


class Delivery(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Connector to client: an envelope for this device.  `stored` is true for one from the offline queue."""

    envelope: bytes
    stored: bool = False


class Outcome(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Connector to client: what became of its messages `first` to `last` to this destination.

    `status` is that of each message as known so far (an `OutcomeStatus`).  `final`: all copies are accounted for.
    `audience` of a final outcome is equal for messages that went to the same copies, and not 0.  `cookie` is for every
    later Submit of the stream; only DELIVERED and STORED carry one.
    """

    to: Destination
    first: Seq
    last: Seq
    status: U8
    final: bool = False
    audience: U31 = 0
    cookie: Cookie = b""
    code: U31 = 0
    sentence: Sentence = ""


ClientItem = Submit
ConnectorItem = Delivery | Outcome

ClientFrame = Greet | Data[ClientItem] | Ack | Ping | Pong | Close | Reset
ConnectorFrame = Welcome | Stored | Changed | Data[ConnectorItem] | Ack | Ping | Pong | Close | Reset

encode: Callable[[Frame], bytes] = codec.encode
decode_from_client: Callable[[bytes], ClientFrame] = codec.decoder(ClientFrame)
"""Raises `msgspec.DecodeError`, also for wrong types and for values out of bounds; so does the next one."""
decode_from_connector: Callable[[bytes], ConnectorFrame] = codec.decoder(ConnectorFrame)
