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

ENOUGH = 8
"""More would cost hardly less each."""
LONELY = 30


class Company:
    """Of one direction of one link.  Times are seconds."""

    __slots__ = ("_alone_until", "_delay_s", "_left_at", "leave_at")

    def __init__(self, delay_s: float) -> None:
        self.leave_at = inf
        """When what waits has to leave; `inf` when nothing waits."""
        self._delay_s = delay_s
        self._left_at = -inf
        self._alone_until = -inf

    def waits(self, count: int, now: float) -> bool:
        """Whether `count` items that can wait do so."""
        if count >= ENOUGH or now >= self.leave_at or now < self._alone_until:
            return False
        if self.leave_at == inf:
            if now - self._left_at >= self._delay_s:
                return False
            self.leave_at = self._left_at + self._delay_s
        return True

    def left(self, count: int, now: float) -> None:
        """So many left, whatever the reason."""
        if count == 1 and now >= self.leave_at:
            self._alone_until = now + LONELY * self._delay_s
        self.leave_at = inf
        self._left_at = now
