"""The window: numbered frames and their acknowledgements, over a connection that loses, doubles and reorders nothing.

One state machine serves client links (a frame is a few envelopes) and mesh links (a frame is a bundle).  Each end has a
sending and a receiving half.  These are all the rules:

sending     frames are numbered 1, 2, 3, ...; at most `credit` frames are unacknowledged; further items wait in a
            queue, bounded in items and in bytes, and are packed, when the window has room, into as few frames as the
            limits allow

            acknowledged up to n            forget the frames up to n
            n was never sent                MALFORMED
            nothing for `give_up_s`         the link has failed; each acknowledged frame starts that time anew

receiving   number = next                   take the frame; an acknowledgement is owed
            any other number                MALFORMED: a frame is missing, or came twice
            more than `options.credit` above the last acknowledgement that was sent: WINDOW_EXCEEDED

An error ends the link, and so does a frame that finds no room in the socket: nothing is sent again on the same link
(adr/0030).  When the link has ended, `abandon` hands back every item that was not acknowledged, and the owner sends it
over another link or stores it.

With `manual_ack=True` a received frame is acknowledged only after the owner calls `processed`: a client acknowledges
what is in its state file, not what is in its memory; a connector acknowledges a client at the rate that the client is
allowed (token_bucket.py).
"""

from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import msgspec

from meshim.errors import Code, PeerError
from meshim.wire.link import Ack, Data

Out = TypeVar("Out")


class WindowOptions(msgspec.Struct, frozen=True):
    """`credit` is frames, `queue` and `frame_items` are items, `give_up_s` is seconds.

    The queue takes items while it holds less than `queue_bytes`.
    """

    credit: int
    queue: int
    frame_items: int
    frame_bytes: int
    give_up_s: float
    queue_bytes: float = inf


class Window(Generic[Out]):
    """Both halves of one end of a link."""

    __slots__ = (
        "_acked_number",
        "_awaited_number",
        "_flights",
        "_manual_ack",
        "_next_number",
        "_options",
        "_progress_at",
        "_queue",
        "_queue_bytes",
        "_size_of",
        "_sizes",
        "credit",
        "link",
        "processed_number",
        "received_number",
    )  # fmt: skip

    def __init__(
        self, link: int, options: WindowOptions, size_of: Callable[[Out], int], *, manual_ack: bool = False
    ) -> None:
        """`link` is the epoch that frames carry."""
        self.link = link
        self.credit = options.credit
        """Frames that may be unacknowledged; the owner lowers it to what the peer announces."""
        self.received_number = 0
        """The last frame that was received."""
        self.processed_number = 0
        """The last frame that may be acknowledged."""
        self._options = options
        self._size_of = size_of
        self._manual_ack = manual_ack
        # Lists: an empty deque takes 760 bytes, and nearly all windows are empty.
        self._queue: list[Out] = []
        self._sizes: list[int] = []
        """Of each item in the queue."""
        self._queue_bytes = 0
        self._flights: dict[int, tuple[float, tuple[Out, ...]]] = {}
        """Frames in flight, sent and not acknowledged: by number, the time of sending and the items."""
        self._next_number = 1
        self._progress_at = -inf
        """When the peer last acknowledged a frame."""
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
        return not self._queue and not self._flights and not self.owes_ack

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
            items = self._pack()
            number = self._next_number
            self._next_number = number + 1
            self._flights[number] = (now, items)
            self._acked_number = self.processed_number
            frames.append(Data(self.link, number, self.processed_number, items))
        return frames

    def _pack(self) -> tuple[Out, ...]:
        """Take the items of the next frame from the queue."""
        queue, sizes = self._queue, self._sizes
        count, size, frame_bytes = 1, sizes[0], self._options.frame_bytes
        count_max = min(len(sizes), self._options.frame_items)
        while count < count_max and size + sizes[count] <= frame_bytes:
            size += sizes[count]
            count += 1
        items = tuple(queue[:count])
        del queue[:count], sizes[:count]
        self._queue_bytes -= size
        return items

    def acknowledged(self, ack: int, now: float) -> list[Out]:
        """Take in an acknowledgement; return the items that it acknowledges, in order.

        Raises PeerError for a number that was never sent.
        """
        if ack >= self._next_number:
            raise PeerError(Code.MALFORMED, f"frame {ack} was acknowledged but never sent")
        items: list[Out] = []
        flights = self._flights
        while flights:
            number = next(iter(flights))
            if number > ack:
                break
            items.extend(flights.pop(number)[1])
            self._progress_at = now
        return items

    def unacknowledged_since(self) -> float | None:
        """Return when the oldest frame in flight was sent; None when none is."""
        for sent_at, _ in self._flights.values():
            return sent_at
        return None

    def failed(self, now: float) -> bool:
        """Return whether frames are in flight and the peer has acknowledged none for `give_up_s`."""
        return now >= self.give_up_at

    @property
    def give_up_at(self) -> float:
        """When the link has failed unless the peer acknowledges a frame; `inf` when none is in flight."""
        for sent_at, _ in self._flights.values():
            return max(sent_at, self._progress_at) + self._options.give_up_s
        return inf

    def abandon(self) -> list[Out]:
        """Return every item that was not acknowledged, in order, and empty the window."""
        unacknowledged = [item for _, items in self._flights.values() for item in items]
        unacknowledged.extend(self._queue)
        self._flights.clear()
        self._queue.clear()
        self._sizes.clear()
        self._queue_bytes = 0
        return unacknowledged

    # ---- receiving half

    def receive(self, number: int) -> None:
        """Take in the number of a data frame, whose items the owner processes.

        Raises PeerError when it is not the next number, or when the peer sent more than its credit.
        """
        expected = self.received_number + 1
        if number != expected:
            raise PeerError(Code.MALFORMED, f"frame {number} came, {expected} was expected")
        if number > self._acked_number + self._options.credit:
            raise PeerError(
                Code.WINDOW_EXCEEDED,
                f"frame {number} is beyond the window of {self._options.credit}, {self._acked_number} was acknowledged",
            )
        self.received_number = number
        if not self._manual_ack:
            self.processed_number = number

    def processed(self, number: int) -> None:
        """With `manual_ack`: every frame up to this one may be acknowledged now."""
        assert self.processed_number <= number <= self.received_number
        self.processed_number = number

    @property
    def owes_ack(self) -> bool:
        """Whether frames were processed that no acknowledgement has named."""
        return self._acked_number < self.processed_number

    @property
    def ack_is_urgent(self) -> bool:
        """Whether the peer waits for the acknowledgement, or soon will: half of its credit is not acknowledged."""
        acked = self._acked_number
        return acked < self._awaited_number or 2 * (self.processed_number - acked) >= self.credit

    def ack_at_once(self) -> None:
        """Make the acknowledgement of the frames received so far urgent."""
        self._awaited_number = self.received_number

    def pending_ack(self) -> Ack | None:
        """Return the acknowledgement that is owed and that no data frame has carried; None when none is."""
        if not self.owes_ack:
            return None
        self._acked_number = self.processed_number
        return Ack(self.link, self.processed_number)
