"""What a role checks at its start: that topology, master key, database and Redis are those of one mesh (adr/0043).

What does not fit is refused before other processes find this one.  A backend that is away is no reason not to start
(R8, R9): then the check is made as soon as the backend answers, and what does not fit ends the process.
"""

import asyncio

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.crypto import MasterKey
from meshim.runtime.service import Service
from meshim.stores.redis import namespace
from meshim.stores.redis.client import RedisClient
from meshim.stores.sql.mesh_record import MeshRecord, SqlMeshRecord
from meshim.topology import Topology

_START_S = 1.5
"""How long a start waits for backends that hang."""
_RETRY_S = 1.0


class Preflight:
    """The checks of one process; `master` is the key of a REST service."""

    def __init__(
        self, topology: Topology, record: SqlMeshRecord, redis: RedisClient, master: MasterKey | None = None
    ) -> None:
        self._topology = topology
        self._record = record
        self._redis = redis
        self._master = master

    async def check(self) -> MeshRecord:
        """Return the record of the mesh.  Raises `UsageError` for what does not fit, and `BackendUnavailable`."""
        found = await self._record.agree(self._topology.namespace, self._topology.limits.partitions)
        if self._master is not None and not await self._record.agree_on_key(self._master):
            raise UsageError(
                "The master key here is not that of the mesh: copy the file from the host where the mesh was started "
                "first, or restore it from your backup - at `$.security.master_key_file`."
            )
        await namespace.claim(self._redis, self._topology.namespace, found.mesh_id)
        return found

    async def check_when_possible(self, service: Service) -> None:
        """As `check`, but go on when a backend is away, and check later: then `UsageError` ends the service."""
        try:
            async with asyncio.timeout(_START_S):
                await self.check()
        except (BackendUnavailable, TimeoutError) as error:
            service.log.warning("mesh not checked", reason=str(error) or "a backend hangs", then="when it answers")
            service.start(self._check_later(service), "preflight")

    async def _check_later(self, service: Service) -> None:
        while True:
            await asyncio.sleep(_RETRY_S)
            try:
                await self.check()
            except BackendUnavailable:  # said at the start
                continue
            service.log.info("mesh checked")
            return
