"""A rate for each of many: users, tokens."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class RateLimit(Generic[Key]):
    """A token bucket for each key: `rate` tokens a second, and at most those of `burst_s` seconds.

    One with tokens left may overdraw its bucket, and waits until it is paid.  Remembers at most `keys_max` keys, and
    forgets first the one that was charged longest ago.
    """

    def __init__(self, rate: float, keys_max: int, burst_s: float = 1.0) -> None:
        self._rate = rate
        self._keys_max = keys_max
        self._capacity = rate * burst_s
        self._buckets: OrderedDict[Key, tuple[float, float]] = OrderedDict()
        """Key to (tokens, the time when there were so many)."""

    def wait_s(self, key: Key, now: float) -> float:
        """Return the seconds until there are tokens again; 0 when there are some."""
        tokens = self._tokens(key, now)
        return 0.0 if tokens > 0 else max(-tokens, 1.0) / self._rate

    def charge(self, key: Key, cost: float, now: float) -> None:
        """Take `cost` tokens, also when there are fewer."""
        self._buckets[key] = (self._tokens(key, now) - cost, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)

    def __len__(self) -> int:
        return len(self._buckets)

    def _tokens(self, key: Key, now: float) -> float:
        tokens, since = self._buckets.get(key, (self._capacity, now))
        return min(self._capacity, tokens + max(0.0, now - since) * self._rate)
