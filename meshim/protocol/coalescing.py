"""Coalescing: items that can wait a moment leave together, in one frame.

Like Nagle's algorithm and the interrupt coalescing of network cards.  Each frame wakes three processes, so a frame for
each of several outcomes within a few milliseconds costs more than one frame for all of them.  Messages never wait;
outcomes may.

    no flush within the last `delay_s`                  flush at once: a lone item does not wait
    a flush within the last `delay_s`                   flush `delay_s` after it
    BATCH_MAX items are queued                          flush at once
    waiting brought no second item                      do not delay during the next BACKOFF_DELAYS times `delay_s`

The back-off in the last rule is for request and response: a sender that waits for each outcome before its next message
would otherwise pay `delay_s` on every message.
"""

from math import inf

BATCH_MAX = 8
"""Items that are not worth delaying: a ninth item hardly lowers the cost per item."""
BACKOFF_DELAYS = 30
"""For how many times `delay_s` items are not delayed, after waiting brought no second item."""


class Coalescer:
    """Decides when the items of one direction of one link leave.  Times are seconds."""

    __slots__ = ("_backoff_until", "_delay_s", "_flushed_at", "flush_at")

    def __init__(self, delay_s: float) -> None:
        """`delay_s` is the longest that an item waits; with 0 no item waits."""
        self.flush_at = inf
        """When the waiting items must leave; `inf` when none wait."""
        self._delay_s = delay_s
        self._flushed_at = -inf
        self._backoff_until = -inf

    def defers(self, count: int, now: float) -> bool:
        """Return whether the `count` queued items, none of which is urgent, wait longer."""
        if count >= BATCH_MAX or now >= self.flush_at or now < self._backoff_until:
            return False
        if self.flush_at == inf:
            if now - self._flushed_at >= self._delay_s:
                return False
            self.flush_at = self._flushed_at + self._delay_s
        return True

    def flushed(self, count: int, now: float) -> None:
        """Note that `count` items left, for whatever reason."""
        if count == 1 and now >= self.flush_at:
            self._backoff_until = now + BACKOFF_DELAYS * self._delay_s
        self.flush_at = inf
        self._flushed_at = now
