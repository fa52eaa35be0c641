"""What one sender may have acknowledged in a second: how a window slows down whoever floods.

Every frame is taken in at once, so that nothing is kept for it here, and costs something; it is acknowledged when its
cost is paid.  What is paid grows with time at `rate`, up to a second's worth that was not used.
Whoever stays below the rate is acknowledged at once.  Whoever is above it runs out of window, and waits,
which costs nobody else anything; and who does not wait has left the window, which is an error.
"""

from math import inf

SUBMIT_BYTES = 2_048
"""A message above it costs its sender as much as several."""
FRAME_ITEMS_MAX = 128
"""Messages in one frame of a client."""


class TokenBucket:
    """The frames of one link that are taken in and not paid."""

    __slots__ = ("_at", "_left", "_rate", "_unpaid")

    def __init__(self, rate: float, now: float) -> None:
        """`rate` is cost a second."""
        self._rate = rate
        self._left = rate
        self._at = now
        self._unpaid: list[tuple[int, float]] = []  # short: what is beyond the window is an error

    def charge(self, number: int, cost: float) -> None:
        """Everything up to this frame was taken in; `cost` is that of what was not charged before."""
        self._unpaid.append((number, cost))

    def acknowledgeable(self, now: float) -> int:
        """The number up to which frames may be acknowledged now; 0 when it is no higher than when last asked."""
        if now > self._at:
            self._left = min(self._rate, self._left + (now - self._at) * self._rate)
            self._at = now
        number = 0
        while self._unpaid and self._left > 0:
            number, cost = self._unpaid.pop(0)
            self._left -= cost
        return number

    @property
    def due(self) -> float:
        """When `acknowledgeable` should be asked again; infinite when nothing is unpaid."""
        return self._at + max(0.0, -self._left) / self._rate if self._unpaid else inf
