"""A bounded cache of presence: which connectors hold the devices of a user.

An entry is valid for `ttl_s`, or until presence reports a change, or until a connector returns a copy because the
device is not connected there.  When presence has sent no heartbeat for `silence_s`, no entry is valid: changes may be
on their way.  A user without a valid entry is looked up once at a time; the answer is not kept when the user changed
in the meantime.  A stale binding delays a message (it is stored) but never loses it.

`full` comes with the presence of a user: which queues take nothing more, of whose messages.  It is kept until the next
look-up of the user, whatever happens to the entry: what it refuses comes again with a Route, and so with a look-up.
"""

from collections.abc import Collection, Iterable, Sequence

from meshim.stores.ports import Binding, FullQueue, UserPresence

BoundDevices = Sequence[tuple[int, tuple[tuple[int, int], ...]]]
"""For each connector incarnation the bindings on it, as (device, session)."""


class Locations:
    """The presence of one user, laid out for routing: computed once for each look-up, used for many messages."""

    __slots__ = ("_bindings", "bound", "copies", "expires_at", "unbound")

    def __init__(self, user: int, presence: UserPresence | None) -> None:
        """Without an entry in presence the only copy is for device 0, all devices: the writer knows which exist."""
        self.expires_at = 0.0
        self._bindings: tuple[Binding, ...] = ()
        devices: Collection[int] = (0,)
        if presence is not None and presence.bindings:
            self._bindings = presence.bindings
            # A bound device counts even where the device list lacks it: the list may be older than the binding.
            devices = dict.fromkeys((*presence.devices, *(binding.device for binding in presence.bindings)))
        self.copies = tuple((user, device) for device in devices)
        self.bound, self.unbound = self.split(devices)

    def split(self, devices: Iterable[int]) -> tuple[BoundDevices, tuple[int, ...]]:
        """Split the devices into those with a binding, by connector, and those without."""
        bindings = {binding.device: binding for binding in self._bindings}
        by_connector: dict[int, list[tuple[int, int]]] = {}
        unbound: list[int] = []
        for device in devices:
            binding = bindings.get(device)
            if binding is None:
                unbound.append(device)
            else:
                by_connector.setdefault(binding.incarnation, []).append((device, binding.session))
        return [(incarnation, tuple(bound)) for incarnation, bound in by_connector.items()], tuple(unbound)


class PresenceCache:
    """Users by id, and the look-ups in flight."""

    def __init__(self, users_max: int, ttl_s: float, silence_s: float) -> None:
        self._users_max = users_max
        self._ttl_s = ttl_s
        self._silence_s = silence_s
        self._valid_until = 0.0
        """For all entries: the last heartbeat plus `silence_s`."""
        self._entries: dict[int, Locations] = {}
        self._lookups: dict[int, bool] = {}
        """Users whose look-up is in flight -> whether its answer may be kept."""
        self.full: dict[int, frozenset[FullQueue]] = {}
        """By user, those with a full queue."""

    def get(self, user: int, now: float) -> Locations | None:
        """Return the entry of the user, or None when it has to be looked up."""
        entry = self._entries.get(user)
        if entry is None or entry.expires_at <= now or self._valid_until <= now:
            return None
        return entry

    def heartbeat(self, now: float) -> None:
        """Note that presence has reported all changes so far; after a silence, drop what was kept before it."""
        if self._valid_until <= now:
            self.invalidate_all()
        self._valid_until = now + self._silence_s

    def begin_lookup(self, user: int) -> bool:
        """Note a look-up of the user; False when one is in flight already."""
        if user in self._lookups:
            return False
        self._lookups[user] = True
        return True

    def complete_lookup(self, user: int, presence: UserPresence | None, now: float) -> Locations:
        """Return the answer, and keep it unless the user was invalidated meanwhile; the oldest entry makes room."""
        locations = Locations(user, presence)
        if self.full:
            self.full.pop(user, None)
        if presence is not None and presence.full:
            if len(self.full) >= self._users_max:
                del self.full[next(iter(self.full))]
            self.full[user] = frozenset(presence.full)
        if self._lookups.pop(user, False):
            if len(self._entries) >= self._users_max:
                del self._entries[next(iter(self._entries))]
            locations.expires_at = now + self._ttl_s
            self._entries[user] = locations
        return locations

    def fail_lookup(self, user: int) -> Locations:
        """Return what to use when presence did not answer: as if it had no entry, not kept (R9)."""
        self._lookups.pop(user, None)
        self.full.pop(user, None)
        return Locations(user, None)

    def is_full(self, user: int, devices: Collection[int], sender: int) -> bool:
        """Whether the queue of one of these devices takes nothing more of this sender; device 0 is all devices."""
        queues = self.full.get(user)
        if queues is None or not devices:
            return False
        if 0 in devices:
            return any(who in (0, sender) for _, who in queues)
        return any((device, sender) in queues or (device, 0) in queues for device in devices)

    def invalidate(self, user: int) -> None:
        """Drop the entry of the user, and do not keep the answer of a look-up in flight."""
        self._entries.pop(user, None)
        if user in self._lookups:
            self._lookups[user] = False

    def invalidate_all(self) -> None:
        """The same for all users."""
        self._entries.clear()
        for user in self._lookups:
            self._lookups[user] = False
