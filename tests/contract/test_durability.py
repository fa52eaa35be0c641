"""Settings as real servers tell them, and that nothing is stored where they would lose it."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from meshim.deploy.embedded import Nats
from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores.backends import read_settings
from meshim.stores.durability import Verdict
from meshim.stores.nats import durability as nats_durability
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.sql import durability as sql_durability
from meshim.stores.sql import engine
from meshim.stores.sql.database import Database
from meshim.stores.sql.durability import DatabaseDurabilityGate
from meshim.stores.sql.partitions import SqlPartitions
from meshim.topology import Backends, Durability
from tests.contract.database_sides import NOW, SqlSide, claimed, entry, person, positions, sql_side
from tests.contract.outage import up
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
        [setting] = await nats_durability.read_settings(client.server, monitor)
    assert (setting.backend, setting.name) == ("nats", "sync_interval")
    return setting.verdict, setting.value + setting.reason


async def test_nats_tells_how_it_syncs(tmp_path: Path) -> None:
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


async def test_a_log_that_comes_back_weaker_gets_nothing_until_it_is_right(tmp_path: Path, namespace: str) -> None:
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
        run = client.server
        async with up(recipe):
            await another_run(client, run)
            with pytest.raises(BackendUnavailable, match=r"sync_interval: always"):
                await log.publish(0, b"2")
            with pytest.raises(UsageError, match=r"durability.weak: warn"):
                await LogDurabilityGate(client, Durability(nats_monitor=recipe.monitor), LOG).start()
            run = client.server
        recipe.weak = False
        async with up(recipe):
            await another_run(client, run)
            assert await log.publish(0, b"3") == 2


async def another_run(client: NatsClient, before: str) -> None:
    """Wait until the client is connected to another run of the server."""
    async with asyncio.timeout(20):
        while not client.connected or client.server == before:
            await asyncio.sleep(0.02)


async def test_what_is_not_known_is_refused_where_the_topology_says_so(nats_url: str, namespace: str) -> None:
    async with connected(nats_url) as client:
        await LogDurabilityGate(client, Durability(), LOG).start()
        with pytest.raises(UsageError, match=r"durability.nats_monitor"):
            await LogDurabilityGate(client, Durability(unknown="refuse"), LOG).start()


async def test_connections_of_ours_sync_what_they_commit(sql: SqlSide) -> None:
    found = await sql.database.read(sql_durability.read_settings)
    assert {setting.verdict for setting in found} == {SAFE}
    names = {setting.name for setting in found}
    assert names in ({"journal_mode", "synchronous"}, {"innodb_flush_log_at_trx_commit", "innodb_doublewrite"})


async def test_nothing_is_written_to_a_sqlite_that_is_weak(
    sqlite_with_tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = [pragma.replace("synchronous = FULL", "synchronous = NORMAL") for pragma in engine._SQLITE_PRAGMAS]
    async with sql_side(sqlite_with_tables) as strong:
        monkeypatch.setattr(engine, "_SQLITE_PRAGMAS", weak)
        await _refuses(strong, strong.connect())


async def test_nothing_is_written_to_a_mariadb_that_turns_weak(mariadb_with_tables: str) -> None:
    async with sql_side(mariadb_with_tables) as side:
        await DatabaseDurabilityGate(Durability(), LOG).start(side.database)
        with global_variable(mariadb_with_tables, "innodb_flush_log_at_trx_commit", "2", "1"):
            await _refuses(side, side.database)
        with global_variable(mariadb_with_tables, "sync_binlog", "0", "1"):  # without a binary log
            await DatabaseDurabilityGate(Durability(unknown="refuse"), LOG).start(side.database)


async def _refuses(side: SqlSide, weak: Database) -> None:
    """What a voucher does with a weak connection: nothing is written, and it goes on where that is not so."""
    ports = side.process()
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
    """Give a variable of the server, which all tests share, another value."""
    server = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

    def put(now: str) -> None:
        with server.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL {name} = {now}")

    put(value)
    try:
        yield
    finally:
        put(normal)


async def test_status_asks_both(sqlite_with_tables: str, tmp_path: Path) -> None:
    recipe = Nats(tmp_path / "nats")
    with running(recipe) as server:
        backends = Backends("redis://127.0.0.1:1", server.url, sqlite_with_tables)
        found = await read_settings(backends, recipe.monitor)
        assert [(setting.backend, setting.name, setting.verdict) for setting in found] == [
            ("nats", "sync_interval", SAFE),
            ("sql", "synchronous", SAFE),
            ("sql", "journal_mode", SAFE),
        ]
    gone = Backends("redis://127.0.0.1:1", server.url, "mysql+pymysql://nobody@127.0.0.1:9/nothing")
    found = await read_settings(gone, recipe.monitor)
    assert [(setting.backend, setting.verdict) for setting in found] == [("nats", UNKNOWN), ("sql", UNKNOWN)]
