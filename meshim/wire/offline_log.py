"""The records that transfers publish to the log and writers read from it."""

from collections.abc import Callable
from typing import Annotated

import msgspec

from meshim.wire.bounds import ITEMS_MAX, LIST_MAX, U31, Id
from meshim.wire.codec import decoder, encode
from meshim.wire.envelope import WIRE_VERSION


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An envelope to store for devices of `user`; an empty list means all devices that the database knows."""

    user: Id
    devices: Annotated[tuple[Id, ...], msgspec.Meta(max_length=LIST_MAX)]
    envelope: bytes


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One JetStream message: a bundle of entries for one partition."""

    version: U31
    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=ITEMS_MAX)]


def encode_record(entries: tuple[Entry, ...]) -> bytes:
    """Return the bytes of a record with these entries."""
    return encode(Record(WIRE_VERSION, entries))


decode_record: Callable[[bytes], Record] = decoder(Record)
"""Raises `msgspec.DecodeError`, also for wrong types and for values out of bounds."""
