"""The window: numbered frames, taken in order and once, over a link that may lose, duplicate or delay them.

One state machine serves client links (a frame is a few envelopes) and mesh links (a frame is a bundle).  Each end has a
sending and a receiving half:

sending     frames are numbered from 1, and at most `credit` frames are unacknowledged; further items wait in a bounded
            queue and are packed, when the window has room, into as few frames as the limits allow
receiving   number = next       take the frame, then the stashed frames behind it
            number < next       a duplicate: acknowledge again
            number > next       stash the frame if it is within `credit`, else drop it unacknowledged
            number more than twice the credit above the last acknowledged one: WINDOW_EXCEEDED

An acknowledgement names the last number that was processed, and the stashed numbers.  A stashed frame remains with the
sender until the cumulative acknowledgement passes it.

Retransmission: a frame is resent after `resend_s`, then each time after twice as long; a stashed frame four times later
than others, since only the frame before it is missing.  When the peer has acknowledged nothing for `give_up_s` the link
has failed, and `abandon` hands back every item that was not acknowledged.  A slow peer is not a dead one: each frame
that it acknowledges starts both times anew.  A slow peer must not be flooded with retransmissions either: nothing is
resent for twice the last acknowledgement delay (`give_up_s / 2` at most), and at most one full frame at a time.

The queue is bounded in items and in bytes, and so is the stash: early frames are rare on links over TCP.

With `manual_ack=True` a received frame is acknowledged only after the owner calls `processed`: a client acknowledges
what is in its state file, not what is in its memory; a connector acknowledges a client at the rate that the client is
allowed (token_bucket.py).
"""

from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import msgspec

from meshim.errors import Code, PeerError
from meshim.wire.bounds import LIST_MAX
from meshim.wire.link import Ack, Data

Out = TypeVar("Out")
In = TypeVar("In")


class WindowOptions(msgspec.Struct, frozen=True):
    """`credit` is frames, `queue` and `frame_items` are items; times are seconds.

    The queue takes items while it holds less than `queue_bytes`; the stash holds `stash_bytes` at most.
    """

    credit: int
    queue: int
    frame_items: int
    frame_bytes: int
    resend_s: float
    give_up_s: float
    queue_bytes: float = inf
    stash_bytes: float = inf


class _Flight(Generic[Out]):
    """A frame in flight: sent and not acknowledged."""

    __slots__ = ("first_sent_at", "items", "resend_at", "size", "stashed", "timeout_s")

    def __init__(self, items: tuple[Out, ...], size: int, now: float, timeout_s: float) -> None:
        self.items = items
        self.size = size
        self.first_sent_at = now
        self.timeout_s = timeout_s
        self.resend_at = now + timeout_s
        self.stashed = False
        """Whether the peer named it as stashed."""


