"""One suite for every archive: in memory, on SQLite, on MariaDB."""

from collections.abc import AsyncIterator, Callable

import pytest

from meshim.stores.sql import upgrades
from tests.contract.database_sides import MemorySide, Ports, Side, SqlSide, sql_side


@pytest.fixture(scope="session")
def mariadb_with_tables(new_mariadb: Callable[[], str]) -> str:
    url = new_mariadb()
    upgrades.upgrade(url)
    return url


@pytest.fixture
def sqlite_with_tables(sqlite_url: str) -> str:
    upgrades.upgrade(sqlite_url)
    return sqlite_url


@pytest.fixture(params=["sqlite", "mariadb"])
def sql_url(request: pytest.FixtureRequest) -> str:
    """A database with tables, perhaps with rows."""
    return str(request.getfixturevalue(f"{request.param}_with_tables"))


@pytest.fixture
async def sql(sql_url: str) -> AsyncIterator[SqlSide]:
    """An empty SQL archive."""
    async with sql_side(sql_url) as side:
        yield side


@pytest.fixture(params=["memory", "sqlite", "mariadb"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    """An empty archive."""
    if request.param == "memory":
        yield MemorySide()
        return
    async with sql_side(request.getfixturevalue(f"{request.param}_with_tables")) as side:
        yield side


@pytest.fixture
def ports(side: Side) -> Ports:
    return side.process()
