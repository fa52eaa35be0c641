"""The least number that the next session may have, by the clock of this process."""

_MICROSECONDS = 1_000_000


class SessionNumberFloor:
    """Keeps session numbers ascending when the clock of Redis steps back, even if Redis is wiped at the same time.

    Session numbers are microseconds of the clock of Redis.  A process that was given a number knows that clock at that
    moment, and counts on from there by its own monotonic clock (adr/0016).  As long as the clock of Redis does not step
    back, the floor is below it and changes nothing.
    """

    def __init__(self) -> None:
        self._number = 0
        self._given_at = 0.0

    def at(self, now: float) -> int:
        """Return the least next number, 0 before the first; `now` is in seconds of a monotonic clock."""
        return self._number and self._number + 1 + max(0, int((now - self._given_at) * _MICROSECONDS))

    def given(self, number: int, now: float) -> None:
        """Note that Redis has given this number just now, the highest of its answer."""
        self._number, self._given_at = number, now
