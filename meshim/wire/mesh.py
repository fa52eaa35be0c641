"""The link between a connector (DEALER) and a transfer (ROUTER).

Bundles are `Data` frames with many items.  The stamp is what the mesh knows of an
envelope; hops read and write stamps and move envelopes as bytes.
"""

import msgspec

from meshim.wire.client import Position
from meshim.wire.envelope import Destination
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.outcome import Copy, Outcome


class Hello(Frame, array_like=True, frozen=True, gc=False, tag=1):
    """First frame of a connector: which incarnation it is, and the epoch of this link."""

    version: int
    link: int
    incarnation: int
    name: str
    window: int


class HelloOk(Frame, array_like=True, frozen=True, gc=False, tag=2):
    version: int
    link: int
    incarnation: int
    window: int


class Stamp(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Who sent an envelope, as the session that it came through proves, and where it goes.

    `origin` is the incarnation of the sender's connector.  `copies` is empty until a transfer has
    looked up the devices.  `trace` is 0, or a number that hops write to their logs.
    """

    origin: int
    user: int
    device: int
    epoch: int
    to: Destination
    seq: int
    kind: int
    after: tuple[Position, ...] = ()
    copies: tuple[Copy, ...] = ()
    trace: int = 0


class Route(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Connector to transfer: find the recipient's devices and deliver or store."""

    stamp: Stamp
    envelope: bytes


class Place(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Transfer to connector: deliver to these devices of `user`, each as (device, session)."""

    user: int
    seats: tuple[tuple[int, int], ...]
    stamp: Stamp
    envelope: bytes


class Return(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """Connector to transfer: could not deliver to these devices of `user`; store for them.

    `absent` says that they are not connected here, which corrects the transfer's cache.
    """

    user: int
    devices: tuple[int, ...]
    absent: bool
    stamp: Stamp
    envelope: bytes


FromConnector = Route | Return | Outcome
FromTransfer = Place | Outcome

ConnectorToTransfer = Hello | Data[FromConnector] | Ack | Ping | Pong | Close | Reset
TransferToConnector = HelloOk | Data[FromTransfer] | Ack | Ping | Pong | Close | Reset

_encoder = msgspec.msgpack.Encoder()
_from_connector = msgspec.msgpack.Decoder(ConnectorToTransfer)
_from_transfer = msgspec.msgpack.Decoder(TransferToConnector)


def encode(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode_from_connector(data: bytes) -> ConnectorToTransfer:
    """Raises `msgspec.DecodeError` (also for wrong types)."""
    return _from_connector.decode(data)  # type: ignore[no-any-return]  # a union is not a type to mypy


def decode_from_transfer(data: bytes) -> TransferToConnector:
    """Raises `msgspec.DecodeError` (also for wrong types)."""
    return _from_transfer.decode(data)  # type: ignore[no-any-return]  # a union is not a type to mypy
