"""Hostile clients, and those who must not notice them: sockets and tokens of every kind, and two people who talk."""

import asyncio
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from meshim import topology as topologies
from meshim.client import Client
from meshim.deploy.state import read
from meshim.errors import Code
from meshim.runtime import log
from meshim.runtime.crypto import hash_token
from meshim.stores.ports import Lease
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from tests.mesh.conversations import client, say
from tests.mesh.real_mesh import DEADLINE_S, RealMesh
from tests.mesh.stranger import CLOSE, PING, PONG, Stranger

REFUSED_KEY = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
HANDSHAKE_FAILED = REFUSED_KEY | int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_ENDED = HANDSHAKE_FAILED | int(zmq.EVENT_DISCONNECTED)

_context: "zmq.Context[zmq.Socket[bytes]]" = zmq.Context()

WRONG_KEY: bytes = zmq.curve_keypair()[0]
"""Nobody's."""

Ends = Callable[[], int]
"""Waits for the end of a connection; the event of libzmq that told it."""


@contextmanager
def dealer(
    endpoint: str, server_key: bytes | None, routing_id: bytes = b""
) -> "Iterator[tuple[zmq.Socket[bytes], Ends]]":
    """A socket of our own, connecting; without a key it speaks plainly."""
    made = _context.socket(zmq.DEALER)
    made.set(zmq.LINGER, 0)
    made.set(zmq.RECONNECT_IVL, -1)
    if routing_id:
        made.set(zmq.ROUTING_ID, routing_id)
    if server_key is not None:
        public, secret = zmq.curve_keypair()
        made.set(zmq.CURVE_SERVERKEY, server_key)
        made.set(zmq.CURVE_PUBLICKEY, public)
        made.set(zmq.CURVE_SECRETKEY, secret)
    try:
        with watched(made) as ends:
            made.connect(endpoint)
            yield made, ends
    finally:
        made.close(0)


@contextmanager
def watched(client: "zmq.Socket[bytes]") -> Iterator[Ends]:
    monitor = client.get_monitor_socket(_ENDED)

    def ends() -> int:
        assert monitor.poll(int(DEADLINE_S * 1_000)), "the connection is kept"
        return int(recv_monitor_message(monitor)["event"])

    try:
        yield ends
    finally:
        client.disable_monitor()
        monitor.close(0)


def bearer(token: bytes) -> dict[str, str]:
    """The header of REST for the token of a greeting."""
    return {"Authorization": "Bearer " + urlsafe_b64encode(token).rstrip(b"=").decode()}


def raw(token: str) -> bytes:
    """The token of a greeting for one of REST."""
    return urlsafe_b64decode(token + "=")


async def ended_token(mesh: RealMesh, client: Stranger) -> bytes:
    """A token of this very device and epoch, which ended a second ago."""
    token = secrets.token_bytes(32)
    database = Database(topologies.load(mesh.data.topology).backends.sql, 1)
    try:
        now = time.time()
        await SqlAccounts(database).log_in(client.user, "foreign", client.epoch, hash_token(token), now - 1, now, 10)
    finally:
        await database.close()
    return token


async def leases(mesh: RealMesh, role: str) -> list[Lease]:
    """Incarnations, endpoints and public keys, which nobody outside the mesh is told."""
    topology = topologies.load(mesh.data.topology)
    redis = RedisClient(topology.backends.redis, log.get("test", "leases"))
    try:
        return await RedisLeases(redis, topology.namespace, log.get("test", "leases")).living(role)
    finally:
        await redis.close()


# ---------------------------------------------------------------- who behaves


class Cast(NamedTuple):
    """alice and bob behave; mallory is nobody's friend; trudy is a friend of bob's."""

    alice: str
    bob: str
    mallory: str
    trudy: str


@asynccontextmanager
async def undisturbed(mesh: RealMesh, cast: Cast) -> AsyncIterator[None]:
    """alice and bob talk all the while: everything arrives, once and in order, and no process ends."""
    running = _processes(mesh)
    stop = asyncio.Event()
    async with client(mesh, cast.alice) as alice, client(mesh, cast.bob) as bob:
        await asyncio.gather(alice.online(), bob.online())
        talking = asyncio.create_task(_talk(alice, cast.bob, stop))
        try:
            yield
        finally:
            stop.set()
            said = await talking
        assert await _texts(bob, cast.alice, len(said)) == said
        await say(bob, cast.alice, "still here")
        assert await _texts(alice, cast.bob, 1) == ["still here"]
    assert _processes(mesh) == running


async def _talk(sender: Client, peer: str, stop: asyncio.Event) -> list[str]:
    said: list[str] = []
    while not stop.is_set():
        said.append(f"{secrets.token_hex(4)} number {len(said)}")
        await sender.send(peer, said[-1])
        await asyncio.sleep(0.02)
    return said


async def _texts(reader: Client, sender: str, count: int) -> list[str]:
    """The next texts of one sender, whoever else writes."""
    texts: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in reader.messages():
            texts += [message.text] * (message.sender == sender)
            await message.done()
            if len(texts) == count:
                break
    return texts


def _processes(mesh: RealMesh) -> dict[str, int | None]:
    state = read(mesh.data)
    assert state is not None
    return {role.name: role.pid for role in state.roles}


# ---------------------------------------------------------------- what hostile clients see


async def doing(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """In a thread: `Stranger` blocks."""
    return await asyncio.to_thread(work, *arguments, **options)


async def closed_with(stranger: Stranger, code: Code) -> str:
    """Wait for the Close; its sentence."""
    await doing(stranger.until, lambda: stranger.came(CLOSE))
    (close,) = stranger.came(CLOSE)
    assert close[2] == code, close
    return str(close[3])


async def answers(stranger: Stranger) -> None:
    """The session lives."""
    pongs = len(stranger.came(PONG))
    stranger.send(PING, stranger.link)
    await doing(stranger.until, lambda: len(stranger.came(PONG)) > pongs)
    assert not stranger.came(CLOSE)
