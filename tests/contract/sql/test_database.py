"""Transactions on SQLite and MariaDB: bounded, retried after contention, and unavailable when the database is down."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, func, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from meshim.errors import BackendUnavailable, StoreConflict, UsageError
from meshim.stores.sql import engine
from meshim.stores.sql.database import Database, DatabaseStatistics
from meshim.stores.sql.schema import im_user, now_ms
from tests.contract.sql.backends import SqlBackend, open_sql_backend, person


def count_users(connection: Connection) -> int:
    return connection.scalars(select(func.count()).select_from(im_user)).one()


def rename(connection: Connection, user_id: int, name: str) -> None:
    connection.execute(update(im_user).where(im_user.c.id == user_id).values(name=name))


# ---------------------------------------------------------------- transactions


async def test_a_transaction_that_raises_is_rolled_back(sql: SqlBackend) -> None:
    def add_and_raise(connection: Connection) -> None:
        connection.execute(insert(im_user).values(name="alice", password_hash="x", gmt_create=1))
        assert count_users(connection) == 1
        raise StoreConflict("No.")

    with pytest.raises(StoreConflict):
        await sql.database.write(add_and_raise)
    assert await sql.database.read(count_users) == 0


async def test_reads_of_one_transaction_share_a_snapshot(sql: SqlBackend) -> None:
    looked, go_on = threading.Event(), threading.Event()

    def count_twice(connection: Connection) -> tuple[int, int]:
        first = count_users(connection)
        looked.set()
        assert go_on.wait(10)
        return first, count_users(connection)

    reading = asyncio.create_task(sql.database.read(count_twice))
    assert await asyncio.to_thread(looked.wait, 10)
    await person(sql.process())
    go_on.set()
    assert await reading == (0, 0)
    assert await sql.database.read(count_users) == 1


async def test_clock_of_the_database_is_in_milliseconds(sql: SqlBackend) -> None:
    def clock(connection: Connection) -> int:
        return connection.scalars(select(now_ms())).one()

    first = await sql.database.read(clock)
    assert 1_700_000_000_000 < first < 10_000_000_000_000
    assert first <= await sql.database.read(clock) < first + 60_000


async def test_clock_of_the_database_is_independent_of_time_zones(mariadb_with_tables: str) -> None:
    def clock(connection: Connection, zone: str) -> int:
        connection.execute(text(f"SET time_zone = '{zone}'"))
        return connection.scalars(select(now_ms())).one()

    async with open_sql_backend(mariadb_with_tables) as backend:
        west, east = [await backend.database.read(clock, zone) for zone in ("-11:00", "+12:00")]
    assert abs(east - west) < 60_000


# ---------------------------------------------------------------- again


async def test_deadlock_is_retried(mariadb_with_tables: str) -> None:
    async with open_sql_backend(mariadb_with_tables) as backend:
        ports = backend.process()
        alice, bob = await person(ports), await person(ports)
        both_hold_one = threading.Barrier(2)

        def rename_both(connection: Connection, first: int, second: int, name: str) -> None:
            rename(connection, first, f"{name} 1")
            if not both_hold_one.broken:
                both_hold_one.wait(10)
                both_hold_one.abort()
            rename(connection, second, f"{name} 2")

        def meet(connection: Connection, first: int, second: int, name: str) -> None:
            try:
                rename_both(connection, first, second, name)
            except threading.BrokenBarrierError:
                rename(connection, second, f"{name} 2")

        one, other = backend.connect(), backend.connect()
        await asyncio.gather(
            one.write(meet, alice.user_id, bob.user_id, "one"), other.write(meet, bob.user_id, alice.user_id, "other")
        )
        assert one.statistics.retries + other.statistics.retries == 1
        assert one.statistics.failures + other.statistics.failures == 0


async def test_lock_held_too_long_is_unavailable(mariadb_with_tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_sql_backend(mariadb_with_tables) as backend:
        alice = await person(backend.process())
        held, let_go = threading.Event(), threading.Event()

        def hold(connection: Connection) -> None:
            rename(connection, alice.user_id, "held")
            held.set()
            assert let_go.wait(10)

        holding = asyncio.create_task(backend.database.write(hold))
        assert await asyncio.to_thread(held.wait, 10)
        monkeypatch.setattr(engine, "_MYSQL_SESSION", "SET SESSION innodb_lock_wait_timeout = 0")
        impatient = backend.connect()
        with pytest.raises(BackendUnavailable, match="Lock wait timeout"):
            await impatient.write(rename, alice.user_id, "mine")
        assert impatient.statistics == DatabaseStatistics(4, 3, 1, 0)
        let_go.set()
        await holding


async def test_file_locked_too_long_is_unavailable(sqlite_with_tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_sql_backend(sqlite_with_tables) as backend:
        held, let_go = threading.Event(), threading.Event()

        def hold(connection: Connection) -> None:
            held.set()
            assert let_go.wait(10)

        holding = asyncio.create_task(backend.database.write(hold))
        assert await asyncio.to_thread(held.wait, 10)
        monkeypatch.setattr(engine, "_SQLITE_BUSY_TIMEOUT_MS", 1)
        impatient = backend.connect()
        with pytest.raises(BackendUnavailable, match="database is locked"):
            await impatient.write(rename, 1, "mine")
        assert await impatient.read(count_users) == 0  # readers do not wait for writers
        let_go.set()
        await holding


async def test_lock_of_a_file_is_polled_every_few_milliseconds(
    sqlite_with_tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own busy handler would sleep for up to 100 ms, and take a free lock that much later."""
    pauses = []

    class Watched:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            time.sleep(seconds)

    monkeypatch.setattr(engine, "time", Watched)
    async with open_sql_backend(sqlite_with_tables) as backend:
        other = backend.connect()
        held, let_go = threading.Event(), threading.Event()

        def hold(connection: Connection) -> None:
            held.set()
            assert let_go.wait(10)

        holding = asyncio.create_task(backend.database.write(hold))
        assert await asyncio.to_thread(held.wait, 10)
        waiting = asyncio.create_task(other.write(count_users))
        async with asyncio.timeout(10):
            while len(pauses) < 20:
                await asyncio.sleep(0.005)
        let_go.set()
        assert await waiting == 0
        await holding
    assert max(pauses) <= 0.005


