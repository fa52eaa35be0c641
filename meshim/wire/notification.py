"""Notifications: small messages to connectors over NATS, delivered at most once.

A connector that misses one does the same later: a sweep looks at the offline queues again, and relations, devices and
tokens are read again within `relation_ttl_s` (docs/protocol.md, section 21).  WakeUp and Kick go to the subject of one
connector incarnation, AccountChanged to all connectors.
"""

from collections.abc import Callable
from typing import Annotated

import msgspec

from meshim.wire.bounds import ITEMS_MAX, U31, U53, Id, Sentence
from meshim.wire.codec import decoder, encode


class WakeUp(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Messages were stored for these devices, each (user, device): look at their queues."""

    devices: Annotated[tuple[tuple[Id, Id], ...], msgspec.Meta(max_length=ITEMS_MAX)]


class Kick(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Close the session of this device if its number is not above `session`."""

    user: Id
    device: Id
    session: U53
    code: U31
    sentence: Sentence


class AccountChanged(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The accounts of these users changed, by the bits of `wire.client.Change`.

    A connector reads them again unless only RELATIONS is set (a request), and tells the devices.
    """

    users: Annotated[tuple[Id, ...], msgspec.Meta(max_length=ITEMS_MAX)]
    what: U31


Notification = WakeUp | Kick | AccountChanged


def encode_notification(notification: Notification) -> bytes:
    """Return the bytes of a notification."""
    return encode(notification)


decode_notification: Callable[[bytes], Notification] = decoder(Notification)
"""Raises `msgspec.DecodeError`, also for wrong types and for values out of bounds."""
