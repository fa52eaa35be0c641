"""The sync lease against a dictionary: claims, pages, marks and releases in any order.

There are two devices of one user, whose queues grow.  Connectors keep every fencing token that they ever had and go on
using it, as a stopped connector does when it wakes (R3, R11).  The dictionary has the exact result of each call.  In
memory, on SQLite and on MariaDB; `test_queues.py` tests concurrent calls.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from meshim.errors import Fenced
from meshim.protocol.routing import partition_of
from meshim.stores.ports import Device, Page, User
from meshim.wire.envelope import decode_envelope
from tests.contract.sql.backends import (
    NOW,
    PARTITIONS,
    Backend,
    MemoryBackend,
    Ports,
    device_of,
    entry,
    open_sql_backend,
    person,
)

T = TypeVar("T")

LEASE_S = 3_600.0
"""Longer than any test: a lease ends earlier only if it was claimed for 0 s or the test ends it."""
WHICH = st.integers(0, 1)
OWNER = st.sampled_from(["c1", "c2", "c3"])
SESSION = st.integers(1, 6)
BACK = st.sampled_from([0, 0, 0, 0, 1, 2, 5])
"""How many fencing tokens back: 0 is the latest of the device."""

_positions = itertools.count(1)


@dataclass
class Queue:
    """The model of one queue."""

    device: Device
    owner: str = ""
    session: int = 0
    ended: bool = True
    fences: list[int] = field(default_factory=lambda: [0])
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(position, index) by seq, in the order stored."""
    unread: set[int] = field(default_factory=set)
    ids: dict[int, int] = field(default_factory=dict)
    """seq by row id, of every row that was ever paged."""


