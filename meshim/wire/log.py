"""What transfers publish to the log and writers read from it."""

import msgspec

from meshim.wire.envelope import WIRE_VERSION


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An envelope to keep for devices of `user`; no devices means all that the registry knows."""

    user: int
    devices: tuple[int, ...]
    envelope: bytes


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One message of the log: a bundle of entries for one partition."""

    version: int
    entries: tuple[Entry, ...]


_encoder = msgspec.msgpack.Encoder()
_record = msgspec.msgpack.Decoder(Record)


def encode_record(entries: tuple[Entry, ...]) -> bytes:
    return _encoder.encode(Record(WIRE_VERSION, entries))


def decode_record(data: bytes) -> Record:
    """Raises `msgspec.DecodeError`."""
    return _record.decode(data)
