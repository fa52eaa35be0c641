"""Notices: small messages to connectors over NATS, none of which is needed for correctness.

Each only makes something happen sooner that a sweep or a time limit makes happen anyway.
Poke and Kick go to the subject of one connector incarnation, the others to all connectors.
"""

import msgspec


class Poke(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Something was stored for these devices, each (user, device): look at their queues."""

    devices: tuple[tuple[int, int], ...]


class Kick(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Close the session of this device if its number is not above `session`."""

    user: int
    device: int
    session: int
    code: int
    sentence: str


class AccountChanged(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Relations or devices of these users changed: read them again."""

    users: tuple[int, ...]


Notice = Poke | Kick | AccountChanged

_encoder = msgspec.msgpack.Encoder()
_notice = msgspec.msgpack.Decoder(Notice)


def encode_notice(notice: Notice) -> bytes:
    return _encoder.encode(notice)


def decode_notice(data: bytes) -> Notice:
    """Raises `msgspec.DecodeError`."""
    return _notice.decode(data)  # type: ignore[no-any-return]  # a union is not a type to mypy
