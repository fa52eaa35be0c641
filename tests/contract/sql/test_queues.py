"""The port `Queues`: stored messages of a device and the lease to sync them, in memory, on SQLite and on MariaDB."""

import asyncio

import pytest

from meshim.errors import Fenced
from meshim.stores.ports import Device, Page, Queues, User
from meshim.stores.sql import queues as sql_queues
from meshim.wire.envelope import decode_envelope
from tests.contract.sql.backends import (
    NOW,
    PARTITIONS,
    Backend,
    Ports,
    SqlBackend,
    device_of,
    entry,
    is_waiting,
    pause_after,
    person,
    processes,
)

LEASE_S = 60.0
START = (0, -1)
MANY = 1 << 30


class Mailbox:
    """A user with one device, and a writer of the user's partition."""

    def __init__(self, ports: Ports, user: User, device: Device) -> None:
        self.ports = ports
        self.user = user
        self.device = device
        self.id = device.device_id
        self.partition = user.user_id % PARTITIONS
        self.key = (user.user_id, device.device_id)

    async def store(self, *seqs: int, position: int, body: bytes = b"body") -> None:
        """Write one record with these messages."""
        claim = await self.ports.partitions.claim(self.partition, "writer", LEASE_S)
        assert claim is not None
        entries = [entry(self.user, seq, [self.device], body=body) for seq in seqs]
        await self.ports.partitions.write(self.partition, claim[0], position, [(position, entries)], NOW)

    async def claim(self, owner: str = "a", session: int = 1, queues: Queues | None = None) -> int:
        fence = await (queues or self.ports.queues).claim(self.id, owner, session, LEASE_S)
        assert fence is not None
        return fence

    async def page(self, fence: int, after: tuple[int, int] = START, rows: int = 100, size: int = MANY) -> Page:
        return await self.ports.queues.page(self.user.user_id, self.id, fence, after, rows, size, LEASE_S)


async def mailbox(ports: Ports) -> Mailbox:
    user = await person(ports)
    return Mailbox(ports, user, await device_of(ports, user))


@pytest.fixture
async def bob(ports: Ports) -> Mailbox:
    return await mailbox(ports)


def seqs(page: Page) -> list[int]:
    return [decode_envelope(row.envelope).seq for row in page.rows]


# ---------------------------------------------------------------- check


async def test_peek_returns_positions_and_devices_with_unread_rows(ports: Ports, bob: Mailbox) -> None:
    carol = await mailbox(ports)
    assert await ports.queues.check([]) == ({}, set())
    assert await ports.queues.check([bob.key, carol.key]) == ({bob.partition: 0, carol.partition: 0}, set())
    await bob.store(1, 2, position=5)
    positions, waiting = await ports.queues.check([bob.key, carol.key, (bob.user.user_id, 1 << 52)])
    assert positions == {carol.partition: 0} | {bob.partition: 5}
    assert waiting == {bob.id}


async def test_peek_ignores_read_rows(ports: Ports, bob: Mailbox) -> None:
    await bob.store(1, 2, position=5)
    fence = await bob.claim()
    first, second = (await bob.page(fence)).rows
    await ports.queues.mark_read(bob.id, fence, [first.row_id])
    assert (await ports.queues.check([bob.key]))[1] == {bob.id}
    await ports.queues.mark_read(bob.id, fence, [second.row_id])
    assert await ports.queues.check([bob.key]) == ({bob.partition: 5}, set())


async def test_peek_takes_many_devices(ports: Ports, bob: Mailbox) -> None:
    await bob.store(1, position=1)
    many = [(user, (1 << 51) + user) for user in range(1, 3_000)]
    positions, waiting = await ports.queues.check([*many, bob.key])
    assert set(positions) == set(range(PARTITIONS))
    assert waiting == {bob.id}


# ---------------------------------------------------------------- the lease


async def test_claims_have_ascending_fencing_numbers(backend: Backend, bob: Mailbox) -> None:
    fences = [await bob.claim("a", 1), await bob.claim("a", 1), await bob.claim("b", 2)]
    await backend.end_leases()
    fences.append(await bob.claim("c", 1))
    await bob.ports.queues.release(bob.id, fences[-1])
    fences.append(await bob.claim("d", 1))
    assert fences == sorted(set(fences))


async def test_lease_keeps_older_sessions_out(bob: Mailbox) -> None:
    await bob.claim("a", 7)
    assert await bob.ports.queues.claim(bob.id, "b", 6, LEASE_S) is None
    await bob.claim("b", 7)  # the holder's session is not above ours
    await bob.claim("c", 1 << 52)
    assert await bob.ports.queues.claim(bob.id, "b", 7, LEASE_S) is None
    await bob.claim("c", 3)  # the same connector