async def test_row_inserted_in_between_is_found_by_the_retry(mariadb_with_tables: str) -> None:
    async with open_sql_backend(mariadb_with_tables) as backend:
        other = backend.connect()
        looks = []

        def look_and_insert(connection: Connection) -> str:
            looks.append(count_users(connection))
            if looks[-1]:
                return "found"
            # As another process would, after our select.
            asyncio.run_coroutine_threadsafe(other.write(insert_alice), loop).result(10)
            insert_alice(connection)
            return "inserted"

        def insert_alice(connection: Connection) -> None:
            connection.execute(insert(im_user).values(name="alice", password_hash="x", gmt_create=1))

        loop = asyncio.get_running_loop()
        assert await backend.database.write(look_and_insert) == "found"
        assert looks == [0, 1]
        assert backend.database.statistics.retries == 1


# ---------------------------------------------------------------- away


async def test_our_bugs_are_not_reported_as_outages(sql: SqlBackend) -> None:
    for mistake in (
        "SELECT no_such_column FROM im_user",
        "SELEC",
        "INSERT INTO im_user (name) VALUES ('a')",
    ):
        with pytest.raises(SQLAlchemyError):
            await sql.database.write(lambda connection, sql_text: connection.execute(text(sql_text)), mistake)
    assert sql.database.statistics.failures == 0


async def test_tables_that_are_gone_are_an_outage(sql: SqlBackend) -> None:
    """Each start compares the tables: later only a restore or `DROP TABLE` can take one away."""
    with pytest.raises(BackendUnavailable, match="no_such_table"):
        await sql.database.read(lambda connection: connection.execute(text("SELECT * FROM no_such_table")))


async def test_connection_that_was_closed_while_idle_is_replaced(mariadb_with_tables: str) -> None:
    def connection_id(connection: Connection) -> int:
        return int(connection.scalars(select(func.connection_id())).one())

    def kill(connection: Connection, number: int) -> None:
        connection.execute(text(f"KILL {number}"))

    async with open_sql_backend(mariadb_with_tables) as backend:
        idle = Database(backend.url, 1)
        former = await idle.read(connection_id)
        await backend.database.read(kill, former)
        assert await idle.read(connection_id) != former
        assert idle.statistics.failures == 0
        await idle.close()


