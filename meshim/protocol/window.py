"""The window: numbered frames, in order and once, over a link that may lose, double or delay them.

One state machine serves client links (a frame is a few envelopes) and mesh links (a frame
is a bundle).  Each end has a sending and a receiving half:

sending     number from 1; at most `credit` frames unacknowledged; the rest waits in a bounded
            queue and is packed into as few frames as the limits allow when room appears
receiving   number = next       take it, then what is stashed behind it
            number < next       a duplicate: acknowledge again
            number > next       stash it if it is within `credit`, else forget it unacknowledged
            number beyond twice the credit, from what was acknowledged: WINDOW_EXCEEDED

An acknowledgement names the last number that was processed, and the stashed numbers: those
stay the sender's until the cumulative acknowledgement passes them, but are sent again four times
later than others.  A frame is sent again after `resend_s`, doubling; when the peer has taken nothing for
`give_up_s` the link has failed and `abandon` hands back everything that was not acknowledged.

A slow peer is not a dead one: both times are counted anew from each frame that it takes.  And nobody is buried under
copies of what he has not read yet: they wait for twice as long as he took for the last frame, half of `give_up_s` at
most, and at most one full frame is sent again at a time.

What waits is bounded in items and in bytes, and so is the stash: early frames are rare on links that are TCP.

With `deferred=True` what was received counts as processed only when `processed` says so:
a client acknowledges what is in its state file, not what is in its memory; a connector what a client may
send at the rate it is allowed (token_bucket.py).
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
    """`credit` and `frame_items` are counts, `queue` is items; times are seconds.

    `queue_bytes` bounds what waits, beyond its last item, and `stash_bytes` what came early.
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
    """A frame under way."""

    __slots__ = ("first_sent", "held", "items", "resend_at", "size", "wait_s")

    def __init__(self, items: tuple[Out, ...], size: int, now: float, wait_s: float) -> None:
        self.items = items
        self.size = size
        self.first_sent = now
        self.wait_s = wait_s
        self.resend_at = now + wait_s
        self.held = False


