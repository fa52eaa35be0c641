"""Fixtures that run one suite on every database: in memory, on SQLite, on MariaDB."""

from collections.abc import AsyncIterator, Callable

import pytest

from meshim.stores.sql import migrate
from tests.contract.sql.backends import Backend, MemoryBackend, Ports, SqlBackend, open_sql_backend


@pytest.fixture(scope="session")
def mariadb_with_tables(new_mariadb: Callable[[], str]) -> str:
    url = new_mariadb()
    migrate.upgrade(url)
    return url


@pytest.fixture
def sqlite_with_tables(sqlite_url: str) -> str:
    migrate.upgrade(sqlite_url)
    return sqlite_url


@pytest.fixture(params=["sqlite", "mariadb"])
def sql_url(request: pytest.FixtureRequest) -> str:
    """A database with tables, and perhaps rows of earlier tests."""
    return str(request.getfixturevalue(f"{request.param}_with_tables"))


@pytest.fixture
async def sql(sql_url: str) -> AsyncIterator[SqlBackend]:
    """An empty SQL database."""
    async with open_sql_backend(sql_url) as backend:
        yield backend


@pytest.fixture(params=["memory", "sqlite", "mariadb"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """An empty database."""
    if request.param == "memory":
        yield MemoryBackend()
        return
    async with open_sql_backend(request.getfixturevalue(f"{request.param}_with_tables")) as backend:
        yield backend


@pytest.fixture
def ports(backend: Backend) -> Ports:
    return backend.process()
