"""`Partitions.usage`, and what `write` says that it inserted: in memory, on SQLite and on MariaDB."""

from meshim.stores.ports import Device, QueueKey, QueueUsage, Size, User
from meshim.wire.offline_log import Entry
from tests.contract.sql.backends import NOW, Ports, claimed, device_of, envelope, person

UNKNOWN = -1
"""A head that no queue has."""
ANN, BEN = 900, 901


def entry(user: User, seq: int, sender: int, body: bytes = b"body") -> Entry:
    return Entry(user.user_id, (), envelope(seq, sender=sender, to=user.user_id, body=body))


def key(user: User, device: Device) -> QueueKey:
    return QueueKey(user.user_id, device.device_id)


async def usage(ports: Ports, queue: QueueKey, head: int = UNKNOWN, rows_max: int = 100) -> QueueUsage | None:
    return (await ports.partitions.usage([(queue, head)], rows_max)).get(queue)


async def read(ports: Ports, user: User, device: Device, rows: int) -> None:
    fence = await ports.queues.claim(device.device_id, "c", 1 << 52, 60.0)
    assert fence is not None
    page = await ports.queues.page(user.user_id, device.device_id, fence, (0, -1), rows, 1 << 30, 60.0)
    await ports.queues.mark_read(device.device_id, fence, [row.row_id for row in page.rows])


async def test_unread_rows_are_counted_by_sender_in_each_queue(ports: Ports) -> None:
    cat = await person(ports)
    phone, laptop = await device_of(ports, cat, "phone"), await device_of(ports, cat, "laptop")
    entries = [entry(cat, 1, ANN), entry(cat, 2, ANN, b"longer"), entry(cat, 1, BEN)]
    written = await ports.partitions.write(0, await claimed(ports.partitions), 1, [(1, entries)], NOW)
    sizes = [len(each.envelope) for each in entries]
    assert written.queues == {key(cat, each): Size(3, sum(sizes)) for each in (phone, laptop)}
    counted = {ANN: Size(2, sizes[0] + sizes[1]), BEN: Size(1, sizes[2])}
    for device in (phone, laptop):
        found = await usage(ports, key(cat, device))
        assert found is not None
        assert found.head > 0
        assert found.senders == counted
    await read(ports, cat, phone, 2)
    found = await usage(ports, key(cat, phone))
    assert found is not None
    assert found.senders == {BEN: Size(1, sizes[2])}


async def test_a_queue_whose_first_row_still_waits_is_not_counted(ports: Ports) -> None:
    """One record may have many rows: the first of them may be read, and the position of the first unread one stays."""
    cat = await person(ports)
    phone = await device_of(ports, cat)
    fence = await claimed(ports.partitions)
    await ports.partitions.write(0, fence, 1, [(1, [entry(cat, 1, ANN), entry(cat, 2, ANN)])], NOW)
    before = await usage(ports, key(cat, phone))
    assert before is not None
    await ports.partitions.write(0, fence, 2, [(2, [entry(cat, 3, ANN)])], NOW)
    assert await usage(ports, key(cat, phone), before.head) is None
    await read(ports, cat, phone, 1)
    after = await usage(ports, key(cat, phone), before.head)
    assert after is not None
    assert (after.senders[ANN].rows, after.head != before.head) == (2, True)
    await read(ports, cat, phone, 2)
    assert await usage(ports, key(cat, phone), after.head) == QueueUsage(0, {})
    assert await usage(ports, key(cat, phone), 0) is None


async def test_what_waits_for_the_first_device_is_a_queue(ports: Ports) -> None:
    dan = await person(ports)
    written = await ports.partitions.write(0, await claimed(ports.partitions), 1, [(1, [entry(dan, 1, ANN)])], NOW)
    queue = QueueKey(dan.user_id, 0)
    assert (written.devices, list(written.queues)) == ((), [queue])
    found = await usage(ports, queue)
    assert found is not None
    assert found.senders[ANN].rows == 1
    await device_of(ports, dan)
    assert await usage(ports, queue) == QueueUsage(0, {})


async def test_no_more_rows_are_counted_than_asked_for(ports: Ports) -> None:
    cat = await person(ports)
    phone = await device_of(ports, cat)
    entries = [entry(cat, seq, ANN) for seq in range(1, 9)]
    await ports.partitions.write(0, await claimed(ports.partitions), 1, [(1, entries)], NOW)
    found = await usage(ports, key(cat, phone), rows_max=5)
    assert found is not None
    assert found.senders[ANN].rows == 5


async def test_unknown_queues_are_empty(ports: Ports) -> None:
    nobody = [QueueKey(10**9, 10**9), QueueKey(10**9, 0)]
    found = await ports.partitions.usage([(queue, UNKNOWN) for queue in nobody], 10)
    assert found == dict.fromkeys(nobody, QueueUsage(0, {}))
