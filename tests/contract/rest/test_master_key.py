"""The first start of REST services: one master key for all, whoever is first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from meshim.errors import UsageError
from meshim.rest import master_key
from meshim.runtime.crypto import MasterKey
from meshim.stores.sql import migrate
from meshim.stores.sql.database import Database
from meshim.stores.sql.mesh_record import SqlMeshRecord

PROCESSES = 4


@pytest.fixture(params=["sqlite", "mariadb"])
async def records(request: pytest.FixtureRequest) -> AsyncIterator[list[SqlMeshRecord]]:
    """The record of a new mesh, as several processes see it."""
    url = request.getfixturevalue(f"{request.param}_url")
    migrate.upgrade(url)
    async with AsyncExitStack() as stack:
        records = []
        for _ in range(PROCESSES):
            database = Database(url, 1)
            stack.push_async_callback(database.close)
            records.append(SqlMeshRecord(database))
        await records[0].agree("chat", 4)
        yield records


async def test_services_of_one_host_share_the_first_key(records: list[SqlMeshRecord], tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    keys = await asyncio.gather(*(master_key.make(path, record) for record in records))
    assert len({key.fingerprint for key in keys}) == 1
    assert all(await asyncio.gather(*(record.agree_on_key(key) for record, key in zip(records, keys, strict=True))))


async def test_a_service_that_looked_before_the_first_key_was_there_gets_it(
    records: list[SqlMeshRecord], tmp_path: Path
) -> None:
    """It found no file, and a moment later the database has a fingerprint: that of the file of its neighbour."""
    path = tmp_path / "master.key"
    first = await master_key.make(path, records[0])
    assert (await master_key.make(path, records[1])).fingerprint == first.fingerprint


async def test_of_several_hosts_one_keeps_its_key(records: list[SqlMeshRecord], tmp_path: Path) -> None:
    paths = [tmp_path / f"host{number}" / "master.key" for number in range(PROCESSES)]
    started = await asyncio.gather(
        *(master_key.make(path, record) for path, record in zip(paths, records, strict=True)), return_exceptions=True
    )
    [key] = [each for each in started if isinstance(each, MasterKey)]
    refused = [each for each in started if isinstance(each, UsageError)]
    assert len(refused) == PROCESSES - 1, started
    assert all("copy it from the host where the mesh was started first" in error.sentence for error in refused)
    [path] = [path for path in paths if path.exists()]
    loaded = MasterKey.load(path)
    assert loaded is not None
    assert loaded.fingerprint == key.fingerprint
    assert await records[0].agree_on_key(key)
