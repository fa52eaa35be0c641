"""How many requests may wait for a service, and when the others should come again.  Pure.

A service that takes every request in a storm answers those who have given up.  So no more may wait than are answered
within `queue_s`, at the rate that was measured last.  Each request beyond gets a turn at that rate: behind those that
wait, and behind the turns given before.  Clients that come at their turns come as fast as they can be answered.
"""

SAMPLE_S = 0.1
"""A rate is measured over at least so long."""
NEW_SHARE = 0.5
"""The weight of a new sample in the rate."""


class Admission:
    """The requests that wait for one service."""

    def __init__(self, *, queue_s: float, rate: float, least: int = 64, turn_max_s: float = 30.0) -> None:
        """`rate` is answers a second until one was measured.  At least `least` may wait.

        No turn is further away than `turn_max_s`, so that requests of a flood, which do not come again, cost the others
        no more than that.
        """
        self.rate = rate
        self.waiting = 0
        self._queue_s = queue_s
        self._least = least
        self._turn_max_s = turn_max_s
        self._last_turn = 0.0
        self._busy_since: float | None = None
        """Since when some have waited all the time."""
        self._answered = 0
        """Since then."""

    def enter(self, now: float) -> float:
        """Return 0 when one more may wait, and count it; else the seconds until its turn, and do not count it."""
        if self.waiting < max(self._least, self._queue_s * self.rate):
            self.waiting += 1
            return 0.0
        turn = max(self._last_turn, now + self.waiting / self.rate) + 1 / self.rate
        self._last_turn = min(turn, now + self._turn_max_s)
        return self._last_turn - now

    def leave(self, count: int) -> None:
        """So many wait no more, and were not answered: they have gone."""
        self.waiting -= count

    def answered(self, count: int, now: float) -> None:
        """So many were answered.  The rate is measured only while there is always one more to answer."""
        self.waiting -= count
        if self._busy_since is not None:
            self._answered += count
            seconds = now - self._busy_since
            if seconds >= SAMPLE_S:
                self.rate += NEW_SHARE * (max(1.0, self._answered / seconds) - self.rate)
                self._busy_since, self._answered = now, 0
        if not self.waiting:
            self._busy_since, self._answered = None, 0
        elif self._busy_since is None:
            self._busy_since = now
