"""Order and uniqueness at the recipient: each message of a stream once, in the order of `seq`.

State of a stream:

    watermark   every seq below it was seen, or is in `holes`
    holes       ranges below the watermark that were passed over and may still come
    early       messages above a missing seq, held back

Rules:

    seq < watermark, in holes       show it, late; it leaves the holes
    seq < watermark, not in holes   duplicate
    seq in early                    duplicate
    otherwise                       hold it; then release what is contiguous

`base` of an envelope says that everything below it is settled: it was delivered, stored
(and then came first), or never meant for us.  Nothing below it is waited for, but what was not
seen becomes a hole: settled is not seen, and a message is never taken for a duplicate unless it was
shown.  A gap that is open for `gap_release_s`, or that holds back more than `most_early`,
is given up in the same way, and the message behind it is released as `after_gap`.

Holes are bounded: beyond `most_holes` ranges the lowest is forgotten, and counted.
"""

import enum
from typing import Generic, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")


class OrderingOptions(msgspec.Struct, frozen=True):
    gap_release_s: float
    most_early: int = 1024
    most_holes: int = 64


class Flag(enum.IntEnum):
    """How a message came to be released."""

    IN_ORDER = 0
    AFTER_GAP = 1
    """The message before it did not come in time."""
    LATE = 2
    """It was given up before: later messages were shown already."""


class Released(NamedTuple, Generic[T]):
    """A message that may be shown now."""

    seq: int
    item: T
    flag: Flag


class StreamOrder(Generic[T]):
    """What one device knows of one stream."""

    __slots__ = ("_options", "early", "forgotten", "gap_since", "holes", "watermark")

    def __init__(self, options: OrderingOptions, watermark: int = 1, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """`watermark` and `holes` are as they were saved; early messages are given to `receive` again."""
        self._options = options
        self.watermark = watermark
        self.holes: list[tuple[int, int]] = list(holes)
        self.early: dict[int, T] = {}
        self.gap_since: float | None = None
        self.forgotten = 0

    def receive(self, seq: int, base: int, item: T, now: float) -> list[Released[T]] | None:
        """Take in a message; what may be shown now, in order, or None for a duplicate."""
        if seq < self.watermark:
            if not self._fill(seq):
                return None
            return [Released(seq, item, Flag.LATE), *self.settle_below(base, now)]
        if seq in self.early:
            return None
        self.early[seq] = item
        released = self.settle_below(base, now)
        if len(self.early) > self._options.most_early:
            released.extend(self._give_up(now))
        return released

    def settle_below(self, base: int, now: float) -> list[Released[T]]:
        """Nothing below `base` is waited for any longer; what may be shown now."""
        released: list[Released[T]] = []
        if base > self.watermark:
            for seq in sorted(seq for seq in self.early if seq < base):
                self._pass_over(seq)
                released.append(Released(seq, self.early.pop(seq), Flag.IN_ORDER))
                self.watermark = seq + 1
            self._pass_over(base)
        return self._release_contiguous(released, now)

    def tick(self, now: float) -> list[Released[T]]:
        """Give up a gap that is open for too long; what may be shown now."""
        deadline = self.next_deadline()
        return [] if deadline is None or now < deadline else self._give_up(now)

    def next_deadline(self) -> float | None:
        """When `tick` gives up a gap; None while nothing is held back."""
        return None if self.gap_since is None else self.gap_since + self._options.gap_release_s

    def _give_up(self, now: float) -> list[Released[T]]:
        seq = min(self.early)
        self._pass_over(seq)
        self.watermark = seq + 1
        return self._release_contiguous([Released(seq, self.early.pop(seq), Flag.AFTER_GAP)], now)

    def _release_contiguous(self, released: list[Released[T]], now: float) -> list[Released[T]]:
        while self.early and self.watermark in self.early:
            released.append(Released(self.watermark, self.early.pop(self.watermark), Flag.IN_ORDER))
            self.watermark += 1
        if not self.early:
            self.gap_since = None
        elif released or self.gap_since is None:
            self.gap_since = now
        return released

    def _pass_over(self, until: int) -> None:
        """Everything from the watermark up to `until` was not seen."""
        if until <= self.watermark:
            return
        self.holes.append((self.watermark, until - 1))
        self.watermark = until
        if len(self.holes) > self._options.most_holes:
            first, last = self.holes.pop(0)
            self.forgotten += last - first + 1

    def _fill(self, seq: int) -> bool:
        for at, (first, last) in enumerate(self.holes):
            if first <= seq <= last:
                rest = [(first, seq - 1), (seq + 1, last)]
                self.holes[at : at + 1] = [(low, high) for low, high in rest if low <= high]
                return True
        return False
