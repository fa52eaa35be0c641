"""Whether NATS fsyncs what it acknowledges: its settings, and the gate in front of each publish.

`stores/durability.py` holds the rules.  The settings are read once for each run of the server, because a NATS server
reads its configuration only at start; its id tells one run from another.
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
ASK_AGAIN_S = 5.0
"""What could not be read is read again after this time: a server that has just started may be slow to tell."""


class _Config(msgspec.Struct):
    sync_always: bool = False
    sync_interval: int = 0
    """Nanoseconds."""


class _Cluster(msgspec.Struct):
    cluster_size: int = 1


class _Jsz(msgspec.Struct):
    """Answer of `/jsz` of nats-server 2.10 and later."""

    server_id: str = ""
    disabled: bool = False
    config: _Config | None = None
    meta_cluster: _Cluster | None = None


_jsz = msgspec.json.Decoder(_Jsz)


async def read_settings(server: str, monitor: str | None) -> list[Setting]:
    """Of the run of a server that calls itself `server` when one connects to it."""
    if monitor is None:
        return [durability.jetstream_unknown("set `durability.nats_monitor` in the topology to its monitoring URL")]
    try:
        async with httpx.AsyncClient(timeout=_MONITOR_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(f"{monitor.rstrip('/')}/jsz", params={"config": "true"})
        told = _jsz.decode(answer.raise_for_status().content)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        return [durability.jetstream_unknown(f"its monitoring did not answer ({type(error).__name__})")]
    if told.server_id != server:
        return [durability.jetstream_unknown("`durability.nats_monitor` is that of another server")]
    if told.meta_cluster is not None and told.meta_cluster.cluster_size > 1:
        return [durability.jetstream_unknown("it is one of several servers, each with a configuration of its own")]
    if told.disabled or told.config is None:
        return [durability.jetstream_unknown("it runs without JetStream")]
    return [durability.jetstream(told.config.sync_always, told.config.sync_interval / 1e9)]


async def read_settings_at(url: str, monitor: str | None) -> list[Setting]:
    try:
        client = await NatsClient.connect(url, Log("settings", "nats", io.StringIO()), timeout_s=_MONITOR_TIMEOUT_S)
    except BackendUnavailable:
        return [durability.jetstream_unknown("it does not answer")]
    try:
        return await read_settings(client.server, monitor)
    finally:
        await client.close()


class LogDurabilityGate:
    """Vouches for a NATS server.  Call it before each publish; free once this run of the server has told."""

    def __init__(self, nats: NatsClient, policy: Durability, log: Log) -> None:
        self._nats = nats
        self._monitor = policy.nats_monitor
        self._policy = DurabilityPolicy(policy, log)
        self._reading = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._server = ""
        self._ask_again_at = math.inf
        self._violation: str | None = None

    async def start(self) -> None:
        """Read for the first time; raises `UsageError` where the topology says that this must not be."""
        await self._read()
        if self._violation is not None:
            raise UsageError(self._violation)

    async def __call__(self) -> None:
        """Raises `BackendUnavailable` where what is stored now would not be safe."""
        await self._read()
        if self._violation is not None:
            raise BackendUnavailable(self._violation)

    async def _read(self) -> None:
        while self._is_due():  # again if it was replaced meanwhile
            if self._reading.locked() and self._server == self._nats.server:
                return  # asked again: what is known of it holds for everybody but the one who asks
            async with self._reading:
                if not self._is_due():
                    continue  # somebody else has read it while we waited
                server = self._nats.server
                found = await read_settings(server, self._monitor)
                self._violation = self._policy.violation(found)
                self._server = server
                told = self._monitor is None or all(each.verdict is not Verdict.UNKNOWN for each in found)
                self._ask_again_at = math.inf if told else self._loop.time() + ASK_AGAIN_S

    def _is_due(self) -> bool:
        return self._server != self._nats.server or self._loop.time() >= self._ask_again_at
