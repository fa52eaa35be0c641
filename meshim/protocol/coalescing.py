"""When what can wait leaves: not each by itself, but soon.

What became of a message can wait a moment; the message cannot.  While many come after each other,
each frame of its own would wake three processes, and what comes within a few milliseconds travels as well in one:

    nothing has left for `delay_s`                        it leaves at once: a lone one waits for nobody
    something has left since                              it leaves `delay_s` after that,
    ENOUGH have gathered, or something urgent is there    or at once
    one has waited, and nobody came                       for LONELY times `delay_s` everything leaves at once

The last line is for those who say the next thing only when they have heard of the last: they would
wait for a company that waits for them.
"""

from math import inf

BATCH_MAX = 8
"""More would cost hardly less each."""
BACKOFF_DELAYS = 30


class Coalescer:
    """Of one direction of one link.  Times are seconds."""

    __slots__ = ("_delay_s", "_flushed_at", "_immediate_until", "flush_at")

    def __init__(self, delay_s: float) -> None:
        self.flush_at = inf
        """When what waits has to leave; `inf` when nothing waits."""
        self._delay_s = delay_s
        self._flushed_at = -inf
        self._immediate_until = -inf

    def defers(self, count: int, now: float) -> bool:
        """Whether `count` items that can wait do so."""
        if count >= BATCH_MAX or now >= self.flush_at or now < self._immediate_until:
            return False
        if self.flush_at == inf:
            if now - self._flushed_at >= self._delay_s:
                return False
            self.flush_at = self._flushed_at + self._delay_s
        return True

    def flushed(self, count: int, now: float) -> None:
        """So many left, whatever the reason."""
        if count == 1 and now >= self.flush_at:
            self._immediate_until = now + BACKOFF_DELAYS * self._delay_s
        self.flush_at = inf
        self._flushed_at = now
