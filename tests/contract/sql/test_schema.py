"""The tables on SQLite and MariaDB: how `migrate` creates them, and what the database enforces by itself."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Inspector, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.sql import engine, migrate
from meshim.stores.sql.engine import create
from meshim.stores.sql.mesh_record import check_version
from meshim.stores.sql.schema import VERSION, im_mesh, im_position, im_relation, im_user, metadata
from tests.contract.sql.backends import open_sql_backend, person


@pytest.fixture(params=["sqlite", "mariadb"])
def empty_url(request: pytest.FixtureRequest) -> str:
    """A database without tables."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create(url, 1)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def check(url: str) -> None:
    """What every start checks first."""
    with connected(url) as connection:
        check_version(connection)


# ---------------------------------------------------------------- upgrade and check


def test_version_is_that_of_the_last_step() -> None:
    script = ScriptDirectory(str(migrate._MIGRATIONS))
    assert script.get_current_head() == VERSION
    versions = [step.revision for step in script.walk_revisions()]
    assert versions == [f"{number:04}" for number in range(len(versions), 0, -1)], "versions are compared as text"


def test_steps_lead_to_the_tables_of_the_schema(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with connected(empty_url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        inspector: Inspector = inspect(connection)
        [check] = inspector.get_check_constraints("im_relation")
        assert check["name"] == "ck_relation_order"


def test_database_needs_an_upgrade_once(empty_url: str) -> None:
    with pytest.raises(UsageError, match="run `meshim db upgrade`"):
        check(empty_url)
    migrate.upgrade(empty_url)
    check(empty_url)
    migrate.upgrade(empty_url)
    check(empty_url)


async def test_several_processes_upgrade_at_once(empty_url: str) -> None:
    await asyncio.gather(*(asyncio.to_thread(migrate.upgrade, empty_url) for _ in range(4)))
    check(empty_url)


async def test_upgrade_waits_longer_for_the_lock_than_other_transactions(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade holds the lock for as long as its steps take; another process that starts meanwhile waits for it."""
    monkeypatch.setattr(engine, "_SQLITE_BUSY_TIMEOUT_MS", 50)
    with connected(sqlite_url):
        upgrading = asyncio.create_task(asyncio.to_thread(migrate.upgrade, sqlite_url))
        _, waiting = await asyncio.wait([upgrading], timeout=0.3)  # six times as long as others would wait
        assert waiting
    await upgrading
    check(sqlite_url)


async def test_upgrade_keeps_existing_rows(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    async with open_sql_backend(empty_url) as backend:
        alice = await person(backend.process())
        migrate.upgrade(empty_url)
        found = await backend.process().accounts.user(alice.name)
        assert found is not None
        assert found[0] == alice


def test_interrupted_upgrade_is_finished(empty_url: str) -> None:
    """MySQL runs it without a transaction: some tables may exist, and the version may be missing."""
    migrate.upgrade(empty_url)
    with connected(empty_url) as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        im_position.drop(connection)
    migrate.upgrade(empty_url)
    check(empty_url)
    with connected(empty_url) as connection:
        assert inspect(connection).has_table("im_position")


def test_relations_from_before_blocks_are_kept_and_unblocked(empty_url: str) -> None:
    """Also when the step was interrupted after its first column."""
    with connected(empty_url) as connection:
        alembic.command.upgrade(migrate._configuration(connection), "0001")
        for user in (1, 2):
            connection.execute(text(f"INSERT INTO im_user VALUES ({user}, 'user{user}', 'x', 1)"))
        connection.execute(text("INSERT INTO im_relation VALUES (1, 1, 2, 'friends', 1, 1, 1)"))
        connection.execute(text("ALTER TABLE im_relation ADD COLUMN blocked_by1 SMALLINT NOT NULL DEFAULT 0"))
    with pytest.raises(UsageError, match="run `meshim db upgrade`"):
        check(empty_url)
    migrate.upgrade(empty_url)
    with connected(empty_url) as connection:
        row = connection.execute(select(im_relation)).one()
        assert (row.user_id1, row.user_id2, row.state, row.blocked_by1, row.blocked_by2) == (1, 2, "friends", 0, 0)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_mesh_from_before_its_record_keeps_its_partitions(empty_url: str) -> None:
    """Also when the step was interrupted after its first column."""
    with connected(empty_url) as connection:
        alembic.command.upgrade(migrate._configuration(connection), "0002")
        connection.execute(text(f"INSERT INTO im_mesh VALUES (1, '{'s' * 32}')"))
        for partition in range(8):
            connection.execute(text(f"INSERT INTO im_position VALUES ({partition}, 5, 1, '', 0)"))
        connection.execute(text("ALTER TABLE im_mesh ADD COLUMN namespace VARCHAR(32)"))
    migrate.upgrade(empty_url)
    with connected(empty_url) as connection:
        row = connection.execute(select(im_mesh)).one()
        assert (row.namespace, row.partitions, row.master_fingerprint) == (None, 8, None)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("act", [migrate.upgrade, check])
def test_database_of_a_newer_meshim_is_refused(empty_url: str, act: Callable[[str], None]) -> None:
    migrate.upgrade(empty_url)
    with connected(empty_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UsageError, match="version 9999, made by a newer meshim"):
        act(empty_url)


@pytest.mark.parametrize("url", ["mysql+pymysql://a:b@127.0.0.1:1/c", "sqlite:////nowhere/at/all.db"])
def test_unreachable_database_is_unavailable(url: str) -> None:
    with pytest.raises(BackendUnavailable, match="is not available"):
        migrate.upgrade(url)


# ---------------------------------------------------------------- what a connection is set to


def test_sqlite_is_durable_and_shared(sqlite_with_tables: str) -> None:
    with connected(sqlite_with_tables) as connection:
        pragmas = {
            name: connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5_000}


def test_mysql_is_strict_and_compares_bytes(mariadb_with_tables: str) -> None:
    with connected(mariadb_with_tables) as connection:
        assert "STRICT_ALL_TABLES" in str(connection.scalar(text("SELECT @@sql_mode")))
        assert connection.scalar(text("SELECT @@tx_isolation")) == "READ-COMMITTED"
        assert connection.scalar(text("SELECT @@character_set_connection")) == "utf8mb4"
        collations = connection.scalars(
            text("SELECT DISTINCT table_collation FROM information_schema.tables WHERE table_name LIKE 'im\\_%'")
        )
        assert set(collations) == {"utf8mb4_bin"}


def test_matched_rows_are_counted_even_if_unchanged(sql_url: str) -> None:
    """Fencing relies on it; by default MySQL counts changed rows."""
    with connected(sql_url) as connection:
        user = {"name": "same", "password_hash": "x", "gmt_create": 1}
        connection.execute(insert(im_user).values(user))
        assert connection.execute(update(im_user).where(im_user.c.name == "same").values(user)).rowcount == 1
        connection.rollback()


def test_ids_are_never_reused(sql_url: str) -> None:
    with connected(sql_url) as connection:
        ids = []
        for name in ("one", "two"):
            user = {"name": name, "password_hash": "x", "gmt_create": 1}
            ids.append(connection.execute(insert(im_user).values(user)).inserted_primary_key)
            connection.execute(im_user.delete().where(im_user.c.name == name))
        connection.rollback()
    first, second = ids
    assert first is not None
    assert second is not None
    assert second[0] > first[0]


def test_pair_has_the_lower_id_first(sql_url: str) -> None:
    with connected(sql_url) as connection:
        ids = []
        for name in ("one", "two"):
            user = {"name": name, "password_hash": "x", "gmt_create": 1}
            ids.append(connection.execute(insert(im_user).values(user)).inserted_primary_key)
        (low,), (high,) = (key for key in ids if key is not None)
        pair = {"state": "friends", "requested_by": 1, "gmt_create": 1, "gmt_modified": 1}
        for user1, user2 in ((high, low), (low, low)):
            # MariaDB raises an OperationalError.
            with pytest.raises((IntegrityError, OperationalError), match="ck_relation_order"):
                connection.execute(insert(im_relation).values(pair | {"user_id1": user1, "user_id2": user2}))
        connection.rollback()
