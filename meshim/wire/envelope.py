"""The envelope: what the sending device made, moved byte for byte to every receiving one.

A stream is everything one sending device (user, device, epoch) addresses to one
destination; `seq` counts it from 1 without gaps.  `(stream, seq)` names a message
for ever and is what everybody deduplicates by.

Destinations are typed, and kinds are open: a hop forwards kinds it has never heard of.
Kinds from 128 are ephemeral: delivered to who is connected, never stored, resent or
acknowledged.
"""

import enum
from collections.abc import Callable
from typing import Annotated

import msgspec

from meshim.wire.bounds import LIST_MAX, U8, U31, U64, AnyId, Id, MessageId, Milliseconds, Seq
from meshim.wire.codec import decoder, encode

WIRE_VERSION = 1
"""Of envelopes, greetings, hellos, log records and rows."""


class Kind(enum.IntEnum):
    """What a body is.  Unknown kinds are forwarded, and unknown bodies skipped by clients."""

    TEXT = 1
    FILE = 2
    RECEIPT = 3
    BASE = 4
    """No body: tells the recipients that everything below `base` is settled."""
    TYPING = 128


EPHEMERAL_FROM = 128


class DestinationType(enum.IntEnum):
    """The type of a destination."""

    USER = 1
    DEVICE = 2
    GROUP = 3


class Destination(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a stream leads.

    `id` is a user id for USER and DEVICE, a group id for GROUP; `device` is 0 except for DEVICE.
    """

    type: U8
    id: Id
    device: AnyId = 0


class Stream(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The messages of one sending device to one destination."""

    user: Id
    device: Id
    epoch: U64
    to: Destination


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message.  `sent_at` is the sender's clock, milliseconds since 1970 UTC.

    `base` is the lowest `seq` of the stream that was not settled when this envelope was first
    sent; it is the only field that is not associated data of the sealed body.
    `key` is the version of the content key; 0 says that the body is not sealed.
    """

    version: U31
    id: MessageId
    user: Id
    device: Id
    epoch: U64
    to: Destination
    seq: Seq
    base: Seq
    kind: U8
    key: U31
    sent_at: Milliseconds
    body: bytes

    @property
    def stream(self) -> Stream:
        return Stream(self.user, self.device, self.epoch, self.to)


class Text(msgspec.Struct, array_like=True, frozen=True):
    """The content of a TEXT body, once opened."""

    text: str


class ReceiptKind(enum.IntEnum):
    """What a RECEIPT body says of the messages it names."""

    DELIVERED = 1
    READ = 2


class Receipt(msgspec.Struct, array_like=True, frozen=True):
    """The content of a RECEIPT body: these messages of your stream reached, or were read at, my device.

    `epoch` and `to` complete the stream (its user and device are the destination of the receipt);
    `ranges` are inclusive pairs of `seq`.
    """

    kind: U8
    epoch: U64
    to: Destination
    ranges: Annotated[tuple[tuple[Seq, Seq], ...], msgspec.Meta(max_length=LIST_MAX)]


def encode_envelope(envelope: Envelope) -> bytes:
    return encode(envelope)


def encode_content(content: Text | Receipt) -> bytes:
    return encode(content)


decode_envelope: Callable[[bytes], Envelope] = decoder(Envelope)
"""Raises `msgspec.DecodeError` (also for wrong types and numbers out of bounds), as the other two do."""
decode_text: Callable[[bytes], Text] = decoder(Text)
decode_receipt: Callable[[bytes], Receipt] = decoder(Receipt)


def associated_data(envelope: Envelope) -> bytes:
    """What AES-GCM authenticates beside the body: every field but `base` and `body`, as one msgpack array."""
    e = envelope
    return encode((e.version, e.id, e.user, e.device, e.epoch, e.to, e.seq, e.kind, e.key, e.sent_at))
