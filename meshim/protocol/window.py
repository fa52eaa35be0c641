"""The window: numbered frames, in order and once, over a link that may lose, double or delay them.

One state machine serves client links (a frame is a few envelopes) and mesh links (a frame
is a bundle).  Each end has a sending and a receiving half:

sending     number from 1; at most `credit` frames unacknowledged; the rest waits in a bounded
            queue and is packed into as few frames as the limits allow when room appears
receiving   number = next       take it, then what is stashed behind it
            number < next       a duplicate: acknowledge again
            number > next       stash it if it is within `credit`, else forget it unacknowledged
            number > next+2*credit   the peer broke its credit: WINDOW_EXCEEDED

An acknowledgement names the last number that was processed, and the stashed numbers: those
stay the sender's until the cumulative acknowledgement passes them, but are sent again four times
later than others.  A frame is sent again after `resend_s`, doubling; when one is unacknowledged for
`give_up_s` the link has failed and `abandon` hands back everything that was not acknowledged.

With `deferred=True` what was received counts as processed only when `processed` says so:
a client acknowledges what is in its state file, not what is in its memory.
"""

from collections import deque
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
    """`credit` and `frame_items` are counts, `queue` is items; times are seconds."""

    credit: int
    queue: int
    frame_items: int
    frame_bytes: int
    resend_s: float
    give_up_s: float


class _Flight(Generic[Out]):
    """A frame under way."""

    __slots__ = ("first_sent", "held", "items", "resend_at", "wait_s")

    def __init__(self, items: tuple[Out, ...], now: float, wait_s: float) -> None:
        self.items = items
        self.first_sent = now
        self.wait_s = wait_s
        self.resend_at = now + wait_s
        self.held = False


class Window(Generic[Out, In]):
    """Both halves of one end of a link."""

    __slots__ = (
        "_ack_due", "_deferred", "_flights", "_next_number", "_options", "_queue", "_received", "_resend_from",
        "_size_of", "_stash", "credit", "link", "processed_number", "resent",
    )  # fmt: skip

    def __init__(
        self, link: int, options: WindowOptions, size_of: Callable[[Out], int], *, deferred: bool = False
    ) -> None:
        assert 0 < options.credit <= LIST_MAX, "what is stashed has to fit into an acknowledgement"
        self.link = link
        self.credit = options.credit
        self.processed_number = 0
        self.resent = 0
        self._options = options
        self._size_of = size_of
        self._deferred = deferred
        self._queue: deque[Out] = deque()
        self._flights: dict[int, _Flight[Out]] = {}
        self._next_number = 1
        self._resend_from = inf
        """Nothing is due again before.  Asked for at every turn of every link, so it is not searched for."""
        self._received = 0
        self._stash: dict[int, tuple[In, ...]] = {}
        self._ack_due = False

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
        if len(self._queue) >= self._options.queue:
            return False
        self._queue.append(item)
        return True

    def take(self, now: float) -> list[Data[Out]]:
        """The frames that may be sent now, each carrying an acknowledgement of the other direction."""
        frames: list[Data[Out]] = []
        while self._queue and len(self._flights) < self.credit:
            items = self._pack()
            number = self._next_number
            self._next_number = number + 1
            self._flights[number] = _Flight(items, now, self._options.resend_s)
            self._resend_from = min(self._resend_from, now + self._options.resend_s)
            frames.append(self._frame(number, items))
        return frames

    def _pack(self) -> tuple[Out, ...]:
        queue, size_of = self._queue, self._size_of
        items = [queue.popleft()]
        if not queue:
            return (items[0],)
        size, most, most_bytes = size_of(items[0]), self._options.frame_items, self._options.frame_bytes
        while queue and len(items) < most:
            size += size_of(queue[0])
            if size > most_bytes:
                break
            items.append(queue.popleft())
        return tuple(items)

    def _frame(self, number: int, items: tuple[Out, ...]) -> Data[Out]:
        self._ack_due = False
        return Data(self.link, number, self.processed_number, tuple(self._stash), items)

    def acknowledged(self, ack: int, stash: tuple[int, ...], now: float) -> list[Out]:
        """Take in an acknowledgement; the items that are the other end's now, in order.

        Raises PeerError for a number that was never sent.
        """
        if ack >= self._next_number:
            raise PeerError(Code.MALFORMED, f"frame {ack} was acknowledged but never sent")
        done: list[Out] = []
        flights = self._flights
        while flights:
            number = next(iter(flights))
            if number > ack:
                break
            done.extend(flights.pop(number).items)
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
        """The frames that are due again."""
        frames: list[Data[Out]] = []
        if now < self._resend_from:
            return frames
        for number, flight in self._flights.items():
            if flight.resend_at <= now:
                flight.wait_s *= 2
                flight.resend_at = now + flight.wait_s
                self.resent += 1
                frames.append(self._frame(number, flight.items))
        self._resend_from = min((flight.resend_at for flight in self._flights.values()), default=inf)
        return frames

    def failed(self, now: float) -> bool:
        """Whether the oldest frame was unacknowledged for too long."""
        for flight in self._flights.values():
            return now - flight.first_sent >= self._options.give_up_s
        return False

    def abandon(self) -> list[Out]:
        """Everything that was not acknowledged, in order.  The window is empty after that."""
        items = [item for flight in self._flights.values() for item in flight.items]
        items.extend(self._queue)
        self._flights.clear()
        self._queue.clear()
        self._resend_from = inf
        return items

    # ---- receiving half

    def receive(self, number: int, items: tuple[In, ...]) -> list[In]:
        """Take in a data frame; what can be processed now, in order.

        Raises PeerError when the peer sent more than it had credit for.
        """
        self._ack_due = True
        expected = self._received + 1
        if number != expected:
            if number < 1:
                raise PeerError(Code.MALFORMED, "frames are numbered from 1")
            if number > expected + 2 * self._options.credit:
                raise PeerError(Code.WINDOW_EXCEEDED, f"frame {number} is beyond the window, {expected} was expected")
            if expected < number < expected + self._options.credit:
                self._stash.setdefault(number, items)
            return []
        ready = list(items)
        while self._stash and (following := self._stash.pop(number + 1, None)) is not None:
            ready.extend(following)
            number += 1
        self._received = number
        if not self._deferred:
            self.processed_number = number
        return ready

    @property
    def received_number(self) -> int:
        """The last frame whose items were given out."""
        return self._received

    def processed(self, number: int) -> None:
        """With `deferred`: everything up to this frame is safe now and may be acknowledged."""
        assert self.processed_number <= number <= self._received
        self.processed_number = number
        self._ack_due = True

    def pending_ack(self) -> Ack | None:
        """The acknowledgement that is owed and that no data frame carried."""
        if not self._ack_due:
            return None
        self._ack_due = False
        return Ack(self.link, self.processed_number, tuple(self._stash))

    def next_deadline(self) -> float | None:
        """When `resend` or `failed` should be asked again: not later than something is due, at times earlier."""
        if not self._flights:
            return None
        oldest = next(iter(self._flights.values()))
        return min(oldest.first_sent + self._options.give_up_s, self._resend_from)