class QueueLease(RuleBasedStateMachine):
    def __init__(self, backend: Backend, processes: Sequence[Ports], runner: asyncio.Runner) -> None:
        super().__init__()
        self.backend = backend
        self.runner = runner
        self.processes = processes
        self.user: User = self.run(person(self.ports(0)))
        self.partition = partition_of(self.user.user_id, PARTITIONS)
        self.queues = [Queue(self.run(device_of(self.ports(0), self.user, name))) for name in ("phone", "laptop")]
        self.through = 0
        self.seqs = itertools.count(1)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def ports(self, process: int) -> Ports:
        return self.processes[process]

    # ---- rows

    @rule(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2), to=st.sampled_from([(0,), (1,), (0, 1)]))
    def store(self, sizes: list[int], to: tuple[int, ...]) -> None:
        claim = self.run(self.ports(0).partitions.claim(self.partition, "writer", LEASE_S))
        assert claim is not None
        records = []
        self.through = max(self.through, claim[1])
        for size in sizes:
            position = self.through = max(self.through + 1, next(_positions))
            bundle = [next(self.seqs) for _ in range(size)]
            devices = [self.queues[at].device for at in to]
            records.append((position, [entry(self.user, seq, devices) for seq in bundle]))
            for at, (index, seq) in itertools.product(to, enumerate(bundle)):
                self.queues[at].rows[seq] = (position, index)
                self.queues[at].unread.add(seq)
        self.run(self.ports(0).partitions.write(self.partition, claim[0], self.through, records, NOW))

    # ---- the lease

    @rule(at=WHICH, process=WHICH, owner=OWNER, session=SESSION, lease_s=st.sampled_from([LEASE_S, LEASE_S, 0.0]))
    def claim(self, at: int, process: int, owner: str, session: int, lease_s: float) -> None:
        queue = self.queues[at]
        fence = self.run(self.ports(process).queues.claim(queue.device.device_id, owner, session, lease_s))
        # A lease that lasts longer than twice the requested time was taken before the clock stepped back.
        if queue.ended or lease_s == 0.0 or owner == queue.owner or session >= queue.session:
            assert fence is not None
            assert fence > queue.fences[-1], "fencing tokens ascend"
            queue.fences.append(fence)
            queue.owner, queue.session, queue.ended = owner, session, lease_s == 0.0
        else:
            assert fence is None, "another owner holds the lease"

    @rule(at=WHICH, process=WHICH, back=BACK)
    def release(self, at: int, process: int, back: int) -> None:
        queue, fence = self.queues[at], self.fence(at, back)
        self.run(self.ports(process).queues.release(queue.device.device_id, fence))
        queue.ended = queue.ended or fence == queue.fences[-1]
        queue.owner = "" if fence == queue.fences[-1] else queue.owner

    @rule()
    def every_lease_ends(self) -> None:
        self.run(self.backend.end_leases())
        for queue in self.queues:
            queue.ended = True

    @rule(at=WHICH, epoch=st.integers(2, 9))
    def log_in_without_the_state_file(self, at: int, epoch: int) -> None:
        """R14: the queue and its lease do not change."""
        device = self.queues[at].device
        again = self.run(device_of(self.ports(0), self.user, device.name, epoch=epoch))
        assert again.device_id == device.device_id

    def fence(self, at: int, back: int) -> int:
        fences = self.queues[at].fences
        return fences[max(-len(fences), -1 - back)]

    # ---- only the latest fencing token reads and marks

    @rule(at=WHICH, process=WHICH, back=BACK, after=st.integers(-1, 8), limit=st.integers(1, 6))
    def page(self, at: int, process: int, back: int, after: int, limit: int) -> None:
        queue, fence = self.queues[at], self.fence(at, back)
        order = list(queue.rows.values())
        beyond = order[after] if 0 <= after < len(order) else (0, -1)
        try:
            page = self.run(self.read(queue, process, fence, beyond, limit))
        except Fenced:
            assert fence != queue.fences[-1], "the holder was fenced"
            return
        assert fence == queue.fences[-1], "a fenced connector read"
        expected = [seq for seq, position in queue.rows.items() if seq in queue.unread and position > beyond]
        seqs = [decode_envelope(row.envelope).seq for row in page.rows]
        assert seqs == expected[:limit]
        assert [(row.position, row.index) for row in page.rows] == [queue.rows[seq] for seq in seqs]
        assert page.more == (len(expected) > limit)
        assert page.through >= self.through
        queue.ids |= {row.row_id: seq for row, seq in zip(page.rows, seqs, strict=True)}
        if queue.owner:  # a released queue stays free
            queue.ended = False

    async def read(self, queue: Queue, process: int, fence: int, after: tuple[int, int], limit: int) -> Page:
        queues = self.ports(process).queues
        return await queues.page(self.user.user_id, queue.device.device_id, fence, after, limit, 1 << 30, LEASE_S)

    @rule(at=WHICH, process=WHICH, limit=st.integers(1, 3))
    def reading_renews_the_lease(self, at: int, process: int, limit: int) -> None:
        self.every_lease_ends()
        self.page(at, process, 0, -1, limit)
        self.claim(at, 1 - process, "late", 0, LEASE_S)

    @precondition(lambda self: any(queue.ids for queue in self.queues))
    @rule(at=WHICH, process=WHICH, back=BACK, which=st.sets(st.integers(0, 12), max_size=5), foreign=st.booleans())
    def mark(self, at: int, process: int, back: int, which: set[int], foreign: bool) -> None:
        """Mark rows that were paged, of this device or of the other, some of them a second time."""
        queue, fence = self.queues[at], self.fence(at, back)
        known = list(self.queues[1 - at if foreign else at].ids)
        ids = [known[number] for number in which if number < len(known)]
        try:
            self.run(self.ports(process).queues.mark_read(queue.device.device_id, fence, ids))
        except Fenced:
            assert fence != queue.fences[-1], "the holder was fenced"
            return
        assert fence == queue.fences[-1], "a fenced connector marked"
        queue.unread -= {queue.ids[row_id] for row_id in ids if row_id in queue.ids}

    @rule(process=WHICH)
    def check(self, process: int) -> None:
        keys = [(self.user.user_id, queue.device.device_id) for queue in self.queues]
        positions, waiting = self.run(self.ports(process).queues.check(keys))
        assert positions.keys() == {self.partition}
        assert positions[self.partition] >= self.through
        assert waiting == {queue.device.device_id for queue in self.queues if queue.unread}

    def teardown(self) -> None:
        """The last claim finds exactly the unmarked rows, in order."""
        self.check(0)
        for at, queue in enumerate(self.queues):
            self.claim(at, 0, "last", 1 << 52, LEASE_S)
            self.page(at, 1, 0, -1, len(queue.rows) + 1)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def check(backend: Backend, runner: asyncio.Runner, examples: int) -> None:
    processes = (backend.process(), backend.process())
    run_state_machine_as_test(
        lambda: QueueLease(backend, processes, runner),  # type: ignore[arg-type]  # annotated as a class, documented as a factory
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink) if isinstance(backend, MemoryBackend) else (Phase.generate,),
        ),
    )


def test_queue_lease_in_memory(runner: asyncio.Runner) -> None:
    check(MemoryBackend(), runner, 150)


@pytest.mark.parametrize(("database", "examples"), [("sqlite", 25), ("mariadb", 12)])
def test_queue_lease_on_sql(
    request: pytest.FixtureRequest, runner: asyncio.Runner, database: str, examples: int
) -> None:
    url = str(request.getfixturevalue(f"{database}_with_tables"))
    opened = open_sql_backend(url)
    backend = runner.run(opened.__aenter__())
    try:
        check(backend, runner, examples)
    finally:
        runner.run(opened.__aexit__(None, None, None))
