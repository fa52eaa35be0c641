"""Presence: which devices are connected, and where (Redis)."""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

import msgspec


class Binding(NamedTuple):
    """A connected device: on which connector incarnation, under which session number."""

    user: int
    device: int
    incarnation: int
    session: int


class UserPresence(msgspec.Struct, frozen=True, gc=False):
    """All devices of a user, and the bindings of those that are connected."""

    devices: tuple[int, ...]
    bindings: tuple[Binding, ...]


class Presence(Protocol):
    async def session_numbers(self, count: int) -> list[int]:
        """That many ascending numbers from the clock of the backend (microseconds since 1970), none given twice."""

    async def online(self, bindings: Sequence[tuple[Binding, tuple[int, ...]]]) -> list[Binding | bool | None]:
        """Write bindings, each with all device ids of its user.

        For each: False when a binding with a higher session number holds the place (nothing is
        written), the Binding that was replaced (another incarnation's or session's), or None when there was none.
        The same binding again is accepted and gives None.
        """

    async def offline(self, bindings: Sequence[Binding]) -> None:
        """Erase each binding that is still exactly this one."""

    async def lookup(self, users: Sequence[int]) -> dict[int, UserPresence]:
        """Those of the users for whom there is an entry.  An entry without bindings is left out."""

    async def set_devices(self, user: int, devices: Sequence[int]) -> None:
        """Change the device list of a user who has an entry.  Without one it is only told: caches may have one."""

    def changes(self) -> AsyncGenerator[tuple[int, ...] | None]:
        """Users whose entries changed, as it happens; None whenever changes may have been missed (also at first).

        About once a second it is nobody, an empty tuple: what changed until a moment ago (2 s at most) has been
        told.  Who does not hear that must not rely on what he keeps.
        """
