"""Which offline queues of one partition are full, and of whose messages (docs/adr/0042).

::

    rows inserted ──as many as could fill a share──▶ count the queue ──somebody is full──▶ announce, renew
                                                          ▲                                   │
                                                          └── the first row has been read ────┘

A sender is full in a queue when it has there at least a third of what is free: alone it gets a quarter, and there is
always room for others.  The writer inserts every row, so it knows how much a queue can have grown since it was counted,
and counts again when that could matter.  What it does not know is what has been read since: that only makes it count
once too often.

At most one action of each kind is in flight.  What is known here is lost with the partition: the next owner begins with
a sixteenth of the limit for each queue.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from meshim.stores.ports import FullQueue, QueueKey, QueueUsage, Size
from meshim.writer.events import AnnounceFull, CountQueues, Failed, FullAnnounced, PartitionAction, QueuesCounted
from meshim.writer.options import QuotaOptions
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics

EVERYBODY = 0
"""In the place of a sender."""
SENDERS_MAX = 64
"""Senders in the announcement of one queue; more are stopped when the whole queue is full."""
_UNKNOWN_SHARE, _LEAST_SHARE = 16, 64
"""A queue that was never counted is when a 16th of its limit was inserted; no other sooner than after a 64th."""
_COUNTED_MAX = 16
"""Queues in one action, and users in one announcement."""
_UNKNOWN = -1
"""A head that no queue has: such a queue is counted in any case."""


class _Full(NamedTuple):
    """A queue of which `senders` have their share; `head` is its first row, and it is looked at again at `renew_at`."""

    senders: tuple[int, ...]
    head: int
    renew_at: float


def full_senders(senders: Mapping[int, Size], limit: Size) -> tuple[int, ...]:
    """Return who may put nothing more into a queue, the largest first; `EVERYBODY` when nobody may."""
    rows, size = sum(own.rows for own in senders.values()), sum(own.bytes for own in senders.values())
    if rows >= limit.rows or size >= limit.bytes:
        return (EVERYBODY,)
    full = [
        sender
        for sender, own in senders.items()
        if 3 * own.rows >= limit.rows - rows or 3 * own.bytes >= limit.bytes - size
    ]
    return tuple(sorted(full, key=lambda sender: (-senders[sender].bytes, -senders[sender].rows, sender)))


def room(senders: Mapping[int, Size], full: tuple[int, ...], limit: Size) -> Size:
    """Return how much may be inserted before anybody else could be full: rows and bytes, at least a 64th of the limit.

    A sender with p of the t that wait is full after x more of its own when 3 (p + x) = limit - (t + x).
    """
    others = [own for sender, own in senders.items() if sender not in full]
    rows, size = sum(own.rows for own in senders.values()), sum(own.bytes for own in senders.values())
    most_rows, most_bytes = max((own.rows for own in others), default=0), max((own.bytes for own in others), default=0)
    return Size(
        max((limit.rows - rows - 3 * most_rows) // 4, limit.rows // _LEAST_SHARE, 1),
        max((limit.bytes - size - 3 * most_bytes) // 4, limit.bytes // _LEAST_SHARE, 1),
    )


class QueueQuotas:
    """The queues of one partition that grow."""

    def __init__(
        self, partition: int, options: QuotaOptions, statistics: Statistics, jitter: Callable[[], float]
    ) -> None:  # fmt: skip
        self.handlers: dict[type[Any], Callable[[Any, float], None]] = {
            QueuesCounted: self._counted,
            FullAnnounced: self._announced,
        }
        self.failure_handlers: dict[type[Any], Callable[[Any, float], None]] = {
            CountQueues: self._count_failed,
            AnnounceFull: self._announce_failed,
        }
        self._partition = partition
        self._options = options
        self._limit = Size(options.rows, options.bytes)
        self._first = Size(max(options.rows // _UNKNOWN_SHARE, 1), max(options.bytes // _UNKNOWN_SHARE, 1))
        self._statistics = statistics
        self._left: dict[QueueKey, list[int]] = {}
        """Rows and bytes that may be inserted into a queue before it has to be counted."""
        self._to_count: dict[QueueKey, None] = {}
        self._counting: dict[QueueKey, int] = {}
        """The heads in the action in flight."""
        self._full: dict[QueueKey, _Full] = {}
        """In the order of `renew_at`."""
        self._full_of: dict[int, set[QueueKey]] = {}
        """By user: the keys of `_full`."""
        self._to_announce: dict[int, None] = {}
        """Users."""
        self._announcing: tuple[tuple[int, tuple[FullQueue, ...]], ...] = ()
        self._count_flight = SingleFlight(jitter)
        self._announce_flight = SingleFlight(jitter)

    @property
    def flights(self) -> tuple[SingleFlight, ...]:
        """All of them, for their deadlines."""
        return (self._count_flight, self._announce_flight)

    def next_deadline(self) -> float | None:
        """Return when a full queue is looked at again; None while that has to wait for an answer, or none is full."""
        if self._count_flight.busy or not self._full:
            return None
        return max(self._full[next(iter(self._full))].renew_at, self._count_flight.not_before)

    def inserted(self, queues: Mapping[QueueKey, Size]) -> None:
        """Take note of what a transaction has inserted, at most."""
        for queue, (rows, size) in queues.items():
            left = self._left.get(queue)
            if left is None:
                left = self._left[queue] = [*self._first]
            left[0] -= rows
            left[1] -= size
            if left[0] <= 0 or left[1] <= 0:
                self._to_count[queue] = None
        if len(self._left) > self._options.queues_max:
            self._forget()

    def _forget(self) -> None:
        """Forget the half of the queues in which the least was inserted."""
        by_left = sorted(self._left, key=lambda queue: min(self._share_left(queue)))
        self._left = {queue: self._left[queue] for queue in by_left[: self._options.queues_max // 2]}

    def _share_left(self, queue: QueueKey) -> tuple[float, float]:
        rows, size = self._left[queue]
        return rows / self._first.rows, size / self._first.bytes

    def advance(self, now: float) -> Iterator[PartitionAction]:
        """Start all that can be started."""
        if (queues := self._due(now)) and self._count_flight.start(now):
            self._counting = queues
            yield CountQueues(self._partition, tuple(queues.items()), self._limit.rows)
        if self._to_announce and self._announce_flight.start(now):
            users = list(self._to_announce)[:_COUNTED_MAX]
            for user in users:
                del self._to_announce[user]
            self._announcing = tuple((user, self._said_of(user)) for user in users)
            yield AnnounceFull(self._partition, self._announcing, self._options.announced_s)

    def _due(self, now: float) -> dict[QueueKey, int]:
        """Return the next queues to count, each with the head of which nothing has changed."""
        due = {queue: _UNKNOWN for queue, _ in zip(self._to_count, range(_COUNTED_MAX), strict=False)}
        for queue, full in self._full.items():
            if len(due) >= _COUNTED_MAX or full.renew_at > now:
                break
            due.setdefault(queue, full.head)
        return due

    def _said_of(self, user: int) -> tuple[FullQueue, ...]:
        return tuple(
            (queue.device, sender)
            for queue in sorted(self._full_of.get(user, ()))
            for sender in self._full[queue].senders[:SENDERS_MAX]
        )

    # ---------------------------------------------------------------- answers

    def _counted(self, event: QueuesCounted, now: float) -> None:
        self._count_flight.done()
        counting, self._counting = self._counting, {}
        for queue in counting:
            usage = event.found.get(queue)
            if usage is not None:
                self._count(queue, usage, now)
            elif (full := self._drop_full(queue)) is not None:
                self._keep_full(queue, full._replace(renew_at=now + self._options.renew_s))
        self._statistics.queues_counted += len(event.found)

    def _count(self, queue: QueueKey, usage: QueueUsage, now: float) -> None:
        self._to_count.pop(queue, None)
        senders = full_senders(usage.senders, self._limit)
        self._left[queue] = [*room(usage.senders, senders, self._limit)]
        was_full = self._drop_full(queue)
        if senders:
            self._statistics.queues_full += 1
            self._keep_full(queue, _Full(senders, usage.head, now + self._options.renew_s))
        elif was_full:
            self._to_announce[queue.user] = None

    def _keep_full(self, queue: QueueKey, full: _Full) -> None:
        self._full[queue] = full
        self._full_of.setdefault(queue.user, set()).add(queue)
        self._to_announce[queue.user] = None
        if len(self._full) > self._options.full_max:  # its announcement ends; what comes then has it counted again
            self._drop_full(next(iter(self._full)))

    def _drop_full(self, queue: QueueKey) -> _Full | None:
        full = self._full.pop(queue, None)
        if full is not None:
            queues = self._full_of[queue.user]
            queues.remove(queue)
            if not queues:
                del self._full_of[queue.user]
        return full

    def _count_failed(self, event: Failed, now: float) -> None:
        self._counting = {}
        self._count_flight.failed(now)

    def _announced(self, event: FullAnnounced, now: float) -> None:
        self._announce_flight.done()
        self._announcing = ()

    def _announce_failed(self, event: Failed, now: float) -> None:
        """While Redis is away nothing is refused (R9); what holds by then is said when it is back."""
        self._to_announce.update((user, None) for user, _ in self._announcing)
        self._announcing = ()
        self._announce_flight.failed(now)
