"""Adds invites to the database of a mesh: imported when they are made, since other commands need no database."""

import time

from meshim.deploy.state import DataFolder
from meshim.errors import UsageError
from meshim.runtime.crypto import hash_invite, new_invite
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.mesh_record import check_version
from meshim.topology import Topology

_DAY_S = 86400.0


async def add(topology: Topology, data: DataFolder, count: int, days: float) -> list[str]:
    """Return new codes that are valid for so many days.

    Raises UsageError when there is no mesh in the data folder, and BackendUnavailable when its database is away.
    """
    url = topology.backends.sql
    if url == "embedded":
        if not data.root.joinpath("meshim.db").exists():
            raise UsageError(
                f"There is no mesh in {data.root}: start it with `meshim up`, or name its folder in --data."
            )
        url = data.sqlite_url
    codes = [new_invite() for _ in range(count)]
    database = Database(url, 1)
    try:
        await database.read(check_version)
        now = time.time()
        await SqlAccounts(database).add_invites([hash_invite(code) for code in codes], now + days * _DAY_S, now)
    finally:
        await database.close()
    return codes