async def test_ended_lease_is_free_for_an_older_session(backend: Backend, bob: Mailbox) -> None:
    await bob.claim("a", 7)
    await backend.end_leases()
    await bob.claim("b", 6)


async def test_lease_lasts_for_the_requested_time(ports: Ports, bob: Mailbox) -> None:
    carol = await mailbox(ports)
    assert await ports.queues.claim(bob.id, "a", 7, 0.0) is not None
    assert await ports.queues.claim(carol.id, "a", 7, 5.0) is not None
    assert await ports.queues.claim(bob.id, "b", 6, LEASE_S) is not None
    assert await ports.queues.claim(carol.id, "b", 6, LEASE_S) is None


async def test_page_renews_a_lease_that_is_half_over(backend: Backend, bob: Mailbox) -> None:
    fence = await bob.claim("a", 7)
    await backend.end_leases()
    await bob.page(fence)
    assert await bob.ports.queues.claim(bob.id, "b", 6, LEASE_S) is None


async def test_released_queue_is_free_and_only_its_owner_releases_it(bob: Mailbox) -> None:
    fence = await bob.claim("a", 7)
    await bob.ports.queues.release(bob.id, fence - 1)
    assert await bob.ports.queues.claim(bob.id, "b", 6, LEASE_S) is None
    await bob.ports.queues.release(bob.id, fence)
    assert (await bob.page(fence)).rows == ()  # the fencing token is still the latest
    await bob.claim("b", 6)


async def test_queue_of_an_unknown_device_cannot_be_claimed(ports: Ports) -> None:
    assert await ports.queues.claim(1 << 52, "a", 1, LEASE_S) is None
    await ports.queues.release(1 << 52, 1)
    with pytest.raises(Fenced):
        await ports.queues.page(1, 1 << 52, 0, START, 1, 1, LEASE_S)
    with pytest.raises(Fenced):
        await ports.queues.mark_read(1 << 52, 0, [])


async def test_claimers_at_once_get_different_fencing_numbers(backend: Backend, bob: Mailbox) -> None:
    """R3: two connections of one device.  The claim with the highest session number always succeeds."""
    claims = await asyncio.gather(
        *(
            process.queues.claim(bob.id, f"connector {session}", session, LEASE_S)
            for session, process in enumerate(await processes(backend, 6))
        )
    )
    fences = [fence for fence in claims if fence is not None]
    assert len(set(fences)) == len(fences)
    assert claims[-1] == max(fences)


async def test_new_log_in_keeps_queue_and_lease(ports: Ports, bob: Mailbox) -> None:
    """R14: the state file is lost, the queue is not."""
    await bob.store(1, position=1)
    fence = await bob.claim("a", 7)
    assert (await device_of(ports, bob.user, epoch=99)).device_id == bob.id
    assert seqs(await bob.page(fence)) == [1]


# ---------------------------------------------------------------- pages


async def test_pages_follow_one_another(bob: Mailbox) -> None:
    await bob.store(1, 2, position=4)
    await bob.store(3, 4, 5, position=9)
    fence = await bob.claim()
    after = START
    found = []
    while True:
        page = await bob.page(fence, after, rows=2)
        assert page.through == 9
        found.append((seqs(page), page.more))
        if not page.more:
            break
        after = (page.rows[-1].position, page.rows[-1].index)
    assert found == [([1, 2], True), ([3, 4], True), ([5], False)]


async def test_page_starts_beyond_a_position(bob: Mailbox) -> None:
    await bob.store(1, 2, position=4)
    await bob.store(3, 4, position=9)
    fence = await bob.claim()
    for after, expected in (
        ((4, -1), [1, 2, 3, 4]),
        ((4, 0), [2, 3, 4]),
        ((4, 1), [3, 4]),
        ((8, 7), [3, 4]),
        ((9, 1), []),
    ):
        assert seqs(await bob.page(fence, after)) == expected


async def test_rows_have_position_and_index(bob: Mailbox) -> None:
    await bob.store(1, 2, position=4)
    page = await bob.page(await bob.claim())
    assert [(row.position, row.index) for row in page.rows] == [(4, 0), (4, 1)]
    assert len({row.row_id for row in page.rows}) == 2


