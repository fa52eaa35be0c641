"""The first master key of a mesh: one REST service makes it, and all others need a copy of its file (adr/0043)."""

import asyncio
from pathlib import Path

from meshim.errors import UsageError
from meshim.runtime.crypto import MasterKey
from meshim.stores.sql.mesh_record import SqlMeshRecord


async def make(path: Path, record: SqlMeshRecord) -> MasterKey:
    """Make the file of a new mesh and return its key; or the key of another service, which has just made it here.

    Call it when there was no file.  Raises `UsageError` when the mesh has a key and there is no file, and
    `BackendUnavailable`.
    """
    made = not await record.has_key() and MasterKey.create(path)
    key = MasterKey.load(path)
    if key is not None and made and not await record.agree_on_key(key):
        # Another host was faster, or the key of an older mesh is lost: this one has wrapped nothing.
        await asyncio.to_thread(path.unlink)
        key = None
    if key is None:
        raise UsageError(
            f"The mesh of this database has a master key, and {path} does not exist: copy it from the host where the "
            "mesh was started first, or restore it from your backup."
        )
    return key
