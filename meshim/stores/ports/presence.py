"""Presence: which devices are connected, and to which connector.

Implemented on Redis (`redis/presence.py`) and in memory (`memory/redis.py`); contract:
`tests/contract/redis/test_presence.py` and `test_presence_any_order.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, NamedTuple, Protocol, TypeAlias

import msgspec

Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Checked when it is read from the backend: the wire has no larger ones."""


class Binding(NamedTuple):
    """A connected device: the incarnation of its connector, and its session number (as an XMPP resource binding)."""

    user: Number
    device: Number
    incarnation: Number
    session: Number


FullQueue: TypeAlias = tuple[Number, Number]
"""(device, sender): the queue of the device takes nothing more from this user.  Device 0 is the first device of a user
without any, sender 0 is every user."""


class UserPresence(msgspec.Struct, frozen=True, gc=False):
    """All known devices of a user, the bindings of those that are connected, and which queues are full."""

    devices: tuple[Number, ...]
    bindings: tuple[Binding, ...]
    full: tuple[FullQueue, ...] = ()


class Presence(Protocol):
    """One entry per user with a connected device.  A binding of a crashed connector stays until it expires."""

    async def session_numbers(self, count: int) -> list[int]:
        """Return `count` ascending numbers from the clock of the backend (microseconds since 1970).

        No number is given twice, also when that clock steps back (adr/0016).
        """

    async def online(self, bindings: Sequence[tuple[Binding, tuple[int, ...]]]) -> list[Binding | bool | None]:
        """Write bindings, each with the ids of all devices of its user, which are added to those of the entry.

        The result has one item per binding: False when a binding of the device with a higher session number exists
        (nothing is written); the Binding that was replaced (of another incarnation or session); None when there was
        no other.  Writing the same binding again is accepted and gives None.
        """

    async def offline(self, bindings: Sequence[Binding]) -> None:
        """Erase each binding, unless another one has replaced it."""

    async def lookup(self, users: Sequence[int]) -> dict[int, UserPresence]:
        """Return the entries of those users that have one.

        An entry has at least one binding, or only says that a queue of the user is full: then it has no devices.
        """

    async def update_devices(self, user: int, devices: Sequence[int], removed: Sequence[int] = ()) -> None:
        """Add these devices to the list in the entry of a user, take the `removed` ones out, and publish the change.

        The calls of several processes may come in any order: nothing is taken out that is not named, and an id of a
        device is never given again.  Without an entry the change is only published: caches may still hold one that has
        ended.
        """

    async def announce_full(self, user: int, full: Sequence[FullQueue], ttl_s: float) -> None:
        """Say for `ttl_s` which queues of the user are full, in place of what was said before; nothing for none.

        Published as a change of presence if it is one.
        """

    def changes(self) -> AsyncGenerator[tuple[int, ...] | None]:
        """Yield tuples of users whose entries changed; None whenever changes may have been missed, and at first.

        Yields `()` about once a second as a heartbeat: every change older than 2 s has been yielded.  A reader that
        misses heartbeats must drop its cache.
        """