async def test_connection_lost_in_a_transaction_is_unavailable_and_the_next_one_works(mariadb_with_tables: str) -> None:
    def lose(connection: Connection) -> None:
        connection.execute(text("KILL CONNECTION_ID()"))
        count_users(connection)

    async with open_sql_backend(mariadb_with_tables) as backend:
        with pytest.raises(BackendUnavailable, match="is not available"):
            await backend.database.write(lose)
        assert await backend.database.read(count_users) == 0
        assert backend.database.statistics.failures == 1


@pytest.mark.parametrize(
    "url", ["mysql+pymysql://meshim:test@127.0.0.1:1/meshim", "sqlite:////nowhere/at/all.db", "sqlite:////proc/version"]
)
async def test_unreachable_server_is_unavailable(url: str) -> None:
    database = Database(url, 1)
    with pytest.raises(BackendUnavailable, match=r"^The database is not available: .*[^.]\.$"):
        await database.write(count_users)
    await database.close()


async def test_error_of_a_wrong_password_does_not_show_it(mariadb_with_tables: str) -> None:
    database = Database(mariadb_with_tables.replace(":test@", ":secret@"), 1)
    with pytest.raises(BackendUnavailable, match="Access denied") as caught:
        await database.read(count_users)
    assert "secret" not in caught.value.sentence
    await database.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://localhost/meshim", "must begin with"),
        ("mysql://localhost/meshim", "must begin with"),
        ("embedded", "must begin with"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_url_of_another_database_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Database(url, 1)


# ---------------------------------------------------------------- bounded


async def test_waiting_calls_are_limited(sql: SqlBackend) -> None:
    database = Database(sql.url, 1)
    started, go_on = threading.Event(), threading.Event()

    def stay(connection: Connection) -> None:
        started.set()
        assert go_on.wait(10)

    staying = asyncio.create_task(database.read(stay))
    assert await asyncio.to_thread(started.wait, 10)
    waiting = [asyncio.create_task(database.read(count_users)) for _ in range(64)]
    await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable, match="Too much is waiting"):
        await database.read(count_users)
    assert database.statistics.refused == 1

    waiting.pop().cancel()  # a cancelled call makes room
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(database.read(count_users)))
    go_on.set()
    await asyncio.gather(staying, *waiting)
    assert database.statistics == DatabaseStatistics(65, 0, 0, 1)
    await database.close()


async def test_write_that_waits_for_a_lock_delays_no_read(sql: SqlBackend) -> None:
    database = Database(sql.url, 1)
    started, go_on = threading.Event(), threading.Event()

    def stay(connection: Connection) -> None:
        started.set()
        assert go_on.wait(10)

    staying = asyncio.create_task(database.write(stay))
    assert await asyncio.to_thread(started.wait, 10)
    assert await asyncio.wait_for(database.read(count_users), 5) == 0
    go_on.set()
    await staying
    await database.close()


# ---------------------------------------------------------------- shared transactions


async def test_waiting_writes_share_a_transaction_and_get_their_own_results(sqlite_with_tables: str) -> None:
    async with open_sql_backend(sqlite_with_tables) as backend:
        database = Database(backend.url, 1)
        started, go_on = threading.Event(), threading.Event()

        def stay(connection: Connection) -> None:
            started.set()
            assert go_on.wait(10)

        def add(connection: Connection, name: str) -> str:
            connection.execute(insert(im_user).values(name=name, password_hash="x", gmt_create=1))
            if name == "mallory":
                raise StoreConflict("No.")
            return name

        staying = asyncio.create_task(database.write(stay))
        assert await asyncio.to_thread(started.wait, 10)
        names = ("alice", "mallory", "bob", "alice", "carol")
        adding = [asyncio.create_task(database.write(add, name)) for name in names]
        await asyncio.sleep(0)
        adding.pop().cancel()  # carol
        await asyncio.sleep(0)
        go_on.set()
        alice, mallory, bob, again = await asyncio.gather(*adding, return_exceptions=True)
        await staying
        assert (alice, bob) == ("alice", "bob")
        assert isinstance(mallory, StoreConflict)
        assert isinstance(again, SQLAlchemyError)
        assert await database.read(count_users) == 2
        assert database.statistics == DatabaseStatistics(3, 0, 0, 0)
        await database.close()