class Window(Generic[Out, In]):
    """Both halves of one end of a link."""

    __slots__ = (
        "_ack_due",
        "_ack_wanted",
        "_acked",
        "_awaited",
        "_deferred",
        "_flights",
        "_next_number",
        "_options",
        "_progress_at",
        "_queue",
        "_queue_bytes",
        "_quiet_until",
        "_received",
        "_resend_from",
        "_rto_s",
        "_size_of",
        "_size_of_received",
        "_sizes",
        "_stash",
        "_stash_bytes",
        "credit",
        "link",
        "processed_number",
        "resent",
    )  # fmt: skip

    def __init__(
        self, link: int, options: WindowOptions, size_of: Callable[[Out], int], *, deferred: bool = False,
        size_of_received: Callable[[In], int] | None = None,
    ) -> None:  # fmt: skip
        """`size_of_received` is asked about early frames alone; without it they have no size."""
        assert 0 < options.credit <= LIST_MAX, "what is stashed has to fit into an acknowledgement"
        self.link = link
        self.credit = options.credit
        self.processed_number = 0
        self.resent = 0
        self._options = options
        self._size_of = size_of
        self._size_of_received = size_of_received
        self._deferred = deferred
        # Lists: an empty deque takes 760 bytes, and nearly all windows are empty.
        self._queue: list[Out] = []
        self._sizes: list[int] = []
        """Of what is in the queue."""
        self._queue_bytes = 0
        self._flights: dict[int, _Flight[Out]] = {}
        self._next_number = 1
        self._resend_from = inf
        """Nothing is due again before.  Asked for at every turn of every link, so it is not searched for."""
        self._progress_at = -inf
        """When the peer last took a frame."""
        self._rto_s = options.resend_s
        """How long it is waited for progress before anything is sent again."""
        self._quiet_until = -inf
        """Nothing is sent again before, whatever is due."""
        self._received = 0
        self._stash: dict[int, tuple[In, ...]] = {}
        self._stash_bytes = 0
        self._ack_due = False
        self._ack_wanted = False
        """A frame came twice or early: the peer does not know what we have."""
        self._acked = 0
        """What the peer was told last."""
        self._awaited = 0
        """The last frame whose acknowledgement somebody waits for."""

    # ---- sending half

    @property
    def queued(self) -> int:
        """Items that wait for room."""
        return len(self._queue)

    @property
    def unacknowledged(self) -> int:
        """Frames under way."""
        return len(self._flights)

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing is under way, no acknowledgement is owed."""
        return not self._queue and not self._flights and not self._ack_due

    def push(self, item: Out) -> bool:
        """Queue an item; False (and nothing happens) when the queue is full."""
        if len(self._queue) >= self._options.queue or self._queue_bytes >= self._options.queue_bytes:
            return False
        size = self._size_of(item)
        self._queue.append(item)
        self._sizes.append(size)
        self._queue_bytes += size
        return True

    def take(self, now: float) -> list[Data[Out]]:
        """The frames that may be sent now, each carrying an acknowledgement of the other direction."""
        frames: list[Data[Out]] = []
        while self._queue and len(self._flights) < self.credit:
            items, size = self._pack()
            number = self._next_number
            self._next_number = number + 1
            self._flights[number] = _Flight(items, size, now, self._options.resend_s)
            self._resend_from = min(self._resend_from, now + self._options.resend_s)
            frames.append(self._frame(number, items))
        return frames

    def _pack(self) -> tuple[tuple[Out, ...], int]:
        """The items of the next frame, and their size."""
        queue, sizes = self._queue, self._sizes
        count, size, most_bytes = 1, sizes[0], self._options.frame_bytes
        most = min(len(sizes), self._options.frame_items)
        while count < most and size + sizes[count] <= most_bytes:
            size += sizes[count]
            count += 1
        items = tuple(queue[:count])
        del queue[:count], sizes[:count]
        self._queue_bytes -= size
        return items, size

    def _frame(self, number: int, items: tuple[Out, ...]) -> Data[Out]:
        self._told()
        return Data(self.link, number, self.processed_number, tuple(self._stash), items)

    def acknowledged(self, ack: int, stash: tuple[int, ...], now: float) -> list[Out]:
        """Take in an acknowledgement; the items that are the other end's now, in order.

        Raises PeerError for a number that was never sent.
        """
        if ack >= self._next_number:
            raise PeerError(Code.MALFORMED, f"frame {ack} was acknowledged but never sent")
        done: list[Out] = []
        flights = self._flights
        waited_s = 0.0
        while flights:
            number = next(iter(flights))
            if number > ack:
                break
            taken = flights.pop(number)
            waited_s = max(waited_s, now - max(taken.first_sent, self._progress_at))
            done.extend(taken.items)
        if done:
            # Somebody who took so long takes as long for the next; but what is lost is sent again before giving up.
            self._rto_s = max(self._options.resend_s, min(2 * waited_s, self._options.give_up_s / 2))
            self._progress_at = now
            self._quiet_until = now + self._rto_s
        if not flights:
            self._resend_from = inf
        for number in stash:
            flight = flights.get(number)
            if flight is not None and not flight.held:
                # It is the frame before it that is missing.
                flight.held = True
                flight.wait_s *= 4
                flight.resend_at = now + flight.wait_s
        return done

    def resend(self, now: float) -> list[Data[Out]]:
        """The frames that are due again, at most one full frame of them: what is left over waits as long again."""
        frames: list[Data[Out]] = []
        if now < self._resend_from or now < self._quiet_until:
            return frames
        size = 0
        for number, flight in self._flights.items():
            if flight.resend_at > now:
                continue
            size += flight.size
            if frames and size > self._options.frame_bytes:
                self._quiet_until = now + self._rto_s
                return frames
            flight.wait_s *= 2
            flight.resend_at = now + flight.wait_s
            self.resent += 1
            frames.append(self._frame(number, flight.items))
        self._resend_from = min((flight.resend_at for flight in self._flights.values()), default=inf)
        return frames

    def waits_since(self) -> float | None:
        """When the oldest frame that is not acknowledged was sent first."""
        for flight in self._flights.values():
            return flight.first_sent
        return None

    def failed(self, now: float) -> bool:
        """Whether frames are under way and the peer took none for too long."""
        return now >= self._give_up_at()

    def _give_up_at(self) -> float:
        for flight in self._flights.values():
            return max(flight.first_sent, self._progress_at) + self._options.give_up_s
        return inf

    def abandon(self) -> list[Out]:
        """Everything that was not acknowledged, in order.  The window is empty after that."""
        items = [item for flight in self._flights.values() for item in flight.items]
        items.extend(self._queue)
        self._flights.clear()
        self._queue.clear()
        self._sizes.clear()
        self._queue_bytes = 0
        self._resend_from = inf
        return items

    # ---- receiving half

    def receive(self, number: int, items: tuple[In, ...]) -> list[In]:
        """Take in a data frame; what can be processed now, in order.

        Raises PeerError when the peer sent more than it had credit for.
        """
        self._ack_due = True
        expected = self._received + 1
        if number > self.processed_number + 1 + 2 * self._options.credit:
            taken = self.processed_number
            raise PeerError(Code.WINDOW_EXCEEDED, f"frame {number} is beyond the window, {taken} was acknowledged")
        if number != expected:
            self._ack_wanted = True
            if number < 1:
                raise PeerError(Code.MALFORMED, "frames are numbered from 1")
            if expected < number < expected + self._options.credit and number not in self._stash:
                self._keep_early(number, items)
            return []
        ready = list(items)
        while self._stash and (following := self._stash.pop(number + 1, None)) is not None:
            self._stash_bytes -= self._size(following)
            ready.extend(following)
            number += 1
        self._received = number
        if not self._deferred:
            self.processed_number = number
        return ready

    def _keep_early(self, number: int, items: tuple[In, ...]) -> None:
        size = self._size(items)
        if self._stash_bytes + size <= self._options.stash_bytes:
            self._stash[number] = items
            self._stash_bytes += size

    def _size(self, items: tuple[In, ...]) -> int:
        return sum(map(self._size_of_received, items)) if self._size_of_received is not None else 0

    @property
    def received_number(self) -> int:
        """The last frame whose items were given out."""
        return self._received

    def processed(self, number: int) -> None:
        """With `deferred`: everything up to this frame is safe now and may be acknowledged."""
        assert self.processed_number <= number <= self._received
        self.processed_number = number
        self._ack_due = True

    @property
    def owes_ack(self) -> bool:
        """Whether there is something to acknowledge that no data frame carried."""
        return self._ack_due

    @property
    def ack_is_urgent(self) -> bool:
        """Whether the peer waits for it, or soon will: half of what it may send is not acknowledged."""
        acked = self._acked
        return self._ack_wanted or acked < self._awaited or 2 * (self.processed_number - acked) >= self.credit

    def ack_at_once(self) -> None:
        """Somebody waits for the acknowledgement of what was given out last."""
        self._awaited = self._received

    def pending_ack(self) -> Ack | None:
        """The acknowledgement that is owed and that no data frame carried."""
        if not self._ack_due:
            return None
        self._told()
        return Ack(self.link, self.processed_number, tuple(self._stash))

    def _told(self) -> None:
        self._ack_due = self._ack_wanted = False
        self._acked = self.processed_number

    def next_deadline(self) -> float | None:
        """When `resend` or `failed` should be asked again: not later than something is due, at times earlier."""
        if not self._flights:
            return None
        return min(self._give_up_at(), max(self._resend_from, self._quiet_until))
