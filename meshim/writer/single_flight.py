"""A lane: one thing at a time, and again after a pause when it failed."""

from collections.abc import Callable

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_GOLDEN = 0.6180339887498949


def jitter(seed: int) -> Callable[[], float]:
    """Numbers in [0, 1) that differ from one seed to the next: jitter for a core, which has no randomness."""
    state = seed % (1 << 53) * _GOLDEN % 1.0

    def following() -> float:
        nonlocal state
        state = (state + _GOLDEN) % 1.0
        return state

    return following


class SingleFlight:
    """Whether an action of one sort is under way, and when the next may start."""

    __slots__ = ("_failures", "_jitter", "busy", "not_before")

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._failures = 0
        self.busy = False
        self.not_before = 0.0

    def start(self, now: float) -> bool:
        """Take the lane; False while it is taken or pausing."""
        if self.busy or now < self.not_before:
            return False
        self.busy = True
        return True

    def done(self, not_before: float = 0.0) -> None:
        """What was under way succeeded."""
        self.busy = False
        self._failures = 0
        self.not_before = not_before

    def failed(self, now: float) -> None:
        """What was under way failed: pause, twice as long each time, and not in step with others."""
        pause_s = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
        self._failures = min(self._failures + 1, 10)
        self.busy = False
        self.not_before = now + pause_s * (0.5 + self._jitter() / 2)