class Window(Generic[Out, In]):
    """Both halves of one end of a link."""

    __slots__ = (
        "_ack_due",
        "_ack_urgent",
        "_acked_number",
        "_awaited_number",
        "_flights",
        "_manual_ack",
        "_next_number",
        "_options",
        "_progress_at",
        "_queue",
        "_queue_bytes",
        "_resend_at",
        "_resend_not_before",
        "_rto_s",
        "_size_of",
        "_size_of_received",
        "_sizes",
        "_stash",
        "_stash_bytes",
        "credit",
        "link",
        "processed_number",
        "received_number",
        "resent",
    )  # fmt: skip

    def __init__(
        self, link: int, options: WindowOptions, size_of: Callable[[Out], int], *, manual_ack: bool = False,
        size_of_received: Callable[[In], int] | None = None,
    ) -> None:  # fmt: skip
        """`link` is the epoch that frames carry.

        `size_of_received` gives the size of items of early frames, for `stash_bytes`; without it they count as 0.
        """
        assert 0 < options.credit <= LIST_MAX, "an acknowledgement must be able to list the whole stash"
        self.link = link
        self.credit = options.credit
        """Frames that may be unacknowledged; the owner lowers it to what the peer announces."""
        self.received_number = 0
        """The last frame whose items `receive` returned."""
        self.processed_number = 0
        """The last frame that may be acknowledged."""
        self.resent = 0
        """How many frames were resent."""
        self._options = options
        self._size_of = size_of
        self._size_of_received = size_of_received
        self._manual_ack = manual_ack
        # Lists: an empty deque takes 760 bytes, and nearly all windows are empty.
        self._queue: list[Out] = []
        self._sizes: list[int] = []
        """Of each item in the queue."""
        self._queue_bytes = 0
        self._flights: dict[int, _Flight[Out]] = {}
        self._next_number = 1
        self._resend_at = inf
        """No frame is due before it.  Kept, not searched for: every tick of every link compares it with the clock."""
        self._progress_at = -inf
        """When the peer last acknowledged a frame."""
        self._rto_s = options.resend_s
        """The retransmission timeout: how long to wait for progress before any frame is resent."""
        self._resend_not_before = -inf
        """When the retransmission timeout ends."""
        self._stash: dict[int, tuple[In, ...]] = {}
        self._stash_bytes = 0
        self._ack_due = False
        self._ack_urgent = False
        """A frame came twice or early: the peer does not know what this end has."""
        self._acked_number = 0
        """The last number that an acknowledgement to the peer named."""
        self._awaited_number = 0
        """The last frame whose acknowledgement the peer waits for, says the owner."""

    # ---- sending half

    @property
    def queued(self) -> int:
        """How many items wait for room in the window."""
        return len(self._queue)

    @property
    def unacknowledged(self) -> int:
        """How many frames are in flight."""
        return len(self._flights)

    @property
    def idle(self) -> bool:
        """Whether no item waits, no frame is in flight, and no acknowledgement is owed."""
        return not self._queue and not self._flights and not self._ack_due

    def push(self, item: Out) -> bool:
        """Queue an item; return False, and do nothing, when the queue is full."""
        if len(self._queue) >= self._options.queue or self._queue_bytes >= self._options.queue_bytes:
            return False
        size = self._size_of(item)
        self._queue.append(item)
        self._sizes.append(size)
        self._queue_bytes += size
        return True

    def take(self, now: float) -> list[Data[Out]]:
        """Return the frames that the window has room for, each with an acknowledgement of the other direction."""
        frames: list[Data[Out]] = []
        while self._queue and len(self._flights) < self.credit:
            items, size = self._pack()
            number = self._next_number
            self._next_number = number + 1
            self._flights[number] = _Flight(items, size, now, self._options.resend_s)
            self._resend_at = min(self._resend_at, now + self._options.resend_s)
            frames.append(self._frame(number, items))
        return frames

    def _pack(self) -> tuple[tuple[Out, ...], int]:
        """Take the items of the next frame from the queue; return them, and their size."""
        queue, sizes = self._queue, self._sizes
        count, size, frame_bytes = 1, sizes[0], self._options.frame_bytes
        count_max = min(len(sizes), self._options.frame_items)
        while count < count_max and size + sizes[count] <= frame_bytes:
            size += sizes[count]
            count += 1
        items = tuple(queue[:count])
        del queue[:count], sizes[:count]
        self._queue_bytes -= size
        return items, size

    def _frame(self, number: int, items: tuple[Out, ...]) -> Data[Out]:
        self._ack_sent()
        return Data(self.link, number, self.processed_number, tuple(self._stash), items)

    def acknowledged(self, ack: int, stash: tuple[int, ...], now: float) -> list[Out]:
        """Take in an acknowledgement; return the items that it acknowledges, in order.

        Raises PeerError for a number that was never sent.
        """
        if ack >= self._next_number:
            raise PeerError(Code.MALFORMED, f"frame {ack} was acknowledged but never sent")
        acknowledged: list[Out] = []
        flights = self._flights
        delay_s = 0.0
        while flights:
            number = next(iter(flights))
            if number > ack:
                break
            flight = flights.pop(number)
            delay_s = max(delay_s, now - max(flight.first_sent_at, self._progress_at))
            acknowledged.extend(flight.items)
        if acknowledged:
            # The peer probably takes as long for the next frame; but a lost frame is resent before the link fails.
            self._rto_s = max(self._options.resend_s, min(2 * delay_s, self._options.give_up_s / 2))
            self._progress_at = now
            self._resend_not_before = now + self._rto_s
        if not flights:
            self._resend_at = inf
        for number in stash:
            stashed = flights.get(number)
            if stashed is not None and not stashed.stashed:
                # Only the frame before it is missing.
                stashed.stashed = True
                stashed.timeout_s *= 4
                stashed.resend_at = now + stashed.timeout_s
        return acknowledged

    def resend(self, now: float) -> list[Data[Out]]:
        """Return the frames that are due again, one full frame of them at most; the others wait for another timeout."""
        frames: list[Data[Out]] = []
        if now < self._resend_at or now < self._resend_not_before:
            return frames
        size = 0
        for number, flight in self._flights.items():
            if flight.resend_at > now:
                continue
            size += flight.size
            if frames and size > self._options.frame_bytes:
                self._resend_not_before = now + self._rto_s
                return frames
            flight.timeout_s *= 2
            flight.resend_at = now + flight.timeout_s
            self.resent += 1
            frames.append(self._frame(number, flight.items))
        self._resend_at = min((flight.resend_at for flight in self._flights.values()), default=inf)
        return frames

    def unacknowledged_since(self) -> float | None:
        """Return when the oldest frame in flight was first sent; None when none is."""
        for flight in self._flights.values():
            return flight.first_sent_at
        return None

    def failed(self, now: float) -> bool:
        """Return whether frames are in flight and the peer has acknowledged none for `give_up_s`."""
        return now >= self._give_up_at()

    def _give_up_at(self) -> float:
        for flight in self._flights.values():
            return max(flight.first_sent_at, self._progress_at) + self._options.give_up_s
        return inf

    def abandon(self) -> list[Out]:
        """Return every item that was not acknowledged, in order, and empty the window."""
        items = [item for flight in self._flights.values() for item in flight.items]
        items.extend(self._queue)
        self._flights.clear()
        self._queue.clear()
        self._sizes.clear()
        self._queue_bytes = 0
        self._resend_at = inf
        return items

    # ---- receiving half

    def receive(self, number: int, items: tuple[In, ...]) -> list[In]:
        """Take in a data frame; return the items that can be processed now, in order.

        Raises PeerError when the peer sent more than its credit.
        """
        self._ack_due = True
        expected = self.received_number + 1
        if number > self.processed_number + 1 + 2 * self._options.credit:
            acknowledged = self.processed_number
            raise PeerError(
                Code.WINDOW_EXCEEDED, f"frame {number} is beyond the window, {acknowledged} was acknowledged"
            )
        if number != expected:
            self._ack_urgent = True
            if number < 1:
                raise PeerError(Code.MALFORMED, "frames are numbered from 1")
            if expected < number < expected + self._options.credit and number not in self._stash:
                self._stash_early(number, items)
            return []
        ready = list(items)
        while self._stash and (following := self._stash.pop(number + 1, None)) is not None:
            self._stash_bytes -= self._size(following)
            ready.extend(following)
            number += 1
        self.received_number = number
        if not self._manual_ack:
            self.processed_number = number
        return ready

    def _stash_early(self, number: int, items: tuple[In, ...]) -> None:
        size = self._size(items)
        if self._stash_bytes + size <= self._options.stash_bytes:
            self._stash[number] = items
            self._stash_bytes += size

    def _size(self, items: tuple[In, ...]) -> int:
        return sum(map(self._size_of_received, items)) if self._size_of_received is not None else 0

    def processed(self, number: int) -> None:
        """With `manual_ack`: every frame up to this one may be acknowledged now."""
        assert self.processed_number <= number <= self.received_number
        self.processed_number = number
        self._ack_due = True

    @property
    def owes_ack(self) -> bool:
        """Whether an acknowledgement is owed that no data frame has carried."""
        return self._ack_due

    @property
    def ack_is_urgent(self) -> bool:
        """Whether the peer waits for the acknowledgement, or soon will: half of its credit is not acknowledged."""
        acked = self._acked_number
        return self._ack_urgent or acked < self._awaited_number or 2 * (self.processed_number - acked) >= self.credit

    def ack_at_once(self) -> None:
        """Make the acknowledgement of the frames received so far urgent."""
        self._awaited_number = self.received_number

    def pending_ack(self) -> Ack | None:
        """Return the acknowledgement that is owed and that no data frame has carried; None when none is."""
        if not self._ack_due:
            return None
        self._ack_sent()
        return Ack(self.link, self.processed_number, tuple(self._stash))

    def _ack_sent(self) -> None:
        self._ack_due = self._ack_urgent = False
        self._acked_number = self.processed_number

    def next_deadline(self) -> float | None:
        """Return when to call `resend` and `failed` again: never too late, at times too early.  None: no need to."""
        if not self._flights:
            return None
        return min(self._give_up_at(), max(self._resend_at, self._resend_not_before))
