"""Raw connections and invalid tokens for the tests of hostile clients, and what such a client gets as an answer."""

import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import zmq
from zmq.utils.monitor import recv_monitor_message

from meshim import topology as topologies
from meshim.errors import Code
from meshim.runtime import log
from meshim.runtime.crypto import hash_token
from meshim.stores.ports import Lease
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from tests.mesh.harness.independent_client import CLOSE, DEVICE_NAME, PING, PONG, IndependentClient
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, in_thread

REFUSED_KEY = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
HANDSHAKE_FAILED = REFUSED_KEY | int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_ENDED = HANDSHAKE_FAILED | int(zmq.EVENT_DISCONNECTED)

_context: "zmq.Context[zmq.Socket[bytes]]" = zmq.Context()

WRONG_KEY: bytes = zmq.curve_keypair()[0]
"""A valid public key that no server has."""

WaitEnded = Callable[[], int]
"""Blocks until the connection ends; returns the libzmq event that reported the end."""


@contextmanager
def dealer(
    endpoint: str, server_key: bytes | None, routing_id: bytes = b"", keys: tuple[bytes, bytes] | None = None
) -> "Iterator[tuple[zmq.Socket[bytes], WaitEnded]]":
    """A DEALER that connects once; without a server key it uses the NULL mechanism.

    `keys` are its own (public, secret), by default new ones.
    """
    made = _context.socket(zmq.DEALER)
    made.set(zmq.LINGER, 0)
    made.set(zmq.RECONNECT_IVL, -1)
    if routing_id:
        made.set(zmq.ROUTING_ID, routing_id)
    if server_key is not None:
        public, secret = keys or zmq.curve_keypair()
        made.set(zmq.CURVE_SERVERKEY, server_key)
        made.set(zmq.CURVE_PUBLICKEY, public)
        made.set(zmq.CURVE_SECRETKEY, secret)
    try:
        with monitored(made) as wait_ended:
            made.connect(endpoint)
            yield made, wait_ended
    finally:
        made.close(0)


@contextmanager
def monitored(client: "zmq.Socket[bytes]") -> Iterator[WaitEnded]:
    """Monitor a socket during the block."""
    monitor = client.get_monitor_socket(_ENDED)

    def wait_ended() -> int:
        assert monitor.poll(int(DEADLINE_S * 1_000)), "the connection did not end"
        return int(recv_monitor_message(monitor)["event"])

    try:
        yield wait_ended
    finally:
        client.disable_monitor()
        monitor.close(0)


# ---------------------------------------------------------------- tokens and keys


def bearer_header(token: bytes) -> dict[str, str]:
    """The HTTP header of REST for the token of a greeting."""
    return {"Authorization": "Bearer " + urlsafe_b64encode(token).rstrip(b"=").decode()}


def token_bytes(token: str) -> bytes:
    """The token as a greeting carries it, from its text form in REST."""
    return urlsafe_b64decode(token + "=")


async def expired_token(mesh: RealMesh, client: IndependentClient) -> bytes:
    """A token of the same device and epoch, which expired a second ago."""
    token = secrets.token_bytes(32)
    database = Database(topologies.load(mesh.data.topology).backends.sql, 1)
    try:
        now = time.time()
        accounts = SqlAccounts(database)
        await accounts.log_in(client.user, DEVICE_NAME, client.epoch, hash_token(token), now - 1, now, 10)
    finally:
        await database.close()
    return token


@asynccontextmanager
async def _redis_leases(mesh: RealMesh) -> AsyncIterator[RedisLeases]:
    topology = topologies.load(mesh.data.topology)
    redis = RedisClient(topology.backends.redis, log.get("test", "leases"))
    try:
        yield RedisLeases(redis, topology.namespace)
    finally:
        await redis.close()


async def leases(mesh: RealMesh, role: str) -> list[Lease]:
    """Incarnations, endpoints and public keys, read from Redis: the mesh gives those of transfers to no client."""
    async with _redis_leases(mesh) as found:
        return await found.living(role)


@asynccontextmanager
async def leased(mesh: RealMesh, lease: Lease) -> AsyncIterator[None]:
    """During the block, which takes less than a minute, there is a lease of a process that does not run."""
    async with _redis_leases(mesh) as found:
        assert await found.acquire(lease, 60.0)
        try:
            yield
        finally:
            await found.release(lease)


# ---------------------------------------------------------------- the answer of the mesh


async def expect_close(client: IndependentClient, code: Code) -> str:
    """Wait for the CLOSE, which has this code; return its sentence."""
    await in_thread(client.until, lambda: client.frames_of(CLOSE))
    (close,) = client.frames_of(CLOSE)
    assert close[2] == code, close
    return str(close[3])


async def expect_alive(client: IndependentClient) -> None:
    """The session of the client answers a PING."""
    pongs = len(client.frames_of(PONG))
    client.send(PING, client.link)
    await in_thread(client.until, lambda: len(client.frames_of(PONG)) > pongs)
    assert not client.frames_of(CLOSE)
