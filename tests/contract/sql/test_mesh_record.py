"""The row of `im_mesh` on SQLite and MariaDB: first starts agree, and later ones that differ are refused."""

import asyncio
import secrets
from collections.abc import Awaitable

import pytest
from sqlalchemy import Connection, text

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.crypto import MasterKey, new_content_key, relation_context
from meshim.stores.ports import RelationKey
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.mesh_record import MeshRecord, SqlMeshRecord, agree_at
from meshim.stores.sql.schema import VERSION
from tests.contract.sql.backends import NOW, SqlBackend, person


def record_of(sql: SqlBackend) -> SqlMeshRecord:
    """The record as another process sees it."""
    return SqlMeshRecord(sql.connect())


def new_key() -> MasterKey:
    return MasterKey(secrets.token_bytes(32))


async def outcomes(starts: list[Awaitable[MeshRecord]]) -> list[MeshRecord | BaseException]:
    return await asyncio.gather(*starts, return_exceptions=True)


async def test_the_first_start_records_and_the_next_one_compares(sql: SqlBackend) -> None:
    first = await record_of(sql).agree("chat", 4)
    assert (first.namespace, first.partitions, first.master_fingerprint) == ("chat", 4, None)
    assert await record_of(sql).agree("chat", 4) == first
    for namespace, partitions, field, known in (
        ("chat", 8, "$.limits.partitions", "has 4 partitions, and the topology says 8"),
        ("chat", 3, "$.limits.partitions", "has 4 partitions, and the topology says 3"),
        ("talk", 4, "$.namespace", "of the namespace chat, and the topology says talk"),
    ):
        with pytest.raises(UsageError) as refused:
            await record_of(sql).agree(namespace, partitions)
        assert known in refused.value.sentence
        assert refused.value.sentence.endswith(f"- at `{field}`.")
    assert await record_of(sql).agree("chat", 4) == first


async def test_of_first_starts_at_once_one_records(sql: SqlBackend) -> None:
    """Whichever is first, the others see what it recorded: all with its partitions run, and no other."""
    found = await outcomes([record_of(sql).agree("chat", 4 + number % 2) for number in range(8)])
    running = [each for each in found if isinstance(each, MeshRecord)]
    refused = [each for each in found if isinstance(each, UsageError)]
    assert (len(running), len(refused)) == (4, 4), found
    assert len(set(running)) == 1


async def test_the_secret_of_a_connector_stays(sql: SqlBackend) -> None:
    secret = await sql.process().accounts.mesh_secret()
    first = await record_of(sql).agree("chat", 4)
    assert await sql.process().accounts.mesh_secret() == secret
    assert secret.hex() not in first.mesh_id
    assert len(first.mesh_id) == 16


async def test_databases_have_different_ids(sql: SqlBackend) -> None:
    first = await record_of(sql).agree("chat", 4)
    await sql.database.write(_without_mesh)
    assert (await record_of(sql).agree("chat", 4)).mesh_id != first.mesh_id


def _without_mesh(connection: Connection) -> None:
    connection.execute(text("DELETE FROM im_mesh"))


async def test_the_first_master_key_is_that_of_the_mesh(sql: SqlBackend) -> None:
    one, other, record = new_key(), new_key(), record_of(sql)
    await record.agree("chat", 4)
    assert not await record.has_key()
    assert await record.agree_on_key(one)
    assert await record.has_key()
    assert not await record_of(sql).agree_on_key(other)
    assert await record_of(sql).agree_on_key(one)
    recorded = (await record.agree("chat", 4)).master_fingerprint
    assert recorded == one.fingerprint


async def test_of_two_hosts_with_new_keys_one_wins(sql: SqlBackend) -> None:
    await record_of(sql).agree("chat", 4)
    records = [record_of(sql) for _ in range(4)]
    assert sorted(await asyncio.gather(*(record.agree_on_key(new_key()) for record in records))) == [0, 0, 0, 1]


async def test_a_key_that_opens_nothing_is_not_recorded(sql: SqlBackend) -> None:
    """A mesh from before the record: its content keys say which master key it has."""
    right, wrong, accounts = new_key(), new_key(), sql.process().accounts
    alice, bob = await person(sql.process()), await person(sql.process())
    await accounts.request(alice.user_id, bob.user_id, NOW, 10)
    wrapped = right.wrap(new_content_key(), relation_context(alice.user_id, bob.user_id, 1))
    await accounts.accept(bob.user_id, alice.user_id, RelationKey(1, wrapped), NOW)
    record = record_of(sql)
    await record.agree("chat", 4)
    assert not await record.agree_on_key(wrong)
    assert not await record.has_key()
    assert await record.agree_on_key(right)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "no tables, or old ones: run `meshim db upgrade`"),
        ("0001", "no tables, or old ones: run `meshim db upgrade`"),
        ("9999", "version 9999, made by a newer meshim"),
    ],
)
async def test_other_tables_are_refused(sql: SqlBackend, version: str | None, sentence: str) -> None:
    def set_version(connection: Connection) -> None:
        connection.execute(text("DELETE FROM alembic_version"))
        if version is not None:
            connection.execute(text(f"INSERT INTO alembic_version VALUES ('{version}')"))

    record = record_of(sql)
    try:
        await sql.database.write(set_version)
        with pytest.raises(UsageError, match=sentence):
            await record.agree("chat", 4)
        with pytest.raises(BackendUnavailable, match=sentence):
            await record.probe()
    finally:
        version = VERSION
        await sql.database.write(set_version)
    await record.probe()


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
async def test_a_database_without_tables_is_refused(request: pytest.FixtureRequest, kind: str) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    with pytest.raises(UsageError, match="has no tables, or old ones: run `meshim db upgrade`"):
        await agree_at(url, "chat", 4)
    database = Database(url, 1)
    try:
        with pytest.raises(BackendUnavailable, match=r"is not available: .*im_user"):  # the tables may go later
            await SqlAccounts(database).user("alice")
    finally:
        await database.close()
