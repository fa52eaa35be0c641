"""What a role checks at its start: that topology, master key, database and Redis are those of one mesh (adr/0043).

What does not fit is refused before other processes find this one.  A backend that is away is no reason not to start
(R8, R9): then the check is made as soon as the backend answers, and what does not fit ends the process.
"""

import asyncio

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.crypto import MasterKey
from meshim.runtime.service import Service
from meshim.stores.durability import DurabilityPolicy
from meshim.stores.redis import namespace, settings
from meshim.stores.redis.client import RedisClient
from meshim.stores.sql.mesh_record import MeshRecord, SqlMeshRecord
from meshim.topology import Topology

_START_S = 1.5
"""How long a start waits for backends that hang."""
_RETRY_S = 1.0
_CLOCK_S = 60.0
"""How far two clocks may be apart.  Logins end and idle devices are dropped by the clocks of different hosts."""


class Preflight:
    """The checks of one process."""

    def __init__(self, topology: Topology, redis: RedisClient, service: Service) -> None:
        self._topology = topology
        self._redis = redis
        self._service = service
        self._policy = DurabilityPolicy(topology.durability, service.log)

    async def check(self, record: SqlMeshRecord, master: MasterKey | None = None) -> MeshRecord:
        """Return the record of the mesh.  Raises `UsageError` for what does not fit, and `BackendUnavailable`.

        `master` is the key of a REST service.
        """
        found = await record.agree(self._topology.namespace, self._topology.limits.partitions)
        if master is not None and not await record.agree_on_key(master):
            raise UsageError(
                "The master key here is not that of the mesh: copy the file from the host where the mesh was started "
                "first, or restore it from your backup - at `$.security.master_key_file`."
            )
        await self._check_redis()
        await namespace.claim(self._redis, self._topology.namespace, found.mesh_id)
        return found

    async def check_when_possible(self, record: SqlMeshRecord | None, master: MasterKey | None = None) -> None:
        """As `check`; without a record, of Redis alone.

        While a backend is away it returns, and checks later: then a `UsageError` ends the service.
        """
        try:
            async with asyncio.timeout(_START_S):
                await self._check(record, master)
        except (BackendUnavailable, TimeoutError) as error:
            reason = str(error) or "a backend hangs"
            self._service.log.warning("mesh not checked", reason=reason, then="when the backend answers")
            self._service.start(self._check_later(record, master), "preflight")

    async def _check_later(self, record: SqlMeshRecord | None, master: MasterKey | None) -> None:
        while True:
            await asyncio.sleep(_RETRY_S)
            try:
                await self._check(record, master)
            except BackendUnavailable:  # said at the start
                continue
            self._service.log.info("mesh checked")
            return

    async def _check(self, record: SqlMeshRecord | None, master: MasterKey | None) -> None:
        if record is None:
            await self._check_redis()
        else:
            await self.check(record, master)

    async def _check_redis(self) -> None:
        violation = self._policy.violation(await settings.read_settings(self._redis))
        if violation is not None:
            raise UsageError(violation)
        ahead_s = await settings.clock_ahead_s(self._redis)
        if abs(ahead_s) > _CLOCK_S:
            self._service.log.warning(
                "clocks differ",
                redis_ahead_s=round(ahead_s),
                advice="run NTP on every host: logins and idle devices end early or late",
            )
