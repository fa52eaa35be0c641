"""Nothing is stored where it would not be safe: settings are read again where they may have changed.

The log is asked until it has told, once for each run of its server, which reads its configuration when it starts;
another run is known by its id.  The database is asked in the very transaction that is to be safe, since its settings
can be changed while it runs and are, in SQLite, those of a connection.

What is refused looks like a backend that is away: senders keep their messages, the log keeps its records, and all of
it goes on by itself when the settings are right.
"""

import asyncio
import math

from sqlalchemy.engine import Connection

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores import settings
from meshim.stores.archive import Archive
from meshim.stores.durability import Trust, Verdict
from meshim.stores.nats_client import NatsClient
from meshim.topology import Durability

ASK_AGAIN_S = 5.0
"""What could not be read is read again after this time: a server that has just started may be slow to tell."""


class LogVoucher:
    """Vouches for a NATS server.  Call it before each publish; free once this run of the server has told."""

    def __init__(self, nats: NatsClient, policy: Durability, log: Log) -> None:
        self._nats = nats
        self._monitor = policy.nats_monitor
        self._trust = Trust(policy, log)
        self._reading = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._server = ""
        self._ask_again_at = math.inf
        self._refusal: str | None = None

    async def start(self) -> None:
        """Read for the first time; raises `UsageError` where the topology says that this must not be."""
        await self._read()
        if self._refusal is not None:
            raise UsageError(self._refusal)

    async def __call__(self) -> None:
        """Raises `BackendUnavailable` where what is stored now would not be safe."""
        await self._read()
        if self._refusal is not None:
            raise BackendUnavailable(self._refusal)

    async def _read(self) -> None:
        while self._is_due():  # again if it was replaced meanwhile
            if self._reading.locked() and self._server == self._nats.server:
                return  # asked again: what is known of it holds for everybody but the one who asks
            async with self._reading:
                if not self._is_due():
                    continue  # somebody else has read it while we waited
                server = self._nats.server
                found = await settings.of_nats(server, self._monitor)
                self._refusal = self._trust.refusal(found)
                self._server = server
                told = self._monitor is None or all(each.verdict is not Verdict.UNKNOWN for each in found)
                self._ask_again_at = math.inf if told else self._loop.time() + ASK_AGAIN_S

    def _is_due(self) -> bool:
        return self._server != self._nats.server or self._loop.time() >= self._ask_again_at


class DatabaseVoucher:
    """Vouches for connections of a database; for any thread."""

    def __init__(self, policy: Durability, log: Log) -> None:
        self._trust = Trust(policy, log)

    async def start(self, archive: Archive) -> None:
        """Raises `UsageError` where the topology says that this must not be, `BackendUnavailable` when it is away."""
        refusal = self._trust.refusal(await archive.read(settings.of_sql))
        if refusal is not None:
            raise UsageError(refusal)

    def __call__(self, connection: Connection) -> None:
        """Raises `BackendUnavailable` where what this connection commits would not be safe."""
        refusal = self._trust.refusal(settings.of_sql(connection))
        if refusal is not None:
            raise BackendUnavailable(refusal)
