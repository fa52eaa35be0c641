"""The envelope: the sending device makes it, and the mesh moves it byte for byte to every receiving device.

A stream is the messages of one sending device (user, device, epoch) to one destination; `seq` counts them from 1
without gaps.  `(stream, seq)` names a message for ever; every deduplication uses it.

Destinations are typed.  Kinds are an open list: a hop forwards kinds that it does not know.  Kinds from 128 on are
ephemeral: they reach connected devices only, and are never stored, resent or acknowledged.
"""

import enum
from collections.abc import Callable
from typing import Annotated

import msgspec

from meshim.wire.bounds import LIST_MAX, U8, U31, U53, AnyId, Id, MessageId, Milliseconds, Seq
from meshim.wire.codec import decoder, encode

WIRE_VERSION = 1
"""The version in envelopes, greetings, hellos, records of the log, and rows."""


class Kind(enum.IntEnum):
    """The kind of a body.  Hops forward unknown kinds; clients skip them."""

    TEXT = 1
    FILE = 2
    RECEIPT = 3
    BASE = 4
    """A base update, without a body: it tells the recipients that every message below `base` is settled."""
    TYPING = 128


HIDDEN = frozenset((Kind.RECEIPT, Kind.BASE))
"""Kinds that take their place in the order of a stream, and are not for the application."""

EPHEMERAL_FROM = 128
"""The first ephemeral kind."""


class DestinationType(enum.IntEnum):
    """The type of a destination.  2 stays free."""

    USER = 1
    GROUP = 3


class Destination(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The destination of a stream.

    `id` is a user id for USER, a group id for GROUP; `device` is 0.
    """

    type: U8
    id: Id
    device: AnyId = 0


class Stream(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The name of a stream: its sending device and its destination."""

    user: Id
    device: Id
    epoch: U53
    to: Destination


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message.  `sent_at` is the sender's clock, in milliseconds since 1970-01-01 UTC.

    `base` is the lowest `seq` of the stream that was not settled when this envelope was first sent; apart from the body
    it is the only field that is not associated data of the sealed body.  `key` is the version of the content key; 0
    means that the body is not sealed.
    """

    version: U31
    id: MessageId
    user: Id
    device: Id
    epoch: U53
    to: Destination
    seq: Seq
    base: Seq
    kind: U8
    key: U31
    sent_at: Milliseconds
    body: bytes

    @property
    def stream(self) -> Stream:
        """The stream that this message belongs to."""
        return Stream(self.user, self.device, self.epoch, self.to)


class Text(msgspec.Struct, array_like=True, frozen=True):
    """The content of an opened TEXT body."""

    text: str


class ReceiptKind(enum.IntEnum):
    """The fact that a receipt confirms."""

    DELIVERED = 1
    READ = 2


class Receipt(msgspec.Struct, array_like=True, frozen=True):
    """The content of an opened RECEIPT body: these messages of a stream reached a device, or were read on it.

    `device`, `epoch` and `to` complete the name of the stream; its user is the destination of the receipt.
    `ranges` are inclusive pairs of `seq`.
    """

    kind: U8
    device: Id
    epoch: U53
    to: Destination
    ranges: Annotated[tuple[tuple[Seq, Seq], ...], msgspec.Meta(max_length=LIST_MAX)]


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the bytes of an envelope."""
    return encode(envelope)


def encode_content(content: Text | Receipt) -> bytes:
    """Return the plaintext of a body."""
    return encode(content)


decode_envelope: Callable[[bytes], Envelope] = decoder(Envelope)
"""Raises `msgspec.DecodeError`, also for wrong types and for values out of bounds; so do the next two."""
decode_text: Callable[[bytes], Text] = decoder(Text)
decode_receipt: Callable[[bytes], Receipt] = decoder(Receipt)


def associated_data(envelope: Envelope) -> bytes:
    """Return what AES-GCM authenticates beside the body: every field but `base` and `body`, as one msgpack array."""
    e = envelope
    return encode((e.version, e.id, e.user, e.device, e.epoch, e.to, e.seq, e.kind, e.key, e.sent_at))
