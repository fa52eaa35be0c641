"""The port `Partitions`: the writer's side of the queues, in memory, on SQLite and on MariaDB."""

import asyncio

import msgspec
import pytest
from sqlalchemy import Connection, select

from meshim.errors import Fenced
from meshim.stores.ports import Device, User
from meshim.stores.sql import partitions as sql_partitions
from meshim.stores.sql.schema import im_offline, to_ms
from meshim.wire.envelope import DestinationType, Envelope, Kind, decode_envelope, encode_envelope
from meshim.wire.offline_log import Entry
from tests.contract.sql.backends import (
    EPOCH,
    NOW,
    Backend,
    Ports,
    SqlBackend,
    claimed,
    device_of,
    entry,
    envelope,
    is_waiting,
    pause_after,
    person,
    positions,
    processes,
    stored,
)

LEASE_S = 60.0

# ---------------------------------------------------------------- leases


async def test_first_claim_of_a_partition_starts_at_position_zero(ports: Ports) -> None:
    assert await ports.partitions.claim(3, "a", LEASE_S) == (1, 0)


async def test_lease_keeps_others_out_and_renewal_keeps_the_fencing_number(ports: Ports) -> None:
    assert await ports.partitions.claim(0, "a", LEASE_S) == (1, 0)
    assert await ports.partitions.claim(0, "b", LEASE_S) is None
    assert await ports.partitions.claim(0, "a", LEASE_S) == (1, 0)
    assert await ports.partitions.claim(1, "b", LEASE_S) == (1, 0)


async def test_ended_lease_is_taken_with_a_higher_fencing_number(backend: Backend, ports: Ports) -> None:
    await ports.partitions.claim(0, "a", LEASE_S)
    await backend.end_leases()
    assert await ports.partitions.claim(0, "b", LEASE_S) == (2, 0)
    assert await ports.partitions.claim(0, "a", LEASE_S) is None


async def test_ended_lease_can_be_renewed_by_its_owner(backend: Backend, ports: Ports) -> None:
    await ports.partitions.claim(0, "a", LEASE_S)
    await backend.end_leases()
    assert await ports.partitions.claim(0, "a", LEASE_S) == (1, 0)
    assert await ports.partitions.claim(0, "b", LEASE_S) is None


async def test_lease_lasts_for_the_requested_time(ports: Ports) -> None:
    """The clock of the database counts in milliseconds, as `now_ms` assumes."""
    await ports.partitions.claim(0, "a", 0.0)
    await ports.partitions.claim(1, "a", 5.0)
    assert await ports.partitions.claim(0, "b", LEASE_S) is not None
    assert await ports.partitions.claim(1, "b", LEASE_S) is None


async def test_released_partition_is_free_and_only_its_owner_releases_it(ports: Ports) -> None:
    fence = await claimed(ports.partitions)
    await ports.partitions.release(0, fence - 1)
    await ports.partitions.release(1, fence)
    assert await ports.partitions.claim(0, "b", LEASE_S) is None
    await ports.partitions.release(0, fence)
    assert await ports.partitions.claim(0, "b", LEASE_S) == (fence + 1, 0)


async def test_one_of_many_claimers_gets_the_partition(backend: Backend) -> None:
    claimers = await processes(backend, 6)
    for expected in range(1, 5):
        claims = await asyncio.gather(
            *(process.partitions.claim(0, f"{expected}.{number}", LEASE_S) for number, process in enumerate(claimers))
        )
        assert [claim for claim in claims if claim is not None] == [(expected, 0)]
        await backend.end_leases()


# ---------------------------------------------------------------- rows


async def test_entry_becomes_a_row_for_each_device_it_names(backend: Backend, ports: Ports) -> None:
    bob = await person(ports)
    phone, laptop, tablet = [await device_of(ports, bob, name) for name in ("phone", "laptop", "tablet")]
    fence = await claimed(ports.partitions)
    written = await ports.partitions.write(0, fence, 7, [(7, [entry(bob, 1, [phone, tablet])])], NOW)
    assert set(written.devices) == {(bob.user_id, phone.device_id), (bob.user_id, tablet.device_id)}
    assert (written.refused, written.left_out) == ((), 0)
    assert await positions(ports) == {0: 7}
    assert await stored(ports, bob, phone) == [envelope(1, to=bob.user_id)]
    assert await backend.rows(laptop.device_id) == 0


