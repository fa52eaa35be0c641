"""At most one action of a kind in flight, with exponential back-off and jitter after a failure."""

from collections.abc import Callable

_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 2.0
_GOLDEN = 0.6180339887498949


def jitter(seed: int) -> Callable[[], float]:
    """Return a function that returns numbers in [0, 1), another sequence for each seed: a core has no randomness."""
    state = seed % (1 << 53) * _GOLDEN % 1.0

    def next_number() -> float:
        nonlocal state
        state = (state + _GOLDEN) % 1.0
        return state

    return next_number


class SingleFlight:
    """Whether an action of one kind is in flight, and when the next may start."""

    __slots__ = ("_failures", "_jitter", "busy", "not_before")

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._failures = 0
        self.busy = False
        self.not_before = 0.0

    def start(self, now: float) -> bool:
        """Begin an action; False (and nothing happens) while one is in flight or the pause lasts."""
        if self.busy or now < self.not_before:
            return False
        self.busy = True
        return True

    def done(self, not_before: float = 0.0) -> None:
        """End the action in flight, which succeeded."""
        self.busy = False
        self._failures = 0
        self.not_before = not_before

    def failed(self, now: float) -> None:
        """End the action in flight, which failed, and pause: twice as long each time, not in step with others."""
        pause_s = min(_BACKOFF_FIRST_S * 2**self._failures, _BACKOFF_MAX_S)
        self._failures = min(self._failures + 1, 10)
        self.busy = False
        self.not_before = now + pause_s * (0.5 + self._jitter() / 2)
