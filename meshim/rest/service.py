"""The REST service as a process: bind, connect the ports, serve until SIGTERM, finish the requests under way."""

import errno
import secrets
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from meshim.addresses import is_loopback
from meshim.errors import UsageError
from meshim.rest import master_key
from meshim.rest.app import build
from meshim.rest.backends import Backends
from meshim.rest.http_server import BACKLOG, Server
from meshim.rest.passwords import Passwords
from meshim.runtime import counters
from meshim.runtime.crypto import MasterKey
from meshim.runtime.log import Log
from meshim.runtime.service import Service
from meshim.stores.backends import BackendConnections, lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.nats import storing
from meshim.stores.ports import Lease
from meshim.stores.preflight import Preflight
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.presence import RedisPresence
from meshim.stores.redis.session_cache import RedisSessionCache
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.mesh_record import SqlMeshRecord
from meshim.topology import Topology

_NATS_PROBE_S = 1.0


async def run(topology: Topology, name: str, data: Path) -> None:
    """Serve as `name` of the topology until SIGTERM.  Raises UsageError for what the operator can correct."""
    timers = topology.timers
    address = next(each.bind for each in topology.rest if each.name == name)
    async with AsyncExitStack() as stack, Service("rest", name, shutdown_s=timers.shutdown_s) as service:
        log = service.log
        connections = BackendConnections(topology, service, stack)
        redis, database = connections.redis(), connections.database()
        master = await _checked(topology, data, SqlMeshRecord(database), redis, service)
        bound, endpoint = bind(address)
        stack.callback(bound.close)
        passwords = Passwords()
        stack.callback(passwords.close)
        backends = await _connected(topology, connections, redis, database)
        _warn_off_loopback(address, log)
        app = build(backends=backends, passwords=passwords, master=master, topology=topology, log=log)
        server = Server(app, timers.shutdown_s / 2, app.state.statistics)
        service.start(server.serve([bound]))
        await server.up.wait()
        lease = Lease("rest", name, secrets.randbits(63), endpoint)
        # Clients have a URL and need no lease to find this service, so serving does not wait for it.
        keeper = LeaseKeeper(backends.leases, lease, timers, log)
        async with lease_held(keeper, service, needed=False):
            service.start(
                counters.write_periodically(
                    data, "rest", name, log,
                    lambda: msgspec.structs.asdict(app.state.statistics) | keeper.counters() | connections.counters(),
                )
            )  # fmt: skip
            service.ready(endpoint)
            await service.stopping()
            await server.stop()


def bind(address: str) -> tuple[socket.socket, str]:
    """Bind and listen; returns the socket and its endpoint, with the real port when `address` has port 0.

    Raises UsageError when the address is in use or cannot be bound.
    """
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 0
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may be in TIME_WAIT
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{address} is in use: stop what listens there, or give `rest` another address in the topology."
            ) from error
        raise UsageError(f"{address} cannot be bound: {error.strerror or error}.") from error
    shown = f"[{host}]" if ":" in host else host
    return bound, f"http://{shown}:{bound.getsockname()[1]}"


async def _checked(
    topology: Topology, data: Path, record: SqlMeshRecord, redis: RedisClient, service: Service
) -> MasterKey:
    """The master key, once it and the topology fit the mesh.

    Raises UsageError when they do not, and BackendUnavailable when only the database can tell whether a key is missing.
    """
    path = Path(topology.security.master_key_file or data / "master.key")
    master = MasterKey.load(path)
    if master is None:
        await record.agree(topology.namespace, topology.limits.partitions)
        master = await master_key.make(path, record)
    await Preflight(topology, redis, service).check_when_possible(record, master)
    return master


async def _connected(
    topology: Topology, connections: BackendConnections, redis: RedisClient, database: Database
) -> Backends:
    """The real ports.  Raises BackendUnavailable when NATS is; the other backends are connected at first use."""
    space = topology.namespace
    leases, nats = connections.leases(), await connections.nats()
    accounts = SqlAccounts(database)
    return Backends(
        accounts=accounts,
        leases=leases,
        presence=RedisPresence(redis, space),
        cache=RedisSessionCache(redis, space, account_ttl_s=topology.timers.token_ttl_s),
        notifications=connections.notifications(nats),
        probes={
            "sql": SqlMeshRecord(database).probe,
            "redis": leases.run_id,
            "nats": lambda: nats.round_trip(_NATS_PROBE_S),
        },
        storing={
            "sql": accounts.check_writable,
            "nats": lambda: storing.check(nats, space, topology.limits.partitions),
        },
    )


def _warn_off_loopback(address: str, log: Log) -> None:
    if not is_loopback(urlsplit(address).hostname or ""):
        log.warning("plain http off loopback", address=address, advice="put a TLS proxy in front: answers carry keys")
