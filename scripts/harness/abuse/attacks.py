"""Attacks of hostile and heavy clients on a connector, each in a process of its own.

The processes run at the lowest priority: real attackers would not share the CPUs of the mesh.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from meshim.chunks import chunks
from meshim.client.rest import Api
from meshim.errors import ApiError, BackendUnavailable
from meshim.stores.ports import Lease
from meshim.wire.link import Ack, Ping
from scripts.harness.abuse import rest_attacks
from scripts.harness.clients.misbehaving import TIMEOUT_S, MisbehavingClient, pause
from scripts.harness.clients.raw_zmtp import hold_unfinished_messages, send_endless_message
from scripts.harness.clients.stranger_flood import flood
from scripts.harness.clients.zmq_context import ZmqContext, context
from scripts.harness.mesh.users import MeshUser, text_envelope

LOWEST_PRIORITY = 19
PART_BYTES = 262_144
"""The default limit of a frame."""
UNFINISHED_BYTES = 15 << 18
"""3.75 MiB: what `endless_parts` is cut for is 4 MiB."""
ENDLESS_BYTES_MAX = 1 << 30
"""Far above the memory limit of every process of a mesh."""
NOT_WELCOMED = (TimeoutError, ConnectionRefusedError)


class AttackOptions(NamedTuple):
    """The target and the users of an attack, friends in pairs (0 and 1, 2 and 3, …); each attack defines `size`."""

    connector: Lease
    users: Sequence[MeshUser]
    seconds: float
    size: int = 0
    api: str = ""


Counts = dict[str, float]
Attack = Callable[[ZmqContext, AttackOptions], Coroutine[Any, Any, Counts]]


def attack(control: Connection, name: str, options: AttackOptions) -> None:
    """Run the attack and send its counts over `control`.  The body of a process."""
    os.nice(LOWEST_PRIORITY)
    control.send(asyncio.run(ATTACKS[name](context(), options)))


def _pairs(options: AttackOptions) -> list[tuple[MeshUser, MeshUser]]:
    return list(zip(options.users[::2], options.users[1::2], strict=True))


async def never_reads(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Every second user greets and neither reads nor acknowledges; its friend sends to it all the time.

    The user greets on a new connection every 4 s and leaves the earlier ones open, with their buffers full.
    """
    stop_at = time.monotonic() + options.seconds
    counts: Counts = {"connections": 0, "sent": 0}
    body = os.urandom(options.size)

    async def reconnect_deaf(user: MeshUser) -> None:
        held: list[MisbehavingClient] = []
        while time.monotonic() < stop_at:
            deaf = MisbehavingClient(zmq_context, options.connector, user, deaf=True)
            held.append(deaf)
            deaf.send_greet()
            counts["connections"] += 1
            await pause(stop_at, 4.0)
        for each in held:
            each.close()

    async def send_to(sender: MeshUser, recipient: MeshUser) -> None:
        client = MisbehavingClient(zmq_context, options.connector, sender)
        await client.welcome()
        seq = 0
        while await pause(stop_at, 0.02) and await client.room():
            seq += 1
            client.submit([text_envelope(sender, recipient.user, seq, body)])
            counts["sent"] += 1
        client.close()

    await asyncio.gather(*(reconnect_deaf(b) for _, b in _pairs(options)), *(send_to(a, b) for a, b in _pairs(options)))
    return counts


