"""Whether the database takes writes: asked by a write that changes nothing."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from meshim.errors import BackendUnavailable
from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase
from meshim.stores.sql import migrate
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.probe import check_writable
from tests.servers import MariaDB
from tests.small_disk import small_disk


async def refusals(url: str) -> list[str | None]:
    """What the port and the probe say; None for a database that takes writes."""
    database = Database(url, 1)
    found: list[str | None] = []
    for asked in (SqlAccounts(database).check_writable(), check_writable(url, 2.0)):
        try:
            await asked
        except BackendUnavailable as error:
            found.append(error.sentence)
        else:
            found.append(None)
    await database.close()
    return found


@pytest.mark.parametrize("kind", ["sqlite_url", "mariadb_url"])
async def test_a_database_with_room_takes_writes_and_keeps_its_secret(
    kind: str, request: pytest.FixtureRequest
) -> None:
    url: str = request.getfixturevalue(kind)
    migrate.upgrade(url)
    assert await refusals(url) == [None, None]
    database = Database(url, 1)
    accounts = SqlAccounts(database)
    secret = await accounts.mesh_secret()
    assert await refusals(url) == [None, None]
    assert await accounts.mesh_secret() == secret
    await database.close()


async def test_a_process_without_threads_is_refused_and_goes_on(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    migrate.upgrade(sqlite_url)
    database = Database(sqlite_url, 1)
    accounts = SqlAccounts(database)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        for _ in range(100):  # more than may wait: a refused call takes no place
            with pytest.raises(BackendUnavailable, match="No thread can be started"):
                await accounts.check_writable()
    await accounts.check_writable()
    assert database.statistics.refused == 100
    await database.close()


async def test_memory_takes_every_write() -> None:
    await MemoryAccounts(MemoryDatabase()).check_writable()


async def test_a_full_disk_under_sqlite_is_noticed_and_so_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        url = f"sqlite:///{disk.folder / 'meshim.db'}"
        migrate.upgrade(url)
        database = Database(url, 1)
        await SqlAccounts(database).mesh_secret()
        await database.close()  # the last connection empties the write-ahead log: the next write needs room
        disk.fill()
        full = r"(database or disk is full|disk I/O error)"  # the other one: where SQLite makes its shared memory
        port, probe = await refusals(url)
        assert re.fullmatch(rf"The database is not available: {full}\.", str(port))
        assert re.fullmatch(
            rf"The database takes no writes \({full}\): make room on its disk, or let it write\.", str(probe)
        )
        disk.free()
        assert await refusals(url) == [None, None]


@contextmanager
def read_only(mariadb: MariaDB, url: str) -> Iterator[str]:
    """Let the server take no writes but those of administrators; yield the URL of a user who is none."""
    database = make_url(url).database
    with mariadb._administrator() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE USER plain@'127.0.0.1' IDENTIFIED BY 'test'")
        cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO plain@'127.0.0.1'")
        cursor.execute("SET GLOBAL read_only = 1")
        try:
            yield make_url(url).set(username="plain").render_as_string(hide_password=False)
        finally:
            cursor.execute("SET GLOBAL read_only = 0")
            cursor.execute("DROP USER plain@'127.0.0.1'")


async def test_a_mariadb_that_only_reads_is_noticed(mariadb: MariaDB, mariadb_url: str) -> None:
    migrate.upgrade(mariadb_url)
    with read_only(mariadb, mariadb_url) as url:
        for sentence in await refusals(url):
            assert sentence is not None
            assert "read-only" in sentence