async def test_page_is_bounded_by_size_but_never_empty(bob: Mailbox) -> None:
    await bob.store(1, 2, 3, position=1, body=bytes(1_000))
    fence = await bob.claim()
    size = len(entry(bob.user, 1, body=bytes(1_000)).envelope)
    for bound, expected, more in (
        (1, [1], True),
        (2 * size - 1, [1], True),
        (2 * size, [1, 2], True),
        (3 * size, [1, 2, 3], False),
    ):
        page = await bob.page(fence, size=bound)
        assert (seqs(page), page.more) == (expected, more)


async def test_empty_queue_gives_an_empty_page_with_the_position(ports: Ports, bob: Mailbox) -> None:
    fence = await bob.claim()
    assert await bob.page(fence) == Page((), 0, False)
    claim = await ports.partitions.claim(bob.partition, "writer", LEASE_S)
    assert claim is not None
    await ports.partitions.write(bob.partition, claim[0], 33, [], NOW)
    assert await bob.page(fence) == Page((), 33, False)


async def test_read_rows_are_not_paged_again(bob: Mailbox) -> None:
    await bob.store(1, 2, 3, position=1)
    fence = await bob.claim()
    rows = (await bob.page(fence)).rows
    await bob.ports.queues.mark_read(bob.id, fence, [rows[2].row_id, rows[0].row_id])
    assert seqs(await bob.page(fence)) == [2]
    await bob.ports.queues.mark_read(bob.id, fence, [row.row_id for row in rows])  # some a second time
    await bob.ports.queues.mark_read(bob.id, fence, [])
    assert seqs(await bob.page(fence)) == []


async def test_rows_of_another_device_are_not_touched(ports: Ports, bob: Mailbox) -> None:
    carol = await mailbox(ports)
    await bob.store(1, position=1)
    await carol.store(1, position=2)
    fence = await bob.claim()
    [row] = (await carol.page(await carol.claim())).rows
    await ports.queues.mark_read(bob.id, fence, [row.row_id, row.row_id + 1_000])
    assert (await ports.queues.check([carol.key]))[1] == {carol.id}


async def test_many_rows_are_marked_at_once(bob: Mailbox) -> None:
    await bob.store(*range(1, 1_301), position=1)
    fence = await bob.claim()
    page = await bob.page(fence, rows=2_000)
    assert seqs(page) == list(range(1, 1_301))
    await bob.ports.queues.mark_read(bob.id, fence, [row.row_id for row in page.rows])
    assert (await bob.page(fence)).rows == ()


# ---------------------------------------------------------------- fenced off


async def test_fenced_sync_neither_reads_nor_marks(ports: Ports, bob: Mailbox) -> None:
    """R3, R11: the old connector learns late that another one syncs the device; nothing is lost."""
    await bob.store(1, 2, position=1)
    late = await bob.claim("a", 1)
    rows = (await bob.page(late)).rows
    fence = await bob.claim("b", 2)
    with pytest.raises(Fenced):
        await bob.page(late)
    with pytest.raises(Fenced):
        await ports.queues.mark_read(bob.id, late, [row.row_id for row in rows])
    await ports.queues.release(bob.id, late)
    assert seqs(await bob.page(fence)) == [1, 2]
    assert await ports.queues.claim(bob.id, "a", 1, LEASE_S) is None


async def test_claim_waits_for_earlier_marks_to_commit(sql: SqlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """R3, R10: rows that the old connection acknowledged are not sent over the new one."""
    bob = await mailbox(sql.process())
    await bob.store(1, 2, position=1)
    fence = await bob.claim("a", 1)
    first, _ = (await bob.page(fence)).rows
    pause = pause_after(monkeypatch, sql_queues, "_mark_read")
    marking = asyncio.create_task(sql.process().queues.mark_read(bob.id, fence, [first.row_id]))
    await pause.reached()
    claiming = asyncio.create_task(bob.claim("b", 2, sql.process().queues))
    assert (await bob.ports.queues.check([bob.key]))[1] == {bob.id}  # reading does not wait
    assert await is_waiting(claiming)
    pause.go_on()
    await marking
    assert seqs(await bob.page(await claiming)) == [2]


async def test_position_of_a_page_never_exceeds_its_snapshot(sql: SqlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1, R2: an empty page up to a position proves that a live message may be delivered."""
    bob = await mailbox(sql.process())
    fence = await bob.claim()
    # After the select of the position, before the select of the rows.
    pause = pause_after(monkeypatch, sql_queues, "_lease")
    paging = asyncio.create_task(bob.page(fence))
    await pause.reached()
    await bob.store(1, position=1)
    pause.go_on()
    assert await paging == Page((), 0, False)  # one snapshot, although a commit came between the statements
    page = await bob.page(fence)
    assert (seqs(page), page.through) == ([1], 1)
