"""The port `Throttle` in the memory of one process: for tests, and for a process whose Redis is away."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshim.stores.ports import Bucket, Outcome
from meshim.stores.ports.throttle import UNDER_WAY_S


@dataclass
class _Window:
    ends_at: float
    failed: int = 0
    begun: int = 0


class Windows:
    """The state: at most `keys_max` windows; the one that began first is forgotten first."""

    def __init__(self, clock: Callable[[], float], keys_max: int = 100_000) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._keys_max = keys_max
        self._held: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def find(self, bucket: Bucket) -> _Window | None:
        """Return the window of a bucket, unless it is over.  No step of the clock makes it longer (adr/0016)."""
        window = self._held.get(bucket.key)
        if window is None:
            return None
        if self.left_s(window) <= 0:
            del self._held[bucket.key]
            return None
        window.ends_at = min(window.ends_at, self._clock() + bucket.window_s)
        return window

    def open(self, bucket: Bucket) -> _Window:
        """Return the window of a bucket; it begins now when there is none."""
        window = self.find(bucket)
        if window is None:
            window = self._held[bucket.key] = _Window(self._clock() + bucket.window_s)
            if len(self._held) > self._keys_max:
                self._held.popitem(last=False)
        return window

    def close_if_empty(self, bucket: Bucket) -> None:
        window = self._held.get(bucket.key)
        if window is not None and not window.failed and not window.begun:
            del self._held[bucket.key]

    def left_s(self, window: _Window) -> float:
        return window.ends_at - self._clock()


class MemoryThrottle:
    """The port `Throttle` in memory."""

    def __init__(self, windows: Windows, answer: Callable[[], None] = lambda: None) -> None:
        """`answer` raises `BackendUnavailable` while the server that this stands for is away."""
        self._windows = windows
        self._answer = answer

    async def begin(self, buckets: Sequence[Bucket]) -> float:
        self._answer()
        wait_s = max((self._wait_s(bucket) for bucket in buckets), default=0.0)
        if wait_s > 0:
            return wait_s
        for bucket in buckets:
            self._windows.open(bucket).begun += 1
        return 0.0

    def _wait_s(self, bucket: Bucket) -> float:
        window = self._windows.find(bucket)
        if window is None or window.failed + window.begun < bucket.most:
            return 0.0
        return UNDER_WAY_S if window.failed < bucket.most else self._windows.left_s(window)

    async def end(self, buckets: Sequence[Bucket], outcome: Outcome) -> None:
        self._answer()
        for bucket in buckets:
            window = self._windows.open(bucket)
            window.begun = max(0, window.begun - 1)
            if outcome is Outcome.SUCCEEDED and bucket.forgives:
                window.failed = 0
            window.failed += outcome is Outcome.FAILED
            self._windows.close_if_empty(bucket)
