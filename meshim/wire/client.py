"""The link between a client (DEALER) and a connector (ROUTER)."""

import msgspec

from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.outcome import Outcome

Position = tuple[int, int]
"""(user, position): a place in the log partition of that user."""


class Greet(Frame, array_like=True, frozen=True, gc=False, tag=1):
    """First frame of a client: who it is, and the link epoch all later frames will carry.

    `epoch` is that of the client's state file, and must be the one it logged in with.
    `window` is how many unacknowledged data frames it will take.
    """

    version: int
    token: bytes
    epoch: int
    link: int
    window: int
    software: str = ""


class Welcome(Frame, array_like=True, frozen=True, gc=False, tag=2):
    """The greeting is accepted.  `now` is the server's clock, milliseconds since 1970 UTC."""

    version: int
    link: int
    session: int
    user: int
    device: int
    window: int
    body_bytes: int
    frame_bytes: int
    heartbeat_ms: int
    now: int


class Stored(Frame, array_like=True, frozen=True, gc=False, tag=10):
    """How the device's stored messages stand: all pushed, or delayed because the database is away."""

    link: int
    delayed: bool


class Submit(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Client to connector: an envelope to deliver.

    `after` names, for each user whose copies of this stream were stored, the highest position
    that the sender was told; live copies wait until the device was sent everything up to it.
    """

    envelope: bytes
    after: tuple[Position, ...] = ()


class Delivery(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Connector to client: an envelope for this device.  `stored` is true when it waited in the store."""

    envelope: bytes
    stored: bool = False


ClientItem = Submit
ConnectorItem = Delivery | Outcome

ClientFrame = Greet | Data[ClientItem] | Ack | Ping | Pong | Close | Reset
ConnectorFrame = Welcome | Stored | Data[ConnectorItem] | Ack | Ping | Pong | Close | Reset

_encoder = msgspec.msgpack.Encoder()
_from_client = msgspec.msgpack.Decoder(ClientFrame)
_from_connector = msgspec.msgpack.Decoder(ConnectorFrame)


def encode(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode_from_client(data: bytes) -> ClientFrame:
    """Raises `msgspec.DecodeError` (also for wrong types)."""
    return _from_client.decode(data)  # type: ignore[no-any-return]  # a union is not a type to mypy


def decode_from_connector(data: bytes) -> ConnectorFrame:
    """Raises `msgspec.DecodeError` (also for wrong types)."""
    return _from_connector.decode(data)  # type: ignore[no-any-return]  # a union is not a type to mypy
