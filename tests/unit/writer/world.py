"""The backends of writer cores as dictionaries: a log, a database, a dead-letter stream, connectors.

Every action takes two steps, `happen` and `answer`, and a test may do anything in between: so a process may crash
after its commit and before the answer, or commit late.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from meshim.stores.ports import Binding, FullQueue, LogMessage, QueueKey, QueueUsage, Size, UserPresence, Written
from meshim.wire.codec import encode
from meshim.wire.offline_log import Entry, Record, decode_record, encode_record
from meshim.writer.core import WriterCore
from meshim.writer.events import (
    Acknowledge,
    Acknowledged,
    Action,
    AnnounceFull,
    BatchWritten,
    Claim,
    ClaimDenied,
    Claimed,
    CountQueues,
    DeadLetterPublished,
    DropIdleDevices,
    Ensure,
    Event,
    Extend,
    Extended,
    Failed,
    FencedOff,
    Fetch,
    FullAnnounced,
    IdleDevicesDropped,
    LogEnsured,
    MessagesFetched,
    MessagesRead,
    PresenceRead,
    PublishDeadLetter,
    Purge,
    Purged,
    QueuesCounted,
    Read,
    ReadPresence,
    Release,
    Released,
    SendWakeUps,
    WakeUpsSent,
    Write,
    WritersLiving,
)
from meshim.writer.options import MaintenanceOptions, PipelineOptions, QuotaOptions, WriterOptions
from meshim.writer.statistics import Statistics

REFUSED = b"refused"
"""The database refuses an entry with this envelope."""
GARBAGE = b"\xc1"
"""Does not decode."""
LEASE_S = 6.0
QUOTA = QuotaOptions(rows=1000, bytes=1_000_000)


def options(name: str, partitions: int = 2, records: int = 4, quota: QuotaOptions = QUOTA) -> WriterOptions:
    return WriterOptions(
        name=name,
        seed=sum(name.encode()),
        partitions=partitions,
        partition_lease_s=LEASE_S,
        pipeline=PipelineOptions(records=records, batch_bytes=4096, extend_s=2.0, quota=quota),
        maintenance=MaintenanceOptions(),
    )


A = TypeVar("A", bound=Action)


class Row(NamedTuple):
    partition: int
    position: int
    entry_index: int
    user: int
    device: int
    envelope: bytes


class Lease(NamedTuple):
    owner: str
    until: float


class World:
    """The backends; `rows` are in the order of the inserts."""

    def __init__(self, partitions: int = 2) -> None:
        self.now = 1000.0
        self.log: dict[int, dict[int, bytes]] = {p: {} for p in range(partitions)}
        """By partition and position: the messages that are not acknowledged."""
        self.streams: set[int] = set()
        self.last: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self.delivered: dict[int, set[int]] = {p: set() for p in range(partitions)}
        self.acknowledged: set[tuple[int, int]] = set()
        self.dead_lettered: dict[tuple[int, int], list[bytes]] = {}
        self.positions: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self.fences: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self.leases: dict[int, Lease] = {}
        self.rows: list[Row] = []
        self.read: set[Row] = set()
        self.full: dict[int, tuple[FullQueue, ...]] = {}
        """By user: what was announced last."""
        self.keys: set[tuple[int, bytes]] = set()
        self.bindings: dict[int, Binding] = {}
        self.wake_ups: list[tuple[int, tuple[tuple[int, int], ...]]] = []
        self.to_purge = 0
        self.purges: list[str] = []

    def publish(self, partition: int, data: bytes) -> int:
        self.last[partition] += 1
        self.log[partition][self.last[partition]] = data
        return self.last[partition]

    def redeliver(self, partition: int) -> None:
        """Let the log deliver all its messages again."""
        self.delivered[partition].clear()

    # ---- actions

    def happen(self, action: Action, owner: str) -> Event:
        """Let the action of this writer take effect; return the answer."""
        match action:
            case Claim(partition):
                return self._claim(partition, owner)
            case Release(partition, fence):
                if self.fences[partition] == fence:
                    self.leases.pop(partition, None)
                return Released(partition)
            case Write():
                return self._write(action)
            case ReadPresence(partition, users):
                bindings = {user: self.bindings[user] for user in users if user in self.bindings}
                return PresenceRead(partition, {u: UserPresence((s.device,), (s,)) for u, s in bindings.items()})
            case SendWakeUps(partition, wake_ups):
                self.wake_ups.extend((incarnation, wake_up.devices) for incarnation, wake_up in wake_ups)
                return WakeUpsSent(partition, sum(len(wake_up.devices) for _, wake_up in wake_ups), 0)
            case CountQueues(partition, queues, rows_max):
                return QueuesCounted(partition, self._usage(queues, rows_max))
            case AnnounceFull(partition, users):
                self.full.update(users)
                return FullAnnounced(partition)
            case Purge(most):
                self.purges.append(owner)
                rows = min(most, self.to_purge)
                self.to_purge -= rows
                return Purged(rows)
            case DropIdleDevices():
                return IdleDevicesDropped(0)
            case _:
                return self._log(action)

    def _log(self, action: Ensure | Fetch | Read | Extend | Acknowledge | PublishDeadLetter) -> Event:
        match action:
            case Ensure(partition, first):
                if partition not in self.streams:
                    assert first > self.positions[partition]
                    self.streams.add(partition)
                    self.last[partition] = max(self.last[partition], first - 1)
                return LogEnsured(partition)
            case Fetch(partition, most):
                assert partition in self.streams
                ready = [p for p in sorted(self.log[partition]) if p not in self.delivered[partition]][:most]
                self.delivered[partition].update(ready)
                return MessagesFetched(partition, tuple(LogMessage(p, self.log[partition][p]) for p in ready))
            case Read(partition, positions):
                return MessagesRead(partition, tuple((p, self.log[partition].get(p)) for p in positions))
            case Extend(partition, _):
                return Extended(partition)
            case Acknowledge(partition, positions):
                for position in positions:
                    self.acknowledged.add((partition, position))
                    self.log[partition].pop(position, None)
                return Acknowledged(partition)
            case PublishDeadLetter(partition, position, _, data):
                self.dead_lettered.setdefault((partition, position), []).append(data)
                return DeadLetterPublished(partition)

    def _claim(self, partition: int, owner: str) -> Event:
        held = self.leases.get(partition)
        if held is not None and held.owner != owner and held.until > self.now:
            return ClaimDenied(partition)
        if held is None or held.owner != owner:
            self.fences[partition] += 1
        self.leases[partition] = Lease(owner, self.now + LEASE_S)
        return Claimed(partition, self.fences[partition], self.positions[partition])

    def _write(self, action: Write) -> Event:
        partition = action.partition
        if action.fence != self.fences[partition]:
            return FencedOff(partition)
        assert action.through >= self.positions[partition], "the position only rises"
        queues: dict[QueueKey, Size] = {}
        refused: list[tuple[int, Entry, str]] = []
        for position, entries in action.records:
            for index, entry in enumerate(entries):
                if entry.envelope == REFUSED:
                    refused.append((position, entry, "too long"))
                    continue
                for device in entry.devices:
                    rows, size = queues.get(QueueKey(entry.user, device), (0, 0))
                    queues[QueueKey(entry.user, device)] = Size(rows + 1, size + len(entry.envelope))
                    if (device, entry.envelope) not in self.keys:
                        self.keys.add((device, entry.envelope))
                        self.rows.append(Row(partition, position, index, entry.user, device, entry.envelope))
        self.positions[partition] = action.through
        devices = tuple((user, device) for user, device in queues)
        return BatchWritten(partition, Written(devices, tuple(refused), 0, queues))

    def unread(self, device: int) -> list[Row]:
        return [row for row in self.rows if row.device == device and row not in self.read]

    def _usage(self, queues: tuple[tuple[QueueKey, int], ...], rows_max: int) -> dict[QueueKey, QueueUsage]:
        """The sender of a row is the first byte of its envelope; a head is the place of a row among all rows."""
        found: dict[QueueKey, QueueUsage] = {}
        for queue, known in queues:
            unread = self.unread(queue.device)
            head = self.rows.index(unread[0]) + 1 if unread else 0
            if head == known:
                continue
            senders: dict[int, Size] = {}
            for row in unread[:rows_max]:
                rows, size = senders.get(row.envelope[0], (0, 0))
                senders[row.envelope[0]] = Size(rows + 1, size + len(row.envelope))
            found[queue] = QueueUsage(head, senders)
        return found

    # ---- promises

    def check(self, published: dict[tuple[int, int], bytes], lost: Iterable[tuple[int, int]] = ()) -> None:
        """Assert the promises that hold at every moment."""
        for partition, position in self.positions.items():
            rows = [(row.position, row.entry_index) for row in self.rows if row.partition == partition]
            assert rows == sorted(rows), "rows are inserted in the order of the log"
            assert all(at <= position for at, _ in rows), "no row is beyond the position that was committed with it"
            for at in range(1, position + 1):
                if (partition, at) in published and (partition, at) not in lost:
                    self._check_written(partition, at, published[partition, at])
        for partition, at in self.acknowledged:
            self._check_written(partition, at, published[partition, at])
            assert at <= self.positions[partition]
            if published[partition, at] == GARBAGE or REFUSED in published[partition, at]:
                assert (partition, at) in self.dead_lettered, "a message is acknowledged only after its dead letter"

    def _check_written(self, partition: int, at: int, data: bytes) -> None:
        if data == GARBAGE:
            return
        for entry in decode_record(data).entries:
            expected = [] if entry.envelope == REFUSED else [(partition, at, device) for device in entry.devices]
            found = [(r.partition, r.position, r.device) for r in self.rows if r.envelope == entry.envelope]
            assert found == expected, "each entry is written once"


class Process:
    """A writer process: a core, its actions that have not happened, and the answers that it has not got."""

    def __init__(
        self, world: World, name: str, incarnation: int = 1, partitions: int = 2, records: int = 4,
        quota: QuotaOptions = QUOTA,
    ) -> None:  # fmt: skip
        self.world = world
        self.name = name
        self.owner = f"{name}-{incarnation}"
        self.core = WriterCore(options(name, partitions, records, quota))
        self.pending: list[Action] = []
        self.answers: list[Event] = []

    def owned(self) -> tuple[int, ...]:
        return self.core.owned

    def ready(self) -> bool:
        return self.core.ready

    def stopped(self) -> bool:
        return self.core.stopped

    def statistics(self) -> Statistics:
        return self.core.statistics

    def tell(self, event: Event) -> None:
        self.pending.extend(self.core.receive(event, self.world.now))

    def tick(self) -> None:
        self.pending.extend(self.core.tick(self.world.now))

    def happen(self, which: int = 0) -> None:
        """Let a pending action take effect; its answer is under way."""
        self.answers.append(self.world.happen(self.pending.pop(which), self.owner))

    def fail(self, which: int = 0, *, after_the_effect: bool = False) -> None:
        """Let a pending action fail, with or without its effect."""
        action = self.pending.pop(which)
        if after_the_effect:
            self.world.happen(action, self.owner)
        self.answers.append(Failed(action))

    def answer(self, which: int = 0) -> None:
        self.tell(self.answers.pop(which))

    def run(self, rounds: int = 1000) -> None:
        """Perform all actions until only fetches are left that would find nothing."""
        for _ in range(rounds):
            which = next((i for i, action in enumerate(self.pending) if not self._idle(action)), None)
            if which is not None:
                self.happen(which)
            elif not self.answers:
                return
            if self.answers:
                self.answer()
        raise AssertionError("the actions do not end")

    def _idle(self, action: Action) -> bool:
        if not isinstance(action, Fetch):
            return False
        return not self.world.log[action.partition].keys() - self.world.delivered[action.partition]

    def answer_idle_fetches(self) -> None:
        for action in [action for action in self.pending if isinstance(action, Fetch)]:
            self.pending.remove(action)
            self.tell(self.world.happen(action, self.owner))


def record(*entries: tuple[int, tuple[int, ...], bytes]) -> bytes:
    return encode_record(tuple(Entry(*entry) for entry in entries))


def record_of_version(version: int) -> bytes:
    return encode(Record(version, ()))


def start(world: World, partitions: int = 1, records: int = 4, quota: QuotaOptions = QUOTA) -> Process:
    """Return a lone writer that has claimed all partitions and waits for messages."""
    process = Process(world, "w1", partitions=partitions, records=records, quota=quota)
    process.tell(WritersLiving(("w1",)))
    process.run()
    assert process.ready()
    assert process.owned() == tuple(range(partitions))
    return process


def take(process: Process, kind: type[A]) -> A:
    """Return the only pending action of this type; it stays pending."""
    (action,) = [action for action in process.pending if isinstance(action, kind)]
    return action


def step(process: Process, kind: type[Action]) -> None:
    """Let the only pending action of this type happen, and answer it."""
    process.happen(process.pending.index(take(process, kind)))
    process.answer()


def fail(process: Process, kind: type[Action], *, after_the_effect: bool = False) -> None:
    """Let the only pending action of this type fail, and answer it."""
    process.fail(process.pending.index(take(process, kind)), after_the_effect=after_the_effect)
    process.answer()
