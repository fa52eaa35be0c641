"""The link between a connector (DEALER) and a transfer (ROUTER).

A bundle is a `Data` frame with many items.  Hops read and write the stamp in front of an envelope; they move the
envelope as bytes.
"""

from collections.abc import Callable
from typing import Annotated

import msgspec

from meshim.wire import codec
from meshim.wire.bounds import LIST_MAX, U8, U31, U53, U63, Copies, Id, Name, Positions, Seq, WindowSize
from meshim.wire.envelope import Destination
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.outcome import CopyOutcome


class Hello(Frame, array_like=True, frozen=True, gc=False, tag=1):
    """The first frame of a connector: its incarnation, and the epoch of the link."""

    version: U31
    link: U53
    incarnation: U63
    name: Name
    window: WindowSize


class HelloOk(Frame, array_like=True, frozen=True, gc=False, tag=2):
    """The transfer accepts the hello.  `incarnation` is that of the transfer."""

    version: U31
    link: U53
    incarnation: U63
    window: WindowSize


class Stamp(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The routing header of an envelope: its sender, as the authenticated session proves, and its destination.

    `origin` is the incarnation of the sender's connector, and `session` the session there: outcomes go to it.  `after`
    names, for each device for which a copy of the stream was stored (0: all devices of a user), the highest position
    that the sender was told.  The connector fills `copies` with those for the sender's other devices; the transfer adds
    those of the recipient.
    """

    origin: U63
    session: U53
    user: Id
    device: Id
    epoch: U53
    to: Destination
    seq: Seq
    kind: U8
    after: Positions = ()
    copies: Copies = ()


class Route(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Connector to transfer: find the recipient's devices, and deliver or store a copy for each."""

    stamp: Stamp
    envelope: bytes


class Deliver(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Transfer to connector: deliver to these devices of `user`, each as (device, session)."""

    user: Id
    bindings: Annotated[tuple[tuple[Id, U53], ...], msgspec.Meta(max_length=LIST_MAX)]
    stamp: Stamp
    envelope: bytes


class Return(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """Connector to transfer: it could not deliver to these devices of `user`; store for them.

    `absent` means that they are not connected to this connector, which corrects the transfer's cache.
    """

    user: Id
    devices: Annotated[tuple[Id, ...], msgspec.Meta(max_length=LIST_MAX)]
    absent: bool
    stamp: Stamp
    envelope: bytes


FromConnector = Route | Return | CopyOutcome
FromTransfer = Deliver | CopyOutcome

ConnectorToTransfer = Hello | Data[FromConnector] | Ack | Ping | Pong | Close | Reset
TransferToConnector = HelloOk | Data[FromTransfer] | Ack | Ping | Pong | Close | Reset

encode: Callable[[Frame], bytes] = codec.encode
decode_from_connector: Callable[[bytes], ConnectorToTransfer] = codec.decoder(ConnectorToTransfer)
"""Raises `msgspec.DecodeError`, also for wrong types and for values out of bounds; so does the next one."""
decode_from_transfer: Callable[[bytes], TransferToConnector] = codec.decoder(TransferToConnector)
