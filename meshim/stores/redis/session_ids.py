"""How far session numbers must have come by now, by our own clock."""

_MICROSECONDS = 1_000_000


class SessionClock:
    """Numbers are microseconds of the clock of Redis, which may step back, and be wiped at the same time.

    Whoever was given one knows what the clock was then, and counts on from there by a clock that does not step
    (adr/0016).  While nothing is wrong this is a moment behind the clock of Redis, and changes nothing.
    """

    def __init__(self) -> None:
        self._number = 0
        self._at = 0.0

    def least(self, now: float) -> int:
        """What the next number has to be at the least; `now` is in seconds of a monotonic clock."""
        return self._number and self._number + 1 + max(0, int((now - self._at) * _MICROSECONDS))

    def given(self, number: int, now: float) -> None:
        """This number, the highest of an answer, has just been given to us."""
        self._number, self._at = number, now
