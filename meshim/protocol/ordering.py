"""Order and uniqueness at the recipient: each message of a stream is shown once, in the order of `seq`.

State of a stream:

    watermark   every seq below it was shown, or is in `holes`
    holes       ranges below the watermark that were passed over and may still arrive
    early       messages above a missing seq, held back

Rules for a message that arrives:

    seq < watermark, in holes       show it, flagged LATE if a later message was shown; it leaves the holes
    seq < watermark, not in holes   duplicate
    seq in early                    duplicate
    otherwise                       hold it, then release the messages that are contiguous with the watermark

`base` of an envelope says that every message below it is settled: it was delivered, or stored (then it came first), or
it was never meant for this device.  No message waits for a seq below `base`.  A seq that was not shown becomes a hole,
since settled does not mean shown: a message counts as a duplicate only if it was shown.

A gap is given up in the same way when it has held a message back for `gap_release_s`, together with all gaps before
it; and the lowest gap when more than `early_max` messages are held back.  The message right behind a gap that was given
up is flagged AFTER_GAP.

At most `holes_max` ranges are kept: beyond that the lowest is forgotten, and counted.
"""

import enum
from typing import Generic, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")


class OrderingOptions(msgspec.Struct, frozen=True):
    """`gap_release_s` is seconds; `early_max` is messages and `holes_max` ranges, per stream."""

    gap_release_s: float
    early_max: int = 1024
    holes_max: int = 64


class Flag(enum.IntEnum):
    """In what order a message was released."""

    IN_ORDER = 0
    AFTER_GAP = 1
    """The message before it did not arrive in time."""
    LATE = 2
    """The recipient had given it up: later messages are already shown."""


class Released(NamedTuple, Generic[T]):
    """A message to show now."""

    seq: int
    item: T
    flag: Flag


class StreamOrder(Generic[T]):
    """The state of one stream on one device."""

    __slots__ = ("_arrived_at", "_options", "early", "forgotten", "holes", "watermark")

    def __init__(self, options: OrderingOptions, watermark: int = 1, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """`watermark` and `holes` are as saved; after a restart the owner gives early messages to `receive` again."""
        self._options = options
        self.watermark = watermark
        self.holes: list[tuple[int, int]] = list(holes)
        self.early: dict[int, T] = {}
        self.forgotten = 0
        """How many seqs were forgotten.  If such a message arrives after all, it counts as a duplicate."""
        self._arrived_at: dict[int, float] = {}
        """When each early message arrived, in the order of arrival."""

    def receive(self, seq: int, base: int, item: T, now: float) -> list[Released[T]] | None:
        """Take in a message; return the messages to show now, in order, or None for a duplicate."""
        if seq < self.watermark:
            # No message above a hole that reaches up to the watermark was shown.
            late = not self.holes or seq < self.holes[-1][0] or self.holes[-1][1] < self.watermark - 1
            if not self._fill(seq):
                return None
            return [Released(seq, item, Flag.LATE if late else Flag.IN_ORDER), *self.settle_below(base)]
        if seq in self.early:
            return None
        self.early[seq] = item
        self._arrived_at[seq] = now
        released = self.settle_below(base)
        if len(self.early) > self._options.early_max:
            released += self._give_up_before(min(self.early))
        return released

    def settle_below(self, base: int) -> list[Released[T]]:
        """Stop waiting for messages below `base`; return the messages to show now."""
        released: list[Released[T]] = []
        if base > self.watermark:
            for seq in sorted(seq for seq in self.early if seq < base):
                self._pass_over(seq)
                released.append(self._release(Flag.IN_ORDER))
            self._pass_over(base)
        return released + self._release_contiguous()

    def tick(self, now: float) -> list[Released[T]]:
        """Give up the gaps that have held a message back for too long; return the messages to show now."""
        due = [seq for seq, at in self._arrived_at.items() if at + self._options.gap_release_s <= now]
        return self._give_up_before(max(due)) if due else []

    def restart_clocks(self, now: float) -> None:
        """Wait for every gap anew: what is missing may come over the link that begins now."""
        self._arrived_at = dict.fromkeys(self._arrived_at, now)

    def next_deadline(self) -> float | None:
        """Return when `tick` gives up a gap; None while no message is held back."""
        for arrived_at in self._arrived_at.values():
            return arrived_at + self._options.gap_release_s
        return None

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
        del self._arrived_at[seq]
        return Released(seq, self.early.pop(seq), flag)

    def _pass_over(self, until: int) -> None:
        """Raise the watermark to `until`; the seqs below it that were not shown become a hole."""
        first, last = self.watermark, until - 1
        if first > last:
            return
        self.watermark = until
        if self.holes and self.holes[-1][1] == first - 1:
            first = self.holes.pop()[0]
        self.holes.append((first, last))
        self._forget_lowest()

    def _fill(self, seq: int) -> bool:
        """Take this seq out of the holes; return whether it was in one."""
        for at, (first, last) in enumerate(self.holes):
            if first <= seq <= last:
                remaining = [(first, seq - 1), (seq + 1, last)]
                self.holes[at : at + 1] = [(low, high) for low, high in remaining if low <= high]
                self._forget_lowest()
                return True
        return False

    def _forget_lowest(self) -> None:
        if len(self.holes) > self._options.holes_max:
            first, last = self.holes.pop(0)
            self.forgotten += last - first + 1
