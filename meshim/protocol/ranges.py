"""Sets of `seq` as inclusive ranges: receipts name messages by them, and a device keeps what it knows in them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

Range = tuple[int, int]
"""(first, last), both included."""


class Ranges:
    """A set of numbers.  Beyond `most` ranges it forgets the lowest, so that its size is bounded."""

    __slots__ = ("_first", "_last", "_most")

    def __init__(self, ranges: Iterable[Range] = (), most: int = 256) -> None:
        self._most = most
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    @property
    def most(self) -> int:
        """How many ranges are kept."""
        return self._most

    def __bool__(self) -> bool:
        return bool(self._first)

    def __iter__(self) -> Iterator[Range]:
        """The ranges in ascending order; no two of them touch."""
        return zip(self._first, self._last, strict=True)

    def __contains__(self, number: int) -> bool:
        return self.covers(number, number)

    def covers(self, first: int, last: int) -> bool:
        """Return whether every number from `first` to `last` is in the set."""
        at = bisect_right(self._first, first) - 1
        return at >= 0 and last <= self._last[at]

    def around(self, number: int) -> Range:
        """Return the range that holds this number, which is in the set."""
        at = bisect_right(self._first, number) - 1
        return self._first[at], self._last[at]

    def missing(self, first: int, last: int) -> list[Range]:
        """Return the ranges between `first` and `last` that are not in the set, in ascending order."""
        missing: list[Range] = []
        low, high = bisect_left(self._last, first), bisect_right(self._first, last)
        for known_first, known_last in zip(self._first[low:high], self._last[low:high], strict=True):
            if first < known_first:
                missing.append((first, known_first - 1))
            first = known_last + 1
        if first <= last:
            missing.append((first, last))
        return missing

    def add(self, first: int, last: int) -> list[Range]:
        """Add the numbers from `first` to `last`; return the ranges of those that are new, in ascending order.

        A range that runs backwards has no numbers.
        """
        if first > last or self.covers(first, last):
            return []
        new = self.missing(first, last)
        low = bisect_left(self._last, first - 1)  # the first range that this one overlaps or touches
        high = bisect_right(self._first, last + 1)  # the first one behind it
        merged_first = min(first, self._first[low]) if low < high else first
        merged_last = max(last, self._last[high - 1]) if low < high else last
        self._first[low:high] = [merged_first]
        self._last[low:high] = [merged_last]
        if len(self._first) > self._most:
            del self._first[0], self._last[0]
        return new


def united(ranges: Iterable[Range]) -> list[Range]:
    """Return the ranges of the numbers in these, in ascending order, no two of them touching.

    For many at once it is much faster than `Ranges.add`.
    """
    result: list[Range] = []
    for first, last in sorted(ranges):
        if first > last:
            continue
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def ranges_of(numbers: Sequence[int]) -> tuple[Range, ...]:
    """Return the inclusive ranges that cover exactly these numbers, in ascending order."""
    ranges: list[Range] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(number, ranges[-1][1]))
        else:
            ranges.append((number, number))
    return tuple(ranges)
