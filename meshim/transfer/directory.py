"""Who is where, as a transfer remembers it: a bounded cache of presence.

An entry lives for `ttl_s`, until presence says that it changed, or until a connector says that a
device is not there.  What is not known is looked up once, and everything for that user waits for the answer in
order.  Being wrong costs a trip to the store, never a message.
"""

import msgspec

from meshim.stores.ports import UserPresence


class _Known(msgspec.Struct, gc=False):
    presence: UserPresence | None
    until: float


class Directory:
    """Presence of users, as last heard."""

    def __init__(self, most: int, ttl_s: float) -> None:
        self._most = most
        self._ttl_s = ttl_s
        self._known: dict[int, _Known] = {}
        self._asked: dict[int, bool] = {}
        """Users whose look-up is under way -> whether the answer may be kept."""

    def get(self, user: int, now: float) -> tuple[bool, UserPresence | None]:
        """(Known, presence); an unknown user has to be looked up, a known one may be absent."""
        known = self._known.get(user)
        if known is None or known.until <= now:
            return False, None
        return True, known.presence

    def ask(self, user: int) -> bool:
        """Note that the user is looked up; False when she is already."""
        if user in self._asked:
            return False
        self._asked[user] = True
        return True

    def answer(self, user: int, presence: UserPresence | None, now: float) -> None:
        """The answer of a look-up.  It is not kept when the entry changed meanwhile."""
        if self._asked.pop(user, False):
            if len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[user] = _Known(presence, now + self._ttl_s)

    def unanswered(self, user: int) -> None:
        self._asked.pop(user, None)

    def forget(self, user: int) -> None:
        self._known.pop(user, None)
        if user in self._asked:
            self._asked[user] = False

    def forget_all(self) -> None:
        self._known.clear()
        for user in self._asked:
            self._asked[user] = False