def fill_up(connection: Connection) -> None:
    """Make the disk full in the middle of a statement: SQLite rolls back the whole transaction by itself."""
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 3}").close()
    try:
        connection.exec_driver_sql("INSERT INTO ballast VALUES (zeroblob(1000000))")
    finally:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000").close()


def fill_up_and_refuse(connection: Connection) -> None:
    try:
        fill_up(connection)
    except SQLAlchemyError as error:
        raise StoreConflict("No.") from error


def fill_up_and_go_on(connection: Connection) -> None:
    with contextlib.suppress(SQLAlchemyError):
        fill_up(connection)


@pytest.mark.parametrize("fill", [fill_up, fill_up_and_refuse, fill_up_and_go_on])
async def test_full_disk_fails_every_write_of_a_shared_transaction(
    sqlite_with_tables: str, fill: Callable[[Connection], None]
) -> None:
    async with open_sql_backend(sqlite_with_tables) as backend:
        database = Database(backend.url, 1)
        started, go_on = threading.Event(), threading.Event()

        def prepare(connection: Connection) -> None:
            connection.execute(text("CREATE TABLE ballast (bytes BLOB)"))
            started.set()
            assert go_on.wait(10)

        def add(connection: Connection, name: str) -> None:
            connection.execute(insert(im_user).values(name=name, password_hash="x", gmt_create=1))

        preparing = asyncio.create_task(database.write(prepare))
        assert await asyncio.to_thread(started.wait, 10)
        writing = [
            asyncio.create_task(database.write(add, "alice")),
            asyncio.create_task(database.write(fill)),
            asyncio.create_task(database.write(add, "bob")),
        ]
        await asyncio.sleep(0)
        go_on.set()
        results = await asyncio.gather(*writing, return_exceptions=True)
        await preparing
        assert [type(result) for result in results] == [BackendUnavailable] * 3
        assert len({id(result) for result in results}) == 3
        assert await database.read(count_users) == 0
        assert database.statistics.failures == 1
        await database.write(add, "carol")
        assert await database.read(count_users) == 1
        await database.close()


async def test_no_write_succeeds_when_the_shared_transaction_is_lost(sqlite_with_tables: str) -> None:
    async with open_sql_backend(sqlite_with_tables) as backend:
        await backend.database.write(lambda connection: connection.execute(text("CREATE TABLE ballast (bytes BLOB)")))
        with pytest.raises(BackendUnavailable, match="ended the transaction by itself"):
            await backend.database.write(fill_up_and_go_on)


async def test_unavailable_database_fails_every_write_of_a_shared_transaction(
    sqlite_with_tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sql_backend(sqlite_with_tables) as backend:
        monkeypatch.setattr(engine, "_SQLITE_BUSY_TIMEOUT_MS", 300)
        database = Database(backend.url, 1)
        held, let_go = threading.Event(), threading.Event()

        def hold(connection: Connection) -> None:
            held.set()
            assert let_go.wait(10)

        holding = asyncio.create_task(backend.database.write(hold))
        assert await asyncio.to_thread(held.wait, 10)
        writing = [asyncio.create_task(database.write(count_users)) for _ in range(5)]
        results = await asyncio.gather(*writing, return_exceptions=True)
        assert [type(result) for result in results] == [BackendUnavailable] * 5
        let_go.set()
        await holding
        assert await database.write(count_users) == 0
        await database.close()


async def test_close_waits_for_running_calls_and_refuses_others(sql: SqlBackend) -> None:
    database = Database(sql.url, 1)
    started, go_on = threading.Event(), threading.Event()

    def add_slowly(connection: Connection) -> None:
        started.set()
        assert go_on.wait(10)
        connection.execute(insert(im_user).values(name="alice", password_hash="x", gmt_create=1))

    adding = asyncio.create_task(database.write(add_slowly))
    assert await asyncio.to_thread(started.wait, 10)
    waiting = asyncio.create_task(database.write(count_users))
    await asyncio.sleep(0)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable, match="was closed"):
        await database.read(count_users)
    with pytest.raises(asyncio.CancelledError):
        await waiting  # it is cancelled before its thread is free
    go_on.set()
    await closing
    await adding
    assert await sql.database.read(count_users) == 1