async def test_entry_without_devices_becomes_a_row_for_every_device(ports: Ports) -> None:
    bob, carol = await person(ports), await person(ports)
    devices = [await device_of(ports, bob, name) for name in ("phone", "laptop")]
    await device_of(ports, carol)
    fence = await claimed(ports.partitions)
    written = await ports.partitions.write(0, fence, 1, [(1, [entry(bob, 1)])], NOW)
    assert set(written.devices) == {(bob.user_id, device.device_id) for device in devices}
    assert [len(await stored(ports, bob, device)) for device in devices] == [1, 1]


async def test_rows_are_ordered_by_position_and_index(ports: Ports) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    fence = await claimed(ports.partitions)
    records = [(9, [entry(bob, 3), entry(bob, 4)]), (2, [entry(bob, 2), entry(bob, 1)])]
    await ports.partitions.write(0, fence, 9, records, NOW)
    assert [decode_envelope(data).seq for data in await stored(ports, bob, phone)] == [2, 1, 3, 4]


async def test_unknown_users_and_devices_are_left_out_and_counted(ports: Ports) -> None:
    bob, carol = await person(ports), await person(ports)
    phone, foreign = await device_of(ports, bob), await device_of(ports, carol)
    nobody = User(1 << 52, "nobody")
    gone = Device(1 << 52, "gone", 1, NOW)
    entries = [entry(nobody, 1), entry(nobody, 2, [phone]), entry(bob, 4, [gone, phone, foreign])]
    written = await ports.partitions.write(0, await claimed(ports.partitions), 1, [(1, entries)], NOW)
    assert written.devices == ((bob.user_id, phone.device_id),)
    assert (written.refused, written.left_out) == ((), 4)
    assert await stored(ports, bob, phone) == [envelope(4, to=bob.user_id)]


async def test_device_named_twice_gets_one_row(backend: Backend, ports: Ports) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    await ports.partitions.write(0, await claimed(ports.partitions), 1, [(1, [entry(bob, 1, [phone, phone])])], NOW)
    assert await backend.rows(phone.device_id) == 1


async def test_empty_write_moves_the_position(ports: Ports) -> None:
    written = await ports.partitions.write(0, await claimed(ports.partitions), 12, [(12, [])], NOW)
    assert written == ((), (), 0, {})
    assert await positions(ports) == {0: 12}


async def test_more_rows_than_one_statement_holds(backend: Backend, ports: Ports) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    body = bytes(range(256)) * 256  # 64 KiB with every byte value
    records = [(position, [entry(bob, position, body=body)]) for position in range(1, 41)]
    await ports.partitions.write(0, await claimed(ports.partitions), 40, records, NOW)
    assert await stored(ports, bob, phone) == [envelope(seq, to=bob.user_id, body=body) for seq in range(1, 41)]


async def test_many_users_at_once(ports: Ports) -> None:
    users = [user for user in await ports.accounts.register_many([(f"bot{n}", "x") for n in range(30)]) if user]
    devices = [await device_of(ports, user) for user in users]
    unknown = [User((1 << 51) + number, "") for number in range(2_500)]
    records = [(1, [entry(user, seq) for seq, user in enumerate([*unknown, *users], 1)])]
    written = await ports.partitions.write(0, await claimed(ports.partitions), 1, records, NOW)
    assert written.left_out == len(unknown)
    assert set(written.devices) == {(user.user_id, d.device_id) for user, d in zip(users, devices, strict=True)}


# ---------------------------------------------------------------- the same again


async def test_redelivered_records_change_nothing(backend: Backend, ports: Ports) -> None:
    """R10, R15: committed, but not acknowledged to the log."""
    bob = await person(ports)
    phone = await device_of(ports, bob)
    fence = await claimed(ports.partitions)
    records = [(1, [entry(bob, 1)]), (2, [entry(bob, 2)])]
    first = await ports.partitions.write(0, fence, 2, records, NOW)
    await ports.partitions.write(0, fence, 3, [(3, [entry(bob, 3)])], NOW)
    assert await ports.partitions.write(0, fence, 2, records, NOW + 9) == first
    assert await positions(ports) == {0: 3}
    assert await stored(ports, bob, phone) == [envelope(seq, to=bob.user_id) for seq in (1, 2, 3)]


