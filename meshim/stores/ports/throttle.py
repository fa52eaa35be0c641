"""Counts failures, and attempts that are under way, in windows of time: of guesses at passwords, for example.

Implemented on Redis (`redis/throttle.py`), so that all processes count together, and in memory (`memory/throttle.py`);
contract: `tests/contract/redis/test_throttle.py`.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

UNDER_WAY_S = 1.0
"""Until attempts that are under way have ended, most likely."""


class Bucket(NamedTuple):
    """What is counted together: at most `most` failures within `window_s` of the first attempt of them."""

    key: str
    """Printable characters without spaces."""
    most: int
    window_s: float
    forgives: bool = False
    """Whether a success makes earlier failures forgotten."""


class Outcome(enum.Enum):
    """How an attempt ended."""

    FAILED = enum.auto()
    SUCCEEDED = enum.auto()
    GIVEN_UP = enum.auto()
    """It was not decided, and does not count."""


class Throttle(Protocol):
    """An attempt counts from its beginning, so of many at once no more are made than may fail."""

    async def begin(self, buckets: Sequence[Bucket]) -> float:
        """Begin an attempt, which has to `end`, in all of these buckets.

        Return 0, or the seconds to wait when one of them has no room: then it has begun in none.  Attempts that are
        under way may still succeed, so a wait for them is short.
        """

    async def end(self, buckets: Sequence[Bucket], outcome: Outcome) -> None:
        """End an attempt that has begun in these buckets.  One that never ends counts until its window does."""
