"""Who is where, as a transfer remembers it: a bounded cache of presence.

An entry lives for `ttl_s`, until presence says that it changed, or until a connector says that a
device is not there; and no entry is believed when presence has been silent for `silence_s`, as changes may be on
their way.  What is not known is looked up once, and everything for that user waits for the answer in order.  Being
wrong about a binding costs a trip to the store, never a message.
"""

from collections.abc import Collection, Iterable, Sequence

from meshim.stores.ports import Binding, UserPresence

Bound = Sequence[tuple[int, tuple[tuple[int, int], ...]]]
"""For each connector incarnation the bindings on it, as (device, session)."""


class Locations:
    """Presence of one user, laid out for the way of her copies."""

    __slots__ = ("_bindings", "absent", "bound", "copies", "until")

    def __init__(self, user: int, presence: UserPresence | None) -> None:
        """Of whom presence knows nothing, whoever writes the copy will know the devices: (0,) are all of them."""
        self.until = 0.0
        """When it has to be looked up again."""
        self._bindings: tuple[Binding, ...] = ()
        devices: Collection[int] = (0,)
        if presence is not None:
            self._bindings = presence.bindings
            # A device that is bound is one of hers, whatever the list says.
            devices = dict.fromkeys((*presence.devices, *(binding.device for binding in presence.bindings)))
        self.copies = tuple((user, device) for device in devices)
        self.bound, self.absent = self.of(devices)

    def of(self, devices: Iterable[int]) -> tuple[Bound, tuple[int, ...]]:
        """Where those of these devices are that are bound, and those that are not."""
        bound = {binding.device: binding for binding in self._bindings}
        by_connector: dict[int, list[tuple[int, int]]] = {}
        absent: list[int] = []
        for device in devices:
            binding = bound.get(device)
            if binding is None:
                absent.append(device)
            else:
                by_connector.setdefault(binding.incarnation, []).append((device, binding.session))
        return [(incarnation, tuple(each)) for incarnation, each in by_connector.items()], tuple(absent)


class PresenceCache:
    """Presence of users, as last heard."""

    def __init__(self, most: int, ttl_s: float, silence_s: float) -> None:
        self._most = most
        self._ttl_s = ttl_s
        self._silence_s = silence_s
        self._trusted_until = 0.0
        self._known: dict[int, Locations] = {}
        self._asked: dict[int, bool] = {}
        """Users whose look-up is under way -> whether the answer may be kept."""

    def get(self, user: int, now: float) -> Locations | None:
        """None when the user has to be looked up."""
        known = self._known.get(user)
        if known is None or known.until <= now or self._trusted_until <= now:
            return None
        return known

    def heard(self, now: float) -> None:
        """Presence says that it has told all changes.  After a silence nothing from before is believed again."""
        if self._trusted_until <= now:
            self.forget_all()
        self._trusted_until = now + self._silence_s

    def ask(self, user: int) -> bool:
        """Note that the user is looked up; False when she is already."""
        if user in self._asked:
            return False
        self._asked[user] = True
        return True

    def answer(self, user: int, presence: UserPresence | None, now: float) -> Locations:
        """The answer of a look-up.  It is not kept when the entry changed meanwhile."""
        locations = Locations(user, presence)
        if self._asked.pop(user, False):
            if len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            locations.until = now + self._ttl_s
            self._known[user] = locations
        return locations

    def unanswered(self, user: int) -> Locations:
        """Nobody could say: nothing is known of her (R9)."""
        self._asked.pop(user, None)
        return Locations(user, None)

    def forget(self, user: int) -> None:
        self._known.pop(user, None)
        if user in self._asked:
            self._asked[user] = False

    def forget_all(self) -> None:
        self._known.clear()
        for user in self._asked:
            self._asked[user] = False
