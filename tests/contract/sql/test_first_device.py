"""Users without a device: their messages are kept for their first device.  In memory, on SQLite, on MariaDB."""

import asyncio
import secrets

import pytest

from meshim.stores.ports import Device, User
from meshim.stores.sql import accounts as sql_accounts
from meshim.stores.sql import partitions as sql_partitions
from meshim.stores.sql.rows import first_device
from meshim.wire.envelope import decode_envelope
from meshim.wire.offline_log import Entry
from tests.contract.sql.backends import (
    NOW,
    Backend,
    Ports,
    SqlBackend,
    device_ids,
    device_of,
    entry,
    is_waiting,
    pause_after,
    person,
)


async def waiting(ports: Ports, user: User, device: Device) -> list[int]:
    """Return the seqs in the queue, in order."""
    fence = await ports.queues.claim(device.device_id, "reader", 1 << 52, 60.0)
    assert fence is not None
    page = await ports.queues.page(user.user_id, device.device_id, fence, (0, -1), 10_000, 1 << 30, 60.0)
    return [decode_envelope(row.envelope).seq for row in page.rows]


async def write(ports: Ports, position: int, *entries: Entry) -> tuple[tuple[int, int], ...]:
    """Store entries in partition 0; return the devices that have rows."""
    claim = await ports.partitions.claim(0, "writer", 60.0)
    assert claim is not None
    written = await ports.partitions.write(0, claim[0], position, [(position, entries)], NOW)
    assert (written.refused, written.left_out) == ((), 0)
    return written.devices


async def test_first_device_gets_messages_stored_before_it(backend: Backend) -> None:
    ports = backend.process()
    bob, carol = await person(ports), await person(ports)
    for _ in range(2):  # a redelivery changes nothing
        assert await write(ports, 2, entry(bob, 3), entry(carol, 9)) == ()  # no device to wake up
        assert await write(ports, 1, entry(bob, 1), entry(bob, 2)) == ()

    phone, laptop = await device_of(ports, bob, "phone"), await device_of(ports, bob, "laptop")
    assert (await ports.queues.check([(bob.user_id, phone.device_id), (bob.user_id, laptop.device_id)]))[1] == {
        phone.device_id
    }
    assert await waiting(ports, bob, phone) == [1, 2, 3]
    assert await backend.rows(first_device(bob.user_id)) == 0
    assert await backend.rows(first_device(carol.user_id)) == 1
    assert await write(ports, 3, entry(bob, 4)) == (
        (bob.user_id, phone.device_id),
        (bob.user_id, laptop.device_id),
    )


async def test_token_for_rest_only_takes_no_messages(ports: Ports) -> None:
    bob = await person(ports)
    await write(ports, 1, entry(bob, 1))
    await ports.accounts.log_in(bob.user_id, None, 0, secrets.token_bytes(32), NOW + 60, NOW, 10)
    assert await waiting(ports, bob, await device_of(ports, bob)) == [1]


async def test_nothing_is_kept_for_unknown_users_or_deleted_devices(backend: Backend) -> None:
    ports = backend.process()
    nobody, bob = User(1 << 52, "nobody"), await person(ports)
    fence, _ = await ports.partitions.claim(0, "writer", 60.0) or pytest.fail("not free")
    gone = Device(1 << 52, "gone", 1, NOW)
    entries = [entry(nobody, 1), entry(nobody, 2, [gone]), entry(bob, 3, [gone])]
    written = await ports.partitions.write(0, fence, 1, [(1, entries)], NOW)
    assert (written.devices, written.left_out) == ((), 3)
    assert (await backend.rows(first_device(nobody.user_id)), await backend.rows(first_device(bob.user_id))) == (0, 0)


async def test_queue_of_the_last_idle_device_is_kept_for_the_next_device(backend: Backend) -> None:
    ports = backend.process()
    bob = await person(ports)
    first, last = await device_of(ports, bob, "first"), await device_of(ports, bob, "last", now=NOW + 1)
    await write(ports, 1, entry(bob, 1), entry(bob, 2), entry(bob, 3, [last]))
    fence = await ports.queues.claim(last.device_id, "c", 1, 60.0)
    assert fence is not None
    page = await ports.queues.page(bob.user_id, last.device_id, fence, (0, -1), 1, 1 << 20, 60.0)
    await ports.queues.mark_read(last.device_id, fence, [page.rows[0].row_id])

    assert await ports.accounts.drop_idle_devices(NOW + 60, 1) == 1
    assert (await backend.rows(first.device_id), await backend.rows(first_device(bob.user_id))) == (0, 0)
    assert await ports.accounts.drop_idle_devices(NOW + 60, 1) == 1
    assert (await backend.rows(last.device_id), await backend.rows(first_device(bob.user_id))) == (0, 2)
    assert await waiting(ports, bob, await device_of(ports, bob, "new")) == [2, 3]


# ---------------------------------------------------------------- a writer and a first login at once
# If the writer saw no device and the login no row, the row would stay for ever.


async def test_first_login_waits_for_a_writer_that_saw_no_device(
    sql: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = sql.process()
    bob = await person(ports)
    pause = pause_after(monkeypatch, sql_partitions, "_registry")
    writing = asyncio.create_task(write(sql.process(), 1, entry(bob, 1)))
    await pause.reached()
    logging_in = asyncio.create_task(device_of(sql.process(), bob))
    assert await is_waiting(logging_in)
    pause.go_on()
    assert await writing == ()
    assert await waiting(ports, bob, await logging_in) == [1]


async def test_writer_waits_for_a_first_login_and_finds_the_device(
    sql: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = sql.process()
    bob = await person(ports)
    pause = pause_after(monkeypatch, sql_accounts, "_log_in")
    logging_in = asyncio.create_task(device_of(sql.process(), bob))
    await pause.reached()
    writing = asyncio.create_task(write(sql.process(), 1, entry(bob, 1)))
    assert await is_waiting(writing)
    pause.go_on()
    phone = await logging_in
    assert await writing == ((bob.user_id, phone.device_id),)
    assert await waiting(ports, bob, phone) == [1]


async def test_last_device_is_dropped_after_a_login_with_another_one(
    sql: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The login sees a device, so it takes no rows; the drop must see the new device, and keep no rows."""
    ports = sql.process()
    bob = await person(ports)
    last = await device_of(ports, bob, "last")
    await write(ports, 1, entry(bob, 1))
    pause = pause_after(monkeypatch, sql_accounts, "_log_in")
    logging_in = asyncio.create_task(device_of(sql.process(), bob, "new", now=NOW + 60))
    await pause.reached()
    dropping = asyncio.create_task(sql.process().accounts.drop_idle_devices(NOW + 60, 10))
    assert await is_waiting(dropping)
    pause.go_on()
    new = await logging_in
    assert await dropping == 1
    assert await device_ids(ports, bob) == [new.device_id]
    assert (await sql.rows(last.device_id), await sql.rows(first_device(bob.user_id))) == (0, 0)
