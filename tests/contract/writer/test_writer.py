"""Writer processes on real NATS, SQL and Redis: each message is stored once and in order, whatever ends or stops."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, NullPool, create_engine, select, text

from meshim.deploy.embedded import Nats, Valkey
from meshim.protocol.routing import partition_of
from meshim.stores.nats.notifications import NatsNotifications
from meshim.stores.ports import Binding
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.presence import RedisPresence
from meshim.stores.sql.schema import im_position
from meshim.wire.notification import WakeUp
from meshim.wire.offline_log import Entry, encode_record
from tests.contract.outage import up
from tests.contract.redis.backends import LOG
from tests.contract.sql.backends import entry, positions
from tests.contract.writer.process import PARTITIONS, Mesh, Writer, topology_of, until


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def mesh(
    valkey_url: str, nats_url: str, sqlite_url: str, namespace: str, tmp_path: Path, stack: AsyncExitStack
) -> Mesh:
    return await Mesh(topology_of(valkey_url, nats_url, sqlite_url, namespace), tmp_path, stack).open()


async def test_a_writer_is_ready_when_the_logs_exist(mesh: Mesh) -> None:
    await mesh.start()
    recipients = await mesh.people(4)
    assert {partition_of(user.user_id, PARTITIONS) for user, _ in recipients} == set(range(PARTITIONS))
    for recipient in recipients:
        await mesh.publish(recipient)
    await until(lambda: mesh.all_stored(recipients))
    await until(mesh.log_is_empty)


async def test_a_lone_message_is_stored_at_once_and_its_connector_woken(mesh: Mesh, stack: AsyncExitStack) -> None:
    """R1."""
    [recipient, absent] = await mesh.people(2)
    user, device = recipient
    redis = RedisClient(mesh.topology.backends.redis, LOG)
    stack.push_async_callback(redis.close)
    presence = RedisPresence(redis, mesh.topology.namespace)
    await presence.online([(Binding(user.user_id, device.device_id, 77, 1), (device.device_id,))])
    notifications = await NatsNotifications(mesh.nats, mesh.topology.namespace, LOG).listen(77)
    stack.push_async_callback(notifications.aclose)
    await mesh.start()
    await mesh.publish(absent)
    await mesh.publish(recipient, to_all=True)
    async with asyncio.timeout(5):
        assert await anext(notifications) == WakeUp(((user.user_id, device.device_id),))
    assert await mesh.stored(recipient) == [1]


async def test_a_burst_is_stored_in_order(mesh: Mesh) -> None:
    recipients = await mesh.people(5)
    await mesh.start()
    for _ in range(40):
        await asyncio.gather(*(mesh.publish(recipient) for recipient in recipients))
    await until(lambda: mesh.all_stored(recipients))
    await until(mesh.log_is_empty)
    assert await positions(mesh.ports) == {
        partition: 40 * sum(partition_of(user.user_id, PARTITIONS) == partition for user, _ in recipients)
        for partition in range(PARTITIONS)
    }


async def test_what_can_never_be_written_is_dead_lettered(mesh: Mesh) -> None:
    [recipient] = await mesh.people(1)
    user, device = recipient
    writer = await mesh.start()
    await mesh.publish_raw(user, b"\xc1 not a record")
    bad = Entry(user.user_id, (device.device_id,), b"not an envelope")
    await mesh.publish_raw(user, encode_record((bad, entry(user, 1, (device,)))))
    await until(mesh.log_is_empty)
    assert await mesh.stored(recipient) == [1]
    dead = [
        (await mesh.nats.request(f"$JS.API.DIRECT.GET.{mesh.topology.namespace}-dead", b'{"seq":%d}' % seq, 2.0)).data
        for seq in (1, 2)
    ]
    assert dead == [b"\xc1 not a record", encode_record((bad,))]
    assert writer.errors.count(" dead-lettered ") == 2


async def test_a_writer_is_killed_during_a_burst(mesh: Mesh) -> None:
    """After a crash at any point, also between commit and acknowledgement, the next writer goes on."""
    recipients = await mesh.people(3)
    writer = await mesh.start()
    for round_ in range(60):
        await asyncio.gather(*(mesh.publish(recipient) for recipient in recipients))
        if round_ % 20 == 10:
            writer.send(signal.SIGKILL)
            await writer.ended()
            writer = await mesh.launch()
    await until(lambda: mesh.all_stored(recipients))
    await until(mesh.log_is_empty)


async def test_a_writer_is_stopped_for_longer_than_its_lease(mesh: Mesh, sqlite_url: str) -> None:
    """R11, R15: what it does after it wakes up is refused or changes nothing."""
    recipients = await mesh.people(3)
    first = await mesh.start("w1")
    for _ in range(5):
        await asyncio.gather(*(mesh.publish(recipient) for recipient in recipients))
    await until(mesh.log_is_empty)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None, timeout=20.0)) as writing:
        # A process that is stopped within a transaction of SQLite blocks all other writers: now it is in none.
        writing.execute("BEGIN IMMEDIATE")
        await first.stop()
    for _ in range(20):
        await asyncio.gather(*(mesh.publish(recipient) for recipient in recipients))
    second = await mesh.start("w2")
    await until(lambda: mesh.all_stored(recipients))
    for _ in range(20):
        await asyncio.gather(*(mesh.publish(recipient) for recipient in recipients))
        first.send(signal.SIGCONT)
    await until(lambda: mesh.all_stored(recipients))
    await until(mesh.log_is_empty)
    for writer in (first, second):
        writer.send(signal.SIGTERM)
    assert [await writer.ended() for writer in (first, second)] == [0, 0], first.errors + second.errors


async def test_a_writer_is_stopped_within_a_transaction(
    valkey_url: str, nats_url: str, mariadb_url: str, namespace: str, tmp_path: Path, stack: AsyncExitStack
) -> None:
    """R11: the locks of a stopped process end with its session in the database."""
    mesh = await Mesh(topology_of(valkey_url, nats_url, mariadb_url, namespace), tmp_path, stack).open()
    recipients = await mesh.people(2)
    first = await mesh.start("w1")
    engine = create_engine(mariadb_url, poolclass=NullPool)
    with engine.connect() as watching, engine.connect() as locking:
        locking.execute(select(im_position).with_for_update())

        async def first_waits_for_a_lock() -> bool:
            with watching.begin():
                waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
                return bool(watching.scalar(text(waiting)))

        await until(first_waits_for_a_lock, every_s=0.2)  # InnoDB refreshes this table ten times a second at most
        first.send(signal.SIGSTOP)
        locking.rollback()  # and now the first writer has the lock
    await mesh.start("w2")
    for recipient in recipients:
        await mesh.publish(recipient)
    await until(lambda: mesh.all_stored(recipients))
    first.send(signal.SIGCONT)
    first.send(signal.SIGTERM)
    assert await first.ended() == 0


async def test_sigterm_releases_all_partitions_at_once(mesh: Mesh) -> None:
    [recipient] = await mesh.people(1)
    first = await mesh.start("w1")
    await mesh.publish(recipient)
    began = time.monotonic()
    first.send(signal.SIGTERM)
    assert await first.ended() == 0
    assert time.monotonic() - began < mesh.topology.timers.shutdown_s
    for partition in range(PARTITIONS):
        assert await mesh.ports.partitions.claim(partition, "test", 0.0) is not None, "the partition was released"
    await mesh.start("w2")
    await mesh.publish(recipient)
    await until(lambda: mesh.all_stored([recipient]))


async def test_a_writer_takes_over_from_a_dead_one(mesh: Mesh) -> None:
    recipients = await mesh.people(4)
    await mesh.start("w1")
    second = await mesh.start("w2")

    async def second_owns_one() -> bool:
        return len(await owners(mesh)) == 2

    await until(second_owns_one)
    second.send(signal.SIGKILL)
    await second.ended()
    for recipient in recipients:
        await mesh.publish(recipient)
    await until(lambda: mesh.all_stored(recipients))


async def owners(mesh: Mesh) -> set[str]:
    def read(connection: Connection) -> set[str]:
        return set(connection.scalars(select(im_position.c.owner)))

    return await mesh.backend.database.read(read)


async def test_the_database_is_away(mesh: Mesh, sqlite_url: str) -> None:
    """R8: the log keeps what is published meanwhile, and no message is acknowledged."""
    recipients = await mesh.people(2)
    writer = await mesh.start()
    locked = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        locked.execute("BEGIN IMMEDIATE")
        for recipient in recipients:
            await mesh.publish(recipient)
        await until(lambda: logged(writer, "failing action=Write"))
        assert await mesh.left_in_log() == 2
    finally:
        locked.close()
    await until(lambda: mesh.all_stored(recipients))
    await until(mesh.log_is_empty)


async def logged(writer: Writer, text: str) -> bool:
    return text in writer.errors


async def test_nats_and_redis_are_away(sqlite_url: str, namespace: str, tmp_path: Path, stack: AsyncExitStack) -> None:
    """R7, R9: the writer goes on as soon as the log is back, with or without Redis."""
    valkey, nats = Valkey(tmp_path / "valkey"), Nats(tmp_path / "nats")
    async with up(nats) as nats_server, up(valkey) as valkey_server:
        mesh = await Mesh(
            topology_of(valkey_server.url, nats_server.url, sqlite_url, namespace), tmp_path, stack
        ).open()
        recipients = await mesh.people(3)
        writer = await mesh.start()
        await mesh.publish(recipients[0])
        await until(lambda: mesh.all_stored(recipients))
    await until(lambda: logged(writer, "failing action=Fetch"))
    async with up(nats):
        await until(lambda: connected(mesh))
        for recipient in recipients:
            await mesh.publish(recipient)
        await until(lambda: mesh.all_stored(recipients))
        await until(mesh.log_is_empty)
        async with up(valkey):
            await until(lambda: logged(writer, "lease-held-again"))
        writer.send(signal.SIGTERM)
        assert await writer.ended() == 0


async def connected(mesh: Mesh) -> bool:
    return mesh.nats.connected


async def test_a_database_without_tables_is_refused_with_one_sentence(
    valkey_url: str, nats_url: str, namespace: str, tmp_path: Path, stack: AsyncExitStack
) -> None:
    mesh = Mesh(topology_of(valkey_url, nats_url, f"sqlite:///{tmp_path / 'empty.db'}", namespace), tmp_path, stack)
    mesh.write_topology()
    writer = await mesh.launch()
    assert await writer.line() == ""
    assert await writer.ended() == 2
    assert "meshim db upgrade" in writer.errors


async def test_on_mariadb(
    valkey_url: str, nats_url: str, mariadb_url: str, namespace: str, tmp_path: Path, stack: AsyncExitStack
) -> None:
    mesh = await Mesh(topology_of(valkey_url, nats_url, mariadb_url, namespace), tmp_path, stack).open()
    recipients = await mesh.people(3)
    await mesh.start()
    for _ in range(10):
        await asyncio.gather(*(mesh.publish(recipient) for recipient in recipients))
    await until(lambda: mesh.all_stored(recipients))
    await until(mesh.log_is_empty)
