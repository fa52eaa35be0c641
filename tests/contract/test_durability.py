"""Durability settings of real servers, and that nothing is stored with settings that the topology refuses."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from meshim.deploy.embedded import Nats, Valkey
from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores.backends import read_settings
from meshim.stores.durability import Verdict
from meshim.stores.nats import durability as nats_durability
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.redis import settings as redis_settings
from meshim.stores.redis.client import RedisClient
from meshim.stores.sql import durability as sql_durability
from meshim.stores.sql import engine
from meshim.stores.sql.database import Database
from meshim.stores.sql.durability import DatabaseDurabilityGate
from meshim.stores.sql.mesh_record import SqlMeshRecord
from meshim.stores.sql.partitions import SqlPartitions
from meshim.topology import Backends, Durability
from tests.contract.outage import up
from tests.contract.sql.backends import NOW, SqlBackend, claimed, entry, open_sql_backend, person, positions
from tests.servers import Server, UnsyncedNats, running

SAFE, WEAK, UNKNOWN = Verdict.SAFE, Verdict.WEAK, Verdict.UNKNOWN
LOG = Log("test", "durability", io.StringIO())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[NatsClient]:
    client = await NatsClient.connect(url, LOG)
    try:
        yield client
    finally:
        await client.close()


async def verdict_of(server: Server, monitor: str | None) -> tuple[Verdict, str]:
    async with connected(server.url) as client:
        [setting] = await nats_durability.read_settings(client.server_id, monitor)
    assert (setting.backend, setting.name) == ("nats", "sync_interval")
    return setting.verdict, setting.value + setting.reason


async def test_sync_interval_of_nats_is_read(tmp_path: Path) -> None:
    strong, weak = Nats(tmp_path / "strong"), UnsyncedNats(tmp_path / "weak")
    with running(strong) as strong_server, running(weak) as weak_server:
        assert await verdict_of(strong_server, strong.monitor) == (SAFE, "always")
        verdict, text = await verdict_of(weak_server, weak.monitor)
        assert (verdict, text[:4]) == (WEAK, "120s")
        for monitor, why in (
            (None, "durability.nats_monitor"),
            (strong.monitor, "another server"),
            (weak.monitor.rpartition("/")[0], "did not answer"),
            ("http://127.0.0.1:9", "did not answer"),
        ):
            verdict, text = await verdict_of(weak_server, monitor)
            assert verdict is UNKNOWN
            assert why in text


async def test_a_log_that_restarts_with_weak_settings_gets_no_messages(tmp_path: Path, namespace: str) -> None:
    recipe = UnsyncedNats(tmp_path)
    recipe.weak = False
    async with AsyncExitStack() as stack:
        async with up(recipe) as server:
            client = await stack.enter_async_context(connected(server.url))
            gate = LogDurabilityGate(client, Durability(nats_monitor=recipe.monitor), LOG)
            await gate.start()
            log = JetStreamOfflineLog(client, namespace, max_bytes=1 << 20, dead_bytes=1 << 20, gate=gate)
            await log.ensure(0, 1)
            assert await log.publish(0, b"1") == 1
        recipe.weak = True
        run = client.server_id
        async with up(recipe):
            await another_run(client, run)
            with pytest.raises(BackendUnavailable, match=r"sync_interval: always"):
                await log.publish(0, b"2")
            with pytest.raises(UsageError, match=r"durability.weak: warn"):
                await LogDurabilityGate(client, Durability(nats_monitor=recipe.monitor), LOG).start()
            run = client.server_id
        recipe.weak = False
        async with up(recipe):
            await another_run(client, run)
            assert await log.publish(0, b"3") == 2


async def another_run(client: NatsClient, before: str) -> None:
    """Wait until the client is connected to another run of the server."""
    async with asyncio.timeout(20):
        while not client.connected or client.server_id == before:
            await asyncio.sleep(0.02)


async def test_unknown_settings_are_refused_if_the_topology_says_so(nats_url: str, namespace: str) -> None:
    async with connected(nats_url) as client:
        await LogDurabilityGate(client, Durability(), LOG).start()
        with pytest.raises(UsageError, match=r"durability.nats_monitor"):
            await LogDurabilityGate(client, Durability(unknown="refuse"), LOG).start()


async def test_our_connections_sync_their_commits(sql: SqlBackend) -> None:
    found = await sql.database.read(sql_durability.read_settings)
    assert {setting.verdict for setting in found} == {SAFE}
    names = {setting.name for setting in found}
    assert names in (
        {"journal_mode", "synchronous"},
        {"innodb_flush_log_at_trx_commit", "innodb_doublewrite", "read_only"},
    )


async def test_nothing_is_written_to_a_weak_sqlite(sqlite_with_tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = [pragma.replace("synchronous = FULL", "synchronous = NORMAL") for pragma in engine._SQLITE_PRAGMAS]
    async with open_sql_backend(sqlite_with_tables) as strong:
        monkeypatch.setattr(engine, "_SQLITE_PRAGMAS", weak)
        await _refuses(strong, strong.connect())


async def test_nothing_is_written_to_a_mariadb_that_turns_weak(mariadb_with_tables: str) -> None:
    async with open_sql_backend(mariadb_with_tables) as backend:
        await DatabaseDurabilityGate(Durability(), LOG).start(backend.database)
        with global_variable(mariadb_with_tables, "innodb_flush_log_at_trx_commit", "2", "1"):
            await _refuses(backend, backend.database)
        with global_variable(mariadb_with_tables, "read_only", "1", "0"):
            with pytest.raises(UsageError, match=r"`read_only=1`, as a replica does: name its primary"):
                await DatabaseDurabilityGate(Durability(), LOG).start(backend.database)
            with pytest.raises(UsageError, match=r"`read_only=1`, as a replica does: name its primary"):
                await SqlMeshRecord(backend.database).agree("chat", 4)
        with global_variable(mariadb_with_tables, "sync_binlog", "0", "1"):  # without a binary log
            await DatabaseDurabilityGate(Durability(unknown="refuse"), LOG).start(backend.database)


async def _refuses(backend: SqlBackend, weak: Database) -> None:
    """Check that the gate refuses a weak connection, and allows it where the topology says so."""
    ports = backend.process()
    fence = await claimed(ports.partitions)
    records = [(1, [entry(await person(ports), 1)])]
    with pytest.raises(BackendUnavailable, match=r"has to be FULL|Set it to 1"):
        await SqlPartitions(weak, DatabaseDurabilityGate(Durability(), LOG)).write(0, fence, 1, records, NOW)
    assert await positions(ports) == {}
    with pytest.raises(UsageError, match=r"durability.weak: warn"):
        await DatabaseDurabilityGate(Durability(), LOG).start(weak)
    await DatabaseDurabilityGate(Durability(weak="warn"), LOG).start(weak)
    await SqlPartitions(weak, DatabaseDurabilityGate(Durability(weak="warn"), LOG)).write(0, fence, 1, records, NOW)
    assert await positions(ports) == {0: 1}


@contextmanager
def global_variable(url: str, name: str, value: str, normal: str) -> Iterator[None]:
    """Set a variable of the server, which all tests share, during the block."""
    server = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

    def put(now: str) -> None:
        with server.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL {name} = {now}")

    put(value)
    try:
        yield
    finally:
        put(normal)


async def test_eviction_and_role_of_redis_are_read(tmp_path: Path) -> None:
    with running(Valkey(tmp_path)) as server:
        client = RedisClient(server.url, LOG)
        try:
            assert await verdicts_of(client) == {"maxmemory_policy": ("noeviction", SAFE), "role": ("master", SAFE)}
            await client.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            assert (await verdicts_of(client))["maxmemory_policy"] == ("allkeys-lru", SAFE), "without `maxmemory`"
            await client.execute("CONFIG", "SET", "maxmemory", 1 << 26)
            assert (await verdicts_of(client))["maxmemory_policy"] == ("allkeys-lru", WEAK)
            await client.execute("REPLICAOF", "127.0.0.1", 1)
            assert (await verdicts_of(client))["role"] == ("slave", WEAK)
            assert {each.verdict for each in await redis_settings.read_settings_at(server.url)} == {WEAK}
            assert abs(await redis_settings.clock_ahead_s(client)) < 5.0
        finally:
            await client.close()


async def verdicts_of(client: RedisClient) -> dict[str, tuple[str, Verdict]]:
    return {each.name: (each.value, each.verdict) for each in await redis_settings.read_settings(client)}


async def test_status_reads_every_backend(sqlite_with_tables: str, tmp_path: Path) -> None:
    recipe = Nats(tmp_path / "nats")
    with running(recipe) as server:
        backends = Backends("redis://127.0.0.1:1", server.url, sqlite_with_tables)
        found = await read_settings(backends, recipe.monitor)
        assert [(setting.backend, setting.name, setting.verdict) for setting in found] == [
            ("redis", "maxmemory_policy", UNKNOWN),
            ("redis", "role", UNKNOWN),
            ("nats", "sync_interval", SAFE),
            ("sql", "synchronous", SAFE),
            ("sql", "journal_mode", SAFE),
        ]
    gone = Backends("redis://127.0.0.1:1", server.url, "mysql+pymysql://nobody@127.0.0.1:9/nothing")
    found = await read_settings(gone, recipe.monitor)
    assert [(each.backend, each.verdict) for each in found if each.backend != "redis"] == [
        ("nats", UNKNOWN),
        ("sql", UNKNOWN),
    ]
