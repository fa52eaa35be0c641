"""The first master key of a mesh: one REST service makes it, and all others need a copy of its file (adr/0043)."""

import asyncio
from pathlib import Path

from meshim.errors import UsageError
from meshim.runtime.crypto import MasterKey
from meshim.stores.sql.mesh_record import SqlMeshRecord


async def make(path: Path, record: SqlMeshRecord) -> MasterKey:
    """Make the file of a new mesh, and return its key; or the key of another process that has just made it here.

    Call it when there is no file.  Raises `UsageError` when the mesh has a key already, and `BackendUnavailable`.
    """
    missing = UsageError(
        f"The mesh of this database has a master key, and {path} does not exist: copy it from the host where the mesh "
        "was started first, or restore it from your backup."
    )
    if await record.has_key():
        raise missing
    made = MasterKey.create(path)
    key = MasterKey.load(path)
    assert key is not None
    if not await record.agree_on_key(key):
        if made:  # another host was faster, or the key of an older mesh is lost: this one has wrapped nothing
            await asyncio.to_thread(path.unlink)
        raise missing
    return key
