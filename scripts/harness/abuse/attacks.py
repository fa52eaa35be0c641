"""What hostile and heavy clients do to a connector, each for some seconds, in a process of its own.

They run at the lowest priority: on other machines they would not take our processors either.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from meshim.client.rest import Api
from meshim.errors import ApiError, BackendUnavailable
from meshim.stores.ports import Lease
from scripts.harness.clients.misbehaving import TIMEOUT_S, WINDOW, Rude, ZmqContext, context, until
from scripts.harness.clients.raw_zmtp import pour_parts
from scripts.harness.mesh.users import Person, text

LOWEST_PRIORITY = 19
PART_BYTES = 262_144
"""The default limit of a frame."""
POUR_BYTES = 1 << 30
"""Far more than any process of a mesh may hold."""
AWAY = (TimeoutError, ConnectionRefusedError)


class Means(NamedTuple):
    """What an attacker has: a connector, tokens (friends in pairs: 0 and 1, 2 and 3, …), time, and a size."""

    connector: Lease
    people: Sequence[Person]
    seconds: float
    size: int = 0
    api: str = ""


Counts = dict[str, float]
Attack = Callable[[ZmqContext, Means], Coroutine[Any, Any, Counts]]


def attack(control: Connection, name: str, means: Means) -> None:
    """Do it, and send back what was counted.  The body of a process."""
    os.nice(LOWEST_PRIORITY)
    control.send(asyncio.run(ATTACKS[name](context(), means)))


def _pairs(means: Means) -> list[tuple[Person, Person]]:
    return list(zip(means.people[::2], means.people[1::2], strict=True))


async def never_reads(zmq_context: ZmqContext, means: Means) -> Counts:
    """Each second person of a pair greets, and neither reads nor acknowledges; the first sends to her all the time.

    Connections are not closed: she comes back on another one while the earlier ones hold what they hold.
    """
    stop_at = time.monotonic() + means.seconds
    counts: Counts = {"connections": 0, "sent": 0}
    body = os.urandom(means.size)

    async def ignore(person: Person) -> None:
        held: list[Rude] = []
        while time.monotonic() < stop_at:
            deaf = Rude(zmq_context, means.connector, person, deaf=True)
            held.append(deaf)
            deaf.greet()
            counts["connections"] += 1
            await until(stop_at, 4.0)
        for each in held:
            each.close()

    async def insist(sender: Person, recipient: Person) -> None:
        rude = Rude(zmq_context, means.connector, sender)
        await rude.welcome()
        seq = 0
        while await until(stop_at, 0.02) and await rude.room():
            seq += 1
            rude.submit([text(sender, recipient.user, seq, body)])
            counts["sent"] += 1
        rude.close()

    await asyncio.gather(*(ignore(b) for _, b in _pairs(means)), *(insist(a, b) for a, b in _pairs(means)))
    return counts


async def over_the_window(zmq_context: ZmqContext, means: Means) -> Counts:
    """Data frames as fast as they go, numbers ever higher, acknowledged or not; and again when that was answered."""
    envelopes = [text(means.people[0], means.people[1].user, 1, os.urandom(means.size))]
    return await _again_and_again(zmq_context, means, lambda rude, number: rude.submit(envelopes, number))


async def early_frames(zmq_context: ZmqContext, means: Means) -> Counts:
    """Everything of the window but its first frame, as large as frames may be: it has to be kept, or forgotten."""
    body = os.urandom(60_000)

    def fill(rude: Rude, number: int) -> bool:
        if number >= WINDOW:
            return False
        person = rude.person
        assert person is not None
        return rude.submit([text(person, means.people[0].user, seq, body) for seq in (1, 2, 3, 4)], number + 1)

    return await _again_and_again(zmq_context, means, fill, at_once=len(means.people))


async def endless_submits(zmq_context: ZmqContext, means: Means) -> Counts:
    """Within the window and the limits, and without any rest: full frames of small messages to a friend."""
    stop_at = time.monotonic() + means.seconds
    counts: Counts = {"submitted": 0, "refused": 0}

    async def pour(sender: Person, recipient: Person) -> None:
        rude = Rude(zmq_context, means.connector, sender)
        await rude.welcome()
        seq = 0
        while time.monotonic() < stop_at and await rude.room():
            rude.submit([text(sender, recipient.user, seq + each, bytes(32)) for each in range(1, means.size + 1)])
            seq += means.size
            counts["submitted"] += means.size
            await asyncio.sleep(0)
        counts["refused"] += rude.over is not None
        rude.close()

    await asyncio.gather(*(pour(a, b) for a, b in _pairs(means)))
    return counts


async def huge_frames(zmq_context: ZmqContext, means: Means) -> Counts:
    """Single frames of many megabytes."""
    frame = bytes(64 << 20)
    return await _again_and_again(zmq_context, means, lambda rude, number: number == 1 and rude.throw(frame))


async def endless_parts(zmq_context: ZmqContext, means: Means) -> Counts:
    """One ZeroMQ message that never ends: part after part, each of an allowed size.  Only on a mesh without CURVE."""
    stop_at = time.monotonic() + means.seconds
    counts: Counts = {"connections": 0, "poured_mib": 0}
    while time.monotonic() < stop_at:
        poured = await asyncio.to_thread(pour_parts, means.connector.endpoint, PART_BYTES, POUR_BYTES)
        counts["connections"] += 1
        counts["poured_mib"] += poured >> 20
    return counts


async def nonsense(zmq_context: ZmqContext, means: Means) -> Counts:
    """Frames that do not decode, on a connection without a greeting: each is answered."""
    return await _again_and_again(zmq_context, means, lambda rude, number: rude.throw(b"\xc1" * 64), greet=False)


async def _again_and_again(
    zmq_context: ZmqContext, means: Means, step: Callable[[Rude, int], bool], *, at_once: int = 1, greet: bool = True
) -> Counts:
    """Connect, and throw until the connection is over or does not take more for half a second; then anew."""
    stop_at = time.monotonic() + means.seconds
    counts: Counts = {"connections": 0, "thrown": 0}

    async def go_on(person: Person) -> None:
        while time.monotonic() < stop_at:
            rude = Rude(zmq_context, means.connector, person)
            counts["connections"] += 1
            if greet:
                with suppress(*AWAY):
                    await rude.welcome()
            number, stuck = 1, 0
            while time.monotonic() < stop_at and rude.over is None and stuck < 50:
                if step(rude, number):
                    number, stuck = number + 1, 0
                    counts["thrown"] += 1
                    await asyncio.sleep(0)
                else:
                    stuck += 1
                    await asyncio.sleep(0.01)
            rude.close()

    await asyncio.gather(*(go_on(person) for person in means.people[:at_once]))
    return counts


async def never_greets(zmq_context: ZmqContext, means: Means) -> Counts:
    """Thousands of connections that say nothing, and are never closed by who made them."""
    stop_at = time.monotonic() + means.seconds
    silent: list[Rude] = []
    while len(silent) < means.size and time.monotonic() < stop_at:
        silent += [Rude(zmq_context, means.connector, None) for _ in range(50)]
        await asyncio.sleep(0.02)
    while await until(stop_at, 0.1):
        pass
    for each in silent:
        each.close()
    return {"connections": len(silent)}


async def everybody_greets(zmq_context: ZmqContext, means: Means) -> Counts:
    """All at once; how long each waited for the welcome, and the last of them."""
    began = time.monotonic()
    everybody = [Rude(zmq_context, means.connector, person) for person in means.people]
    took_s: list[float] = []
    failed = 0

    async def welcome(rude: Rude) -> None:
        nonlocal failed
        try:
            await rude.welcome()
            took_s.append(time.monotonic() - began)
        except AWAY:
            failed += 1

    await asyncio.gather(*(welcome(each) for each in everybody))
    stay_until = began + means.seconds
    while await until(stay_until, 0.1):
        pass
    over = sum(each.over is not None for each in everybody)
    for each in everybody:
        each.close()
    took_s.sort()
    half = took_s[len(took_s) // 2] if took_s else 0.0
    return {
        "welcomed": len(took_s), "failed": failed, "over": over,
        "half_s": round(half, 2), "all_s": round(max(took_s, default=0.0), 2),
    }  # fmt: skip


async def everybody_logs_in(_: ZmqContext, means: Means) -> Counts:
    """All at once with their passwords, which cost REST the most; who is told that it is busy tries again then."""
    password = secrets.token_hex(16)
    names = [f"visitor-{secrets.token_hex(6)}" for _ in range(means.size)]
    tried = 0
    took_s: list[float] = []
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(Api(means.api, timeout_s=TIMEOUT_S)) for _ in names]
        for first in range(0, len(names), 100):
            await apis[0].import_users([(name, password) for name in names[first : first + 100]])
        began = time.monotonic()

        async def log_in(api: Api, name: str) -> None:
            nonlocal tried
            while time.monotonic() < began + means.seconds:
                tried += 1
                try:
                    await api.login(name, password, "phone", secrets.randbits(64))
                    took_s.append(time.monotonic() - began)
                    return
                except (ApiError, BackendUnavailable) as error:
                    if isinstance(error, ApiError) and not error.temporary:
                        raise
                    wait_s = error.retry_after_s if isinstance(error, ApiError) else None
                    await asyncio.sleep((wait_s or 1.0) * (0.5 + secrets.randbelow(100) / 100))

        await asyncio.gather(*(log_in(api, name) for api, name in zip(apis, names, strict=True)))
    return {"logged_in": len(took_s), "tried": tried, "all_s": round(max(took_s, default=0.0), 2)}


async def syncs(zmq_context: ZmqContext, means: Means) -> Counts:
    """Log in and read everything that is stored, as fast as it comes; `size` messages."""
    rude = Rude(zmq_context, means.connector, means.people[0])
    began = time.monotonic()
    await rude.welcome()
    while rude.deliveries < means.size and rude.over is None and time.monotonic() < began + means.seconds:
        rude.moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await rude.moved.wait()
    took_s = time.monotonic() - began
    rude.close()
    return {"synced": rude.deliveries, "took_s": round(took_s, 2), "over": float(rude.over is not None)}


ATTACKS: dict[str, Attack] = {
    function.__name__: function
    for function in (
        never_reads, over_the_window, early_frames, endless_submits, huge_frames, endless_parts, nonsense,
        never_greets, everybody_greets, everybody_logs_in, syncs,
    )
}  # fmt: skip
