"""Whether NATS fsyncs messages before it acknowledges them: its settings, and the gate before each publish.

`stores/durability.py` holds the rules.  The settings are read once per run of the server, because nats-server reads its
`sync_interval` only at start; each run has another server id.
"""

import asyncio
import io
import math

import httpx
import msgspec

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores import durability
from meshim.stores.durability import DurabilityPolicy, Setting, Verdict
from meshim.stores.nats.client import NatsClient
from meshim.topology import Durability

_MONITOR_TIMEOUT_S = 1.5
RETRY_S = 5.0
"""Settings that could not be read are read again after this time: the monitoring of a new server may start late."""


class _Config(msgspec.Struct):
    sync_always: bool = False
    sync_interval: int = 0
    """Nanoseconds."""


class _Cluster(msgspec.Struct):
    cluster_size: int = 1


class _Jsz(msgspec.Struct):
    """The answer to `GET /jsz` of nats-server 2.10 and later."""

    server_id: str = ""
    disabled: bool = False
    config: _Config | None = None
    meta_cluster: _Cluster | None = None


_jsz = msgspec.json.Decoder(_Jsz)


async def read_settings(server_id: str, monitor: str | None) -> list[Setting]:
    """Return the settings of the server run with this id, from its monitoring URL; unknown where they cannot be read.

    `server_id` is that of a connection: the monitoring URL may belong to another server.
    """
    if monitor is None:
        return [durability.jetstream_unknown("set `durability.nats_monitor` in the topology to its monitoring URL")]
    try:
        async with httpx.AsyncClient(timeout=_MONITOR_TIMEOUT_S, trust_env=False) as client:
            response = await client.get(f"{monitor.rstrip('/')}/jsz", params={"config": "true"})
        answer = _jsz.decode(response.raise_for_status().content)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        return [durability.jetstream_unknown(f"its monitoring did not answer ({type(error).__name__})")]
    if answer.server_id != server_id:
        return [durability.jetstream_unknown("`durability.nats_monitor` is that of another server")]
    if answer.meta_cluster is not None and answer.meta_cluster.cluster_size > 1:
        return [durability.jetstream_unknown("it is one of several servers, each with a configuration of its own")]
    if answer.disabled or answer.config is None:
        return [durability.jetstream_unknown("it runs without JetStream")]
    return [durability.jetstream(answer.config.sync_always, answer.config.sync_interval / 1e9)]


async def read_settings_at(url: str, monitor: str | None) -> list[Setting]:
    """As `read_settings`, over a connection made for this."""
    try:
        client = await NatsClient.connect(url, Log("settings", "nats", io.StringIO()), timeout_s=_MONITOR_TIMEOUT_S)
    except BackendUnavailable:
        return [durability.jetstream_unknown("it does not answer")]
    try:
        return await read_settings(client.server_id, monitor)
    finally:
        await client.close()


class LogDurabilityGate:
    """Blocks publishing to a NATS server with unsafe settings.

    Call it before each publish.  The call costs nothing once the settings of this run of the server are known.
    """

    def __init__(self, nats: NatsClient, policy: Durability, log: Log) -> None:
        self._nats = nats
        self._monitor = policy.nats_monitor
        self._policy = DurabilityPolicy(policy, log)
        self._reading = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._server_id = ""
        """Of the run whose settings were read last."""
        self._retry_at = math.inf
        self._violation: str | None = None

    async def start(self) -> None:
        """Read the settings; raise `UsageError` when the topology refuses them."""
        await self._read()
        if self._violation is not None:
            raise UsageError(self._violation)

    async def __call__(self) -> None:
        """Raise `BackendUnavailable` when the topology refuses the settings of the server."""
        await self._read()
        if self._violation is not None:
            raise BackendUnavailable(self._violation)

    async def _read(self) -> None:
        while self._is_due():  # again if the server was restarted meanwhile
            if self._reading.locked() and self._server_id == self._nats.server_id:
                return  # a retry is under way; until it ends, the settings read last apply
            async with self._reading:
                if not self._is_due():
                    continue  # another task has read the settings while this one waited
                server_id = self._nats.server_id
                found = await read_settings(server_id, self._monitor)
                self._violation = self._policy.violation(found)
                self._server_id = server_id
                known = self._monitor is None or all(each.verdict is not Verdict.UNKNOWN for each in found)
                self._retry_at = math.inf if known else self._loop.time() + RETRY_S

    def _is_due(self) -> bool:
        return self._server_id != self._nats.server_id or self._loop.time() >= self._retry_at