async def test_message_stored_twice_keeps_its_first_position(ports: Ports) -> None:
    """R12: the sender resent it, and another transfer stored it too."""
    bob = await person(ports)
    phone = await device_of(ports, bob)
    fence = await claimed(ports.partitions)
    again = entry(bob, 1)
    await ports.partitions.write(0, fence, 2, [(1, [again]), (2, [entry(bob, 2), again])], NOW)
    written = await ports.partitions.write(0, fence, 3, [(3, [again])], NOW)
    assert written.devices == ((bob.user_id, phone.device_id),)
    assert [decode_envelope(data).seq for data in await stored(ports, bob, phone)] == [1, 2]


async def test_read_row_is_not_unread_by_a_redelivery(ports: Ports) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    writer = await claimed(ports.partitions)
    await ports.partitions.write(0, writer, 1, [(1, [entry(bob, 1)])], NOW)
    fence = await ports.queues.claim(phone.device_id, "c", 1, LEASE_S)
    assert fence is not None
    page = await ports.queues.page(bob.user_id, phone.device_id, fence, (0, -1), 10, 1 << 20, LEASE_S)
    await ports.queues.mark_read(phone.device_id, fence, [row.row_id for row in page.rows])
    await ports.partitions.write(0, writer, 1, [(1, [entry(bob, 1)])], NOW)
    assert await stored(ports, bob, phone) == []


def variations(of: Envelope) -> list[Envelope]:
    """Return messages that differ in one field of the key each."""
    replace = msgspec.structs.replace
    return [
        replace(of, user=of.user + 1),
        replace(of, device=of.device + 1),
        replace(of, epoch=of.epoch - 1),
        replace(of, epoch=of.epoch - (1 << 52)),
        replace(of, seq=of.seq + 1),
        replace(of, to=replace(of.to, type=DestinationType.GROUP)),
        replace(of, to=replace(of.to, id=of.to.id + 1)),
        replace(of, to=replace(of.to, device=1)),
    ]


async def test_message_is_identified_by_stream_and_seq_alone(backend: Backend, ports: Ports) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    one = decode_envelope(envelope(1, to=bob.user_id))
    others = variations(one)
    same = msgspec.structs.replace(one, id=bytes(16), base=9, kind=Kind.RECEIPT, key=9, sent_at=0, body=b"")
    entries = [Entry(bob.user_id, (), encode_envelope(message)) for message in (one, *others, same)]
    await ports.partitions.write(0, await claimed(ports.partitions), 1, [(1, entries)], NOW)
    assert await stored(ports, bob, phone) == [encode_envelope(message) for message in (one, *others)]
    assert await backend.rows(phone.device_id) == 1 + len(others)


# ---------------------------------------------------------------- two writers


async def test_fenced_writer_writes_nothing(backend: Backend, ports: Ports) -> None:
    """R15: a writer that was stopped wakes after another has taken over."""
    bob = await person(ports)
    phone = await device_of(ports, bob)
    late = await claimed(ports.partitions, "a")
    await backend.end_leases()
    fence = await claimed(ports.partitions, "b")
    await ports.partitions.write(0, fence, 5, [(5, [entry(bob, 5)])], NOW)
    for through in (4, 5, 9):
        with pytest.raises(Fenced):
            await ports.partitions.write(0, late, through, [(through, [entry(bob, through + 100)])], NOW)
    assert await positions(ports) == {0: 5}
    assert await backend.rows(phone.device_id) == 1


async def test_wrong_fencing_number_is_fenced(ports: Ports) -> None:
    fence = await claimed(ports.partitions)
    for partition, number in ((0, fence + 1), (0, 0), (1, fence)):
        with pytest.raises(Fenced):
            await ports.partitions.write(partition, number, 1, [], NOW)


