"""Typing, in both directions.  It is ephemeral: no copy of it is kept, resent or acknowledged.

sent      at most one in `every_s` to each peer; a message to the peer begins that time anew
shown     until a message of the peer arrives, or `shown_s` after the last one
"""

from meshim.client.events import TypingChanged


class TypingState:
    """Who types to this user, and to whom this device has said that its user types.  Both are bounded by friends."""

    def __init__(self, every_s: float, shown_s: float) -> None:
        self._every_s = every_s
        self._shown_s = shown_s
        self._sent: dict[int, float] = {}
        """User to the time of the last one, oldest first; those older than `every_s` leave with the next one."""
        self._shown: dict[int, float] = {}
        """User to the time when the typing ends, earliest first."""

    # ---------------------------------------------------------------- sent

    def may_send(self, user: int, now: float) -> bool:
        """Return whether to tell this user now; if so, that counts as told."""
        for each, at in list(self._sent.items()):
            if now - at < self._every_s:
                break
            del self._sent[each]
        if user in self._sent:
            return False
        self._sent[user] = now
        return True

    def composed(self, user: int) -> None:
        """A message went to this user, which ends the typing there: the next one is told at once."""
        self._sent.pop(user, None)

    # ---------------------------------------------------------------- shown

    def start(self, user: int, now: float) -> list[TypingChanged]:
        """A peer says that its user types."""
        known = self._shown.pop(user, None) is not None
        self._shown[user] = now + self._shown_s
        return [] if known else [TypingChanged(user, typing=True)]

    def stop(self, user: int) -> list[TypingChanged]:
        """A message of this user has arrived."""
        return [] if self._shown.pop(user, None) is None else [TypingChanged(user, typing=False)]

    def tick(self, now: float) -> list[TypingChanged]:
        """End what nobody has repeated in time."""
        ended = [user for user, until in self._shown.items() if until <= now]
        return [change for user in ended for change in self.stop(user)]

    def next_deadline(self) -> float | None:
        """When to call `tick`; None for never."""
        return next(iter(self._shown.values()), None)