async def window_overrun(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Send data frames with ascending numbers at full speed, whether or not the connector acknowledges them."""
    envelopes = [text_envelope(options.users[0], options.users[1].user, 1, os.urandom(options.size))]
    return await _repeatedly(zmq_context, options, lambda client, number: client.submit(envelopes, number))


async def endless_submits(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Send full frames of small messages to a friend at full speed, within the window and all limits."""
    stop_at = time.monotonic() + options.seconds
    counts: Counts = {"submitted": 0, "refused": 0}

    async def flood(sender: MeshUser, recipient: MeshUser) -> None:
        client = MisbehavingClient(zmq_context, options.connector, sender)
        await client.welcome()
        seq = 0
        while time.monotonic() < stop_at and await client.room():
            client.submit(
                [text_envelope(sender, recipient.user, seq + each, bytes(32)) for each in range(1, options.size + 1)]
            )
            seq += options.size
            counts["submitted"] += options.size
            await asyncio.sleep(0)
        counts["refused"] += client.closed_by is not None
        client.close()

    await asyncio.gather(*(flood(a, b) for a, b in _pairs(options)))
    return counts


async def free_frames(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Send frames that no window bounds, pings and acknowledgements of nothing new, at full speed."""

    def step(client: MisbehavingClient, number: int) -> bool:
        return client.send(Ping(client.link) if number % 2 else Ack(client.link, 0))

    return await _repeatedly(zmq_context, options, step)


async def huge_frames(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Send single frames of 64 MiB."""
    frame = bytes(64 << 20)
    return await _repeatedly(zmq_context, options, lambda client, number: number == 1 and client.send_bytes(frame))


async def endless_parts(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Send one ZeroMQ message without a last part, each part of an allowed size.  Needs a mesh without CURVE."""
    stop_at = time.monotonic() + options.seconds
    counts: Counts = {"connections": 0, "sent_mib": 0}
    while time.monotonic() < stop_at:
        sent = await asyncio.to_thread(send_endless_message, options.connector.endpoint, PART_BYTES, ENDLESS_BYTES_MAX)
        counts["connections"] += 1
        counts["sent_mib"] += sent >> 20
    return counts


async def unfinished_messages(_: ZmqContext, options: AttackOptions) -> Counts:
    """Hold `size` connections with the beginning of a ZeroMQ message each.  Needs a mesh without CURVE."""
    stop_at = time.monotonic() + options.seconds
    connections, sent = await asyncio.to_thread(
        hold_unfinished_messages, options.connector.endpoint, options.size, UNFINISHED_BYTES, stop_at
    )
    return {"connections": connections, "sent_mib": sent >> 20}


async def undecodable_frames(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Send frames that do not decode on a connection without a greeting; the connector answers each."""
    return await _repeatedly(zmq_context, options, lambda client, number: client.send_bytes(b"\xc1" * 64), greet=False)


async def reconnecting_strangers(_: ZmqContext, options: AttackOptions) -> Counts:
    """Connect at full speed, with `size` frames that do not decode behind each handshake."""
    stop_at = time.monotonic() + options.seconds
    return {"connections": await asyncio.to_thread(flood, options.connector.url, options.size, stop_at)}


async def _repeatedly(
    zmq_context: ZmqContext,
    options: AttackOptions,
    step: Callable[[MisbehavingClient, int], bool],
    *,
    at_once: int = 1,
    greet: bool = True,
) -> Counts:
    """Connect and call `step` until the connection ends or accepts nothing for half a second; then connect again."""
    stop_at = time.monotonic() + options.seconds
    counts: Counts = {"connections": 0, "sent": 0}

    async def attack_as(user: MeshUser) -> None:
        while time.monotonic() < stop_at:
            client = MisbehavingClient(zmq_context, options.connector, user)
            counts["connections"] += 1
            if greet:
                with suppress(*NOT_WELCOMED):
                    await client.welcome()
            number, stuck = 1, 0
            while time.monotonic() < stop_at and client.closed_by is None and stuck < 50:
                if step(client, number):
                    number, stuck = number + 1, 0
                    counts["sent"] += 1
                    await asyncio.sleep(0)
                else:
                    stuck += 1
                    await asyncio.sleep(0.01)
            client.close()

    await asyncio.gather(*(attack_as(user) for user in options.users[:at_once]))
    return counts


async def never_greets(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Open `size` connections that send nothing, and keep them open."""
    stop_at = time.monotonic() + options.seconds
    idle: list[MisbehavingClient] = []
    while len(idle) < options.size and time.monotonic() < stop_at:
        idle += [MisbehavingClient(zmq_context, options.connector, None) for _ in range(50)]
        await asyncio.sleep(0.02)
    while await pause(stop_at, 0.1):
        pass
    for each in idle:
        each.close()
    return {"connections": len(idle)}


async def greeting_storm(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """All users greet at once; return the time until the median welcome and until the last."""
    began = time.monotonic()
    clients = [MisbehavingClient(zmq_context, options.connector, user) for user in options.users]
    took_s: list[float] = []
    failed = again = 0

    async def welcome(index: int) -> None:
        """Try again when there is no room for the moment, as clients do."""
        nonlocal failed, again
        while True:
            try:
                await clients[index].welcome()
                took_s.append(time.monotonic() - began)
                return
            except TimeoutError:
                failed += 1
                return
            except ConnectionRefusedError:
                again += 1
                clients[index].close()
                await asyncio.sleep(0.1)
                clients[index] = MisbehavingClient(zmq_context, options.connector, options.users[index])

    async with asyncio.timeout(options.seconds + TIMEOUT_S):
        await asyncio.gather(*(welcome(index) for index in range(len(clients))))
    stay_until = began + options.seconds
    while await pause(stay_until, 0.1):
        pass
    closed = sum(each.closed_by is not None for each in clients)
    for each in clients:
        each.close()
    took_s.sort()
    half = took_s[len(took_s) // 2] if took_s else 0.0
    return {
        "welcomed": len(took_s), "failed": failed, "again": again, "closed": closed,
        "half_s": round(half, 2), "all_s": round(max(took_s, default=0.0), 2),
    }  # fmt: skip


async def repeated_greetings(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Greet with one token over and over, on `size` connections at once."""
    stop_at = time.monotonic() + options.seconds
    counts: Counts = {"greetings": 0, "welcomed": 0}

    async def greet() -> None:
        while time.monotonic() < stop_at:
            client = MisbehavingClient(zmq_context, options.connector, options.users[0])
            counts["greetings"] += 1
            with suppress(*NOT_WELCOMED):
                await client.welcome()
                counts["welcomed"] += 1
            client.close()

    await asyncio.gather(*(greet() for _ in range(options.size)))
    return counts


async def login_storm(_: ZmqContext, options: AttackOptions) -> Counts:
    """Log in `size` users at once by password, the most expensive REST call; retry as `retry_after` says."""
    password = secrets.token_hex(16)
    names = [f"visitor-{secrets.token_hex(6)}" for _ in range(options.size)]
    tried = 0
    took_s: list[float] = []
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(Api(options.api, timeout_s=TIMEOUT_S)) for _ in names]
        for some in chunks(names, 100):
            await apis[0].import_users([(name, password) for name in some])
        began = time.monotonic()

        async def log_in(api: Api, name: str) -> None:
            nonlocal tried
            while time.monotonic() < began + options.seconds:
                tried += 1
                try:
                    await api.login(name, password, "phone", secrets.randbits(53), takeover=True)
                    took_s.append(time.monotonic() - began)
                    return
                except (ApiError, BackendUnavailable) as error:
                    if isinstance(error, ApiError) and not error.temporary:
                        raise
                    wait_s = error.retry_after_s if isinstance(error, ApiError) else None
                    await asyncio.sleep((wait_s or 1.0) * (0.5 + secrets.randbelow(100) / 100))

        await asyncio.gather(*(log_in(api, name) for api, name in zip(apis, names, strict=True)))
    return {"logged_in": len(took_s), "tried": tried, "all_s": round(max(took_s, default=0.0), 2)}


async def slow_requests(_: ZmqContext, options: AttackOptions) -> Counts:
    """As `rest_attacks.slow_requests`."""
    return await rest_attacks.slow_requests(options.api, options.seconds, options.size)


async def endless_headers(_: ZmqContext, options: AttackOptions) -> Counts:
    """As `rest_attacks.endless_headers`."""
    return await rest_attacks.endless_headers(options.api, options.seconds, options.size)


async def large_sync(zmq_context: ZmqContext, options: AttackOptions) -> Counts:
    """Log in a user with `size` stored messages and read them all at full speed."""
    client = MisbehavingClient(zmq_context, options.connector, options.users[0])
    began = time.monotonic()
    await client.welcome()
    while client.deliveries < options.size and client.closed_by is None and time.monotonic() < began + options.seconds:
        client.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await client.changed.wait()
    took_s = time.monotonic() - began
    client.close()
    return {"synced": client.deliveries, "took_s": round(took_s, 2), "closed": float(client.closed_by is not None)}


ATTACKS: dict[str, Attack] = {
    function.__name__: function
    for function in (
        never_reads, window_overrun, endless_submits, free_frames, huge_frames, endless_parts, unfinished_messages,
        undecodable_frames, reconnecting_strangers, never_greets, greeting_storm, repeated_greetings, login_storm,
        large_sync, slow_requests, endless_headers,
    )
}  # fmt: skip
