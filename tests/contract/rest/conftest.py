"""The REST service over each database: memory, SQLite, MariaDB."""

from collections.abc import AsyncIterator

import pytest

from meshim.runtime import crypto
from tests.contract.rest.world import World, world_of


@pytest.fixture(params=["memory", "sqlite", "mariadb"])
async def world(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[World]:
    database = "mariadb_url" if request.param == "mariadb" else "sqlite_url"
    async with world_of(
        request.param,
        lambda: str(request.getfixturevalue(database)),
        lambda: str(request.getfixturevalue("valkey_url")),
        namespace,
    ) as world:
        yield world


@pytest.fixture(autouse=True)
def _quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use Argon2 with little memory, so that a hash takes no time."""
    monkeypatch.setattr(crypto, "_ARGON2_MEMORY_KIB", 8)
    monkeypatch.setattr(crypto, "_ARGON2_PASSES", 1)