async def test_claim_waits_for_an_earlier_write_to_commit(sql: SqlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """R15: the new writer starts at the position of the late commit: nothing is skipped or written twice."""
    ports, late = sql.process(), sql.process()
    bob = await person(ports)
    phone = await device_of(ports, bob)
    fence = await claimed(late.partitions, "a")
    await sql.end_leases()
    pause = pause_after(monkeypatch, sql_partitions, "_write")
    writing = asyncio.create_task(late.partitions.write(0, fence, 4, [(4, [entry(bob, 4)])], NOW))
    await pause.reached()
    claiming = asyncio.create_task(sql.process().partitions.claim(0, "b", LEASE_S))
    assert await positions(ports) == {}  # not committed, and reading does not wait
    assert await is_waiting(claiming)
    pause.go_on()
    await writing
    assert await claiming == (fence + 1, 4)
    assert await stored(ports, bob, phone) == [envelope(4, to=bob.user_id)]


async def test_device_is_not_dropped_between_lookup_and_commit(
    sql: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row would stay for ever: no connector reads the queue of a deleted device."""
    ports = sql.process()
    bob = await person(ports)
    phone, _ = await device_of(ports, bob, "phone"), await device_of(ports, bob, "laptop", now=NOW + 60)
    fence = await claimed(ports.partitions)
    pause = pause_after(monkeypatch, sql_partitions, "_registry")
    writing = asyncio.create_task(ports.partitions.write(0, fence, 4, [(4, [entry(bob, 4, [phone])])], NOW))
    await pause.reached()
    dropping = asyncio.create_task(sql.process().accounts.drop_idle_devices(NOW + 1, 10))
    assert await is_waiting(dropping)
    pause.go_on()
    assert (await writing).devices == ((bob.user_id, phone.device_id),)
    assert await dropping == 1
    assert await sql.rows(phone.device_id) == 0


async def test_writers_of_different_partitions_do_not_disturb_each_other(backend: Backend) -> None:
    ports = backend.process()
    users = [await person(ports) for _ in range(3)]
    devices = [await device_of(ports, user) for user in users]

    async def write(partition: int, user: User) -> None:
        writer = backend.process().partitions
        fence = await claimed(writer, f"writer {partition}", partition)
        for position in range(1, 9):
            await writer.write(partition, fence, position, [(position, [entry(user, position)] * 2)], NOW)

    await asyncio.gather(*(write(partition, user) for partition, user in enumerate(users)))
    assert await positions(ports) == {0: 8, 1: 8, 2: 8}
    for user, device in zip(users, devices, strict=True):
        assert len(await stored(ports, user, device)) == 8


# ---------------------------------------------------------------- purge


async def read_all(ports: Ports, user: User, device: Device) -> None:
    fence = await ports.queues.claim(device.device_id, "c", 1 << 52, LEASE_S)
    assert fence is not None
    page = await ports.queues.page(user.user_id, device.device_id, fence, (0, -1), 10_000, 1 << 30, LEASE_S)
    await ports.queues.mark_read(device.device_id, fence, [row.row_id for row in page.rows])


async def test_purge_deletes_read_rows_up_to_the_limit(backend: Backend, ports: Ports) -> None:
    bob = await person(ports)
    phone, laptop = await device_of(ports, bob, "phone"), await device_of(ports, bob, "laptop")
    records = [(position, [entry(bob, position)]) for position in range(1, 6)]
    await ports.partitions.write(0, await claimed(ports.partitions), 5, records, NOW)
    await read_all(ports, bob, phone)
    assert await ports.partitions.purge(1.0, 100) == 0  # read after that time
    assert await ports.partitions.purge(1e10, 3) == 3
    assert (await backend.rows(phone.device_id), await backend.rows(laptop.device_id)) == (2, 5)
    assert await ports.partitions.purge(1e10, 100) == 2
    assert await ports.partitions.purge(1e10, 100) == 0
    assert (await backend.rows(phone.device_id), await backend.rows(laptop.device_id)) == (0, 5)


async def test_row_has_the_columns_of_the_article_and_the_design(sql: SqlBackend) -> None:
    ports = sql.process()
    bob = await person(ports)
    phone = await device_of(ports, bob)
    message = entry(bob, 7)
    await ports.partitions.write(0, await claimed(ports.partitions), 3, [(3, [message])], NOW)

    def only_row(connection: Connection) -> dict[str, object]:
        return dict(connection.execute(select(im_offline)).mappings().one())

    row = await sql.database.read(only_row)
    assert isinstance(row.pop("id"), int)
    assert row == {
        "msg_id": (7).to_bytes(16),
        "msg_type": Kind.TEXT,
        "content": message.envelope,
        "to_user_id": bob.user_id,
        "to_device": phone.device_id,
        "has_read": 0,
        "gmt_create": to_ms(NOW),
        "gmt_read": None,
        "from_user_id": 900,
        "from_device": 901,
        "epoch": EPOCH,
        "destination_type": DestinationType.USER,
        "destination_id": bob.user_id,
        "destination_device": 0,
        "seq": 7,
        "position": 3,
        "index": 0,
        "format": 1,
    }
