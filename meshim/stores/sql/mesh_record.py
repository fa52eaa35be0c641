"""The row of `im_mesh`: what must stay the same for as long as the database lives (adr/0043).

The first start that knows a value records it.  Every later start compares: a process whose topology or master key
differs does not run, because it would delay or lose messages, or make content keys that other processes cannot open.
"""

import hashlib
import secrets
from typing import NamedTuple

from sqlalchemy import insert, inspect, select, text, update
from sqlalchemy.engine import Connection

from meshim.errors import BackendUnavailable, SealBroken, UsageError
from meshim.runtime.crypto import MasterKey, relation_context
from meshim.stores.durability import Verdict
from meshim.stores.sql.database import Database
from meshim.stores.sql.durability import read_settings
from meshim.stores.sql.schema import VERSION, im_mesh, im_relation, im_relation_key


class MeshRecord(NamedTuple):
    """What the row says; None where no start has known it yet."""

    mesh_id: str
    """16 hexadecimal digits that tell this mesh from others; derived from its secret, and reveal nothing of it."""
    namespace: str | None
    partitions: int | None
    master_fingerprint: str | None


class SqlMeshRecord:
    """Completes the row, and compares with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def agree(self, namespace: str, partitions: int) -> MeshRecord:
        """Record the namespace and the number of partitions, unless another start has; return the row.

        Of several first starts at once one records, and the others compare.  Raises `UsageError` when the database is a
        replica, when its tables are missing or of another version, or when the row has other values; and
        `BackendUnavailable`.
        """
        record = await self._database.read(_read)
        if record is None or record.namespace is None or record.partitions is None:
            record = await self._database.write(_complete, namespace, partitions)
        if record.namespace != namespace:
            raise UsageError(
                f"The database is that of the namespace {record.namespace}, and the topology says {namespace}: set it "
                "back, or give this mesh a database of its own - at `$.namespace`."
            )
        if record.partitions != partitions:
            raise UsageError(
                f"The mesh of this database has {record.partitions} partitions, and the topology says {partitions}: "
                "set it back, or messages are delayed, or stored where no writer reads - at `$.limits.partitions`."
            )
        return record

    async def agree_on_key(self, key: MasterKey) -> bool:
        """Record the fingerprint of the key, unless another start has; return whether it is the key of this mesh.

        A key that does not open the content keys of the database is not recorded.  Call it after `agree`.  Raises
        `BackendUnavailable`.
        """
        fingerprint = await self._database.read(_fingerprint)
        if fingerprint is None:
            fingerprint = await self._database.write(_record_key, key)
        return fingerprint == key.fingerprint

    async def has_key(self) -> bool:
        """Return whether the mesh has a master key.  Call it after `agree`.  Raises `BackendUnavailable`."""
        return await self._database.read(_fingerprint) is not None

    async def probe(self) -> None:
        """Raise `BackendUnavailable` when the database does not answer, or has no tables of this version."""
        try:
            await self._database.read(check_version)
        except UsageError as error:
            raise BackendUnavailable(error.sentence) from error


async def agree_at(url: str, namespace: str, partitions: int) -> None:
    """As `SqlMeshRecord.agree`, over a connection made for this."""
    database = Database(url, 1)
    try:
        await SqlMeshRecord(database).agree(namespace, partitions)
    finally:
        await database.close()


def check_version(connection: Connection) -> None:
    """Raise `UsageError` unless the database has the tables of this version."""
    version = read_version(connection)
    if version is None or version < VERSION:
        raise UsageError("The database has no tables, or old ones: run `meshim db upgrade`.")
    if version > VERSION:
        raise newer(version)


def read_version(connection: Connection) -> str | None:
    """Return the version that Alembic has recorded, without Alembic; None where there are no tables."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def newer(version: str) -> UsageError:
    """Return the error for a database of a version that this program does not know."""
    return UsageError(f"The database has version {version}, made by a newer meshim: install that one.")


def _read(connection: Connection) -> MeshRecord | None:
    check_version(connection)
    for setting in read_settings(connection):
        if setting.name == "read_only" and setting.verdict is Verdict.WEAK:
            raise UsageError(setting.reason)
    return _row(connection)


def _row(connection: Connection) -> MeshRecord | None:
    row = connection.execute(select(im_mesh)).one_or_none()
    if row is None:
        return None
    mesh_id = hashlib.sha256(b"meshim mesh id " + row.secret).hexdigest()[:16]
    return MeshRecord(mesh_id, row.namespace, row.partitions, row.master_fingerprint)


def _complete(connection: Connection, namespace: str, partitions: int) -> MeshRecord:
    if _row(connection) is None:  # of two first starts the second finds the key of the row taken, and runs again
        connection.execute(insert(im_mesh).values(id=1, secret=secrets.token_bytes(32)))
    for column, value in ((im_mesh.c.namespace, namespace), (im_mesh.c.partitions, partitions)):
        connection.execute(update(im_mesh).where(column.is_(None)).values({column: value}))
    record = _row(connection)  # the update has waited for that of another start
    assert record is not None
    return record


def _fingerprint(connection: Connection) -> str | None:
    fingerprint: str | None = connection.scalar(select(im_mesh.c.master_fingerprint))
    return fingerprint


def _record_key(connection: Connection, key: MasterKey) -> str | None:
    """Return the fingerprint in the row; None where the key opens no content key that is there already."""
    sample = connection.execute(_SAMPLE).one_or_none()
    if sample is not None:
        try:
            key.unwrap(sample.wrapped, relation_context(sample.user_id1, sample.user_id2, sample.version))
        except SealBroken:
            return None
    unknown = im_mesh.c.master_fingerprint.is_(None)
    connection.execute(update(im_mesh).where(unknown).values(master_fingerprint=key.fingerprint))
    return _fingerprint(connection)


_SAMPLE = (
    select(im_relation_key.c.wrapped, im_relation_key.c.version, im_relation.c.user_id1, im_relation.c.user_id2)
    .join(im_relation, im_relation.c.id == im_relation_key.c.relation_id)
    .limit(1)
)
