"""Order and uniqueness at the recipient: each message of a stream once, in the order of `seq`.

State of a stream:

    watermark   every seq below it was seen, or is in `holes`
    holes       ranges below the watermark that were passed over and may still come
    early       messages above a missing seq, held back

Rules:

    seq < watermark, in holes       show it, as late if a later one was shown; it leaves the holes
    seq < watermark, not in holes   duplicate
    seq in early                    duplicate
    otherwise                       hold it; then release what is contiguous

`base` of an envelope says that everything below it is settled: it was delivered, stored
(and then came first), or never meant for us.  Nothing below it is waited for, but what was not
seen becomes a hole: settled is not seen, and a message is never taken for a duplicate unless it was
shown.  When a message was held back for `gap_release_s`, all gaps before it are given up in the same
way, and so is the lowest one when more than `most_early` are held back; a message with a gap right
before it is then released as `after_gap`.

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

    __slots__ = ("_arrived", "_options", "early", "forgotten", "holes", "watermark")

    def __init__(self, options: OrderingOptions, watermark: int = 1, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """`watermark` and `holes` are as they were saved; early messages are given to `receive` again."""
        self._options = options
        self.watermark = watermark
        self.holes: list[tuple[int, int]] = list(holes)
        self.early: dict[int, T] = {}
        self.forgotten = 0
        """How many seqs were forgotten: if one of them comes after all, it is taken for a duplicate."""
        self._arrived: dict[int, float] = {}
        """When each of `early` came, the first to come first."""

    def receive(self, seq: int, base: int, item: T, now: float) -> list[Released[T]] | None:
        """Take in a message; what may be shown now, in order, or None for a duplicate."""
        if seq < self.watermark:
            # Above a hole that reaches up to the watermark nothing was shown.
            late = not self.holes or seq < self.holes[-1][0] or self.holes[-1][1] < self.watermark - 1
            if not self._fill(seq):
                return None
            return [Released(seq, item, Flag.LATE if late else Flag.IN_ORDER), *self.settle_below(base)]
        if seq in self.early:
            return None
        self.early[seq] = item
        self._arrived[seq] = now
        released = self.settle_below(base)
        if len(self.early) > self._options.most_early:
            released += self._give_up_before(min(self.early))
        return released

    def settle_below(self, base: int) -> list[Released[T]]:
        """Nothing below `base` is waited for any longer; what may be shown now."""
        released: list[Released[T]] = []
        if base > self.watermark:
            for seq in sorted(seq for seq in self.early if seq < base):
                self._pass_over(seq)
                released.append(self._release(Flag.IN_ORDER))
            self._pass_over(base)
        return released + self._release_contiguous()

    def tick(self, now: float) -> list[Released[T]]:
        """Give up gaps that held something back for too long; what may be shown now."""
        due = [seq for seq, at in self._arrived.items() if at + self._options.gap_release_s <= now]
        return self._give_up_before(max(due)) if due else []

    @property
    def gap_since(self) -> float | None:
        """When the message came that is held back for the longest time; None while nothing is."""
        return next(iter(self._arrived.values()), None)

    def next_deadline(self) -> float | None:
        """When `tick` gives up a gap; None while nothing is held back."""
        since = self.gap_since
        return None if since is None else since + self._options.gap_release_s

    def _give_up_before(self, last: int) -> list[Released[T]]:
        released: list[Released[T]] = []
        for seq in sorted(seq for seq in self.early if seq <= last):
            flag = Flag.AFTER_GAP if seq > self.watermark else Flag.IN_ORDER
            self._pass_over(seq)
            released.append(self._release(flag))
        return released + self._release_contiguous()

    def _release_contiguous(self) -> list[Released[T]]:
        released: list[Released[T]] = []
        while self.watermark in self.early:
            released.append(self._release(Flag.IN_ORDER))
        return released

    def _release(self, flag: Flag) -> Released[T]:
        seq = self.watermark
        self.watermark = seq + 1
        del self._arrived[seq]
        return Released(seq, self.early.pop(seq), flag)

    def _pass_over(self, until: int) -> None:
        """Everything from the watermark up to `until` was not seen."""
        first, last = self.watermark, until - 1
        if first > last:
            return
        self.watermark = until
        if self.holes and self.holes[-1][1] == first - 1:
            first = self.holes.pop()[0]
        self.holes.append((first, last))
        self._forget_lowest()

    def _fill(self, seq: int) -> bool:
        for at, (first, last) in enumerate(self.holes):
            if first <= seq <= last:
                rest = [(first, seq - 1), (seq + 1, last)]
                self.holes[at : at + 1] = [(low, high) for low, high in rest if low <= high]
                self._forget_lowest()
                return True
        return False

    def _forget_lowest(self) -> None:
        if len(self.holes) > self._options.most_holes:
            first, last = self.holes.pop(0)
            self.forgotten += last - first + 1
