"""All connectors of a mesh are killed and come back on other ports: how long until all clients are back?

Compared with what the service needs for that at full speed, measured before on the same mesh with the same clients, who
wait for their turn: to answer all of them, and to greet all of them.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from meshim.errors import MeshimError
from meshim.stores.ports import Login
from meshim.wire.rest import Connector
from scripts.harness.abuse.fleet import FleetOptions, Watched, fleet
from scripts.harness.abuse.worker import progress, receive, worker
from scripts.harness.clients.connections import Transport
from scripts.harness.mesh.local_mesh import topology
from scripts.harness.mesh.measured_mesh import MeasuredMesh, measured_mesh
from scripts.harness.mesh.process_stats import rest_url, role_pids
from scripts.harness.mesh.seed_database import TOKEN_S, SeededUser
from scripts.harness.mesh.users import cache_logins, living_connectors

CLIENTS = 6_000
PROCESSES = 2
"""With the load: a connection of the client library takes four descriptors by ZeroMQ."""
RATIO_MAX = 1.5
NEEDED_FLOOR_S = 10.0
"""The ratio is against at least this: with few clients the pauses of their back-off decide, which are up to 7.5 s."""
GIVE_UP_S = 300.0
LOOK_S = 0.1
"""Between two looks at the leases and at the clients."""


def run(clients: int, transport: Transport) -> dict[str, Any]:
    """Run the storm on a mesh of its own; return the figures, and as `broken` a sentence for each bound that is.

    Raises MeshimError when the mesh or a process of the measurement fails.
    """
    with progress(f"storm of {clients:,} clients"), measured_mesh(topology(), clients, [], transport) as mesh:
        return asyncio.run(_storm(mesh, clients, transport))


async def _storm(mesh: MeasuredMesh, clients: int, transport: Transport) -> dict[str, Any]:
    ends_at = time.time() + TOKEN_S
    people = map(SeededUser.of, range(clients))
    await cache_logins(mesh.data, ((each.token, Login(each.user, each.user, each.epoch, ends_at)) for each in people))
    known = [Connector(each.name, each.endpoint, each.key, each.url) for each in mesh.connectors]
    share = -(-clients // PROCESSES)
    parts = [range(first, min(first + share, clients)) for first in range(0, clients, share)]
    async with AsyncExitStack() as stack:
        fleets = [
            await stack.enter_async_context(worker(fleet, FleetOptions(numbers, rest_url(mesh.data), known, transport)))
            for numbers in parts
        ]

        async def tell(command: str) -> list[Any]:
            for each in fleets:
                each.send(command)
            return [await receive(each, GIVE_UP_S) for each in fleets]

        for each in fleets:
            await receive(each)
        await tell("connect")  # once without a clock: what is looked up for the first time is in no cache
        await tell("leave")
        greet_s = max(await tell("connect"))
        ask_s = max(await tell("ask"))
        await tell("watch")
        killed_at = await asyncio.to_thread(_kill_connectors, mesh)
        outage_s = await _until_living(mesh) - killed_at
        back = await _until_back(lambda: tell("watch"), clients, killed_at)
        await tell("leave")
    return figures(clients, outage_s, ask_s, greet_s, back)


def _kill_connectors(mesh: MeasuredMesh) -> float:
    """Kill all connectors; return when."""
    pids = role_pids(mesh.data)
    now = time.monotonic()
    for connector in mesh.connectors:
        os.kill(pids[connector.name], signal.SIGKILL)
    return now


async def _until_living(mesh: MeasuredMesh) -> float:
    """Return when REST can name all connectors again, at their new addresses."""
    dead = {lease.incarnation for lease in mesh.connectors}
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        living = [lease for lease in await living_connectors(mesh.data) if lease.incarnation not in dead]
        if len(living) == len(dead):
            return time.monotonic()
        await asyncio.sleep(LOOK_S)
    raise MeshimError("The connectors did not come back: is the machine too busy?")


class Return(NamedTuple):
    """How the clients came back: the seconds of each since the kill, and what was counted meanwhile."""

    took_s: Sequence[float]
    answers: Counter[str]
    ends: Counter[str]


async def _until_back(watch: Callable[[], Awaitable[list[Watched]]], clients: int, killed_at: float) -> Return:
    """Wait until all clients are welcomed by connectors that were started since."""
    answers, ends = Counter[str](), Counter[str]()
    while True:
        await asyncio.sleep(LOOK_S)
        seen = await watch()
        for each in seen:
            answers.update(each.answers)
            ends.update(each.ends)
        took_s = sorted(at - killed_at for each in seen for at in each.welcomed_at if at > killed_at)
        if len(took_s) == clients or time.monotonic() - killed_at > GIVE_UP_S:
            return Return(took_s, answers, ends)


def figures(clients: int, outage_s: float, ask_s: float, greet_s: float, back: Return) -> dict[str, Any]:
    """Return the figures; `broken` is a sentence for each bound that did not hold."""
    needed_s = outage_s + ask_s + greet_s
    all_s = max(back.took_s, default=0.0)
    limit_s = RATIO_MAX * max(needed_s, NEEDED_FLOOR_S)
    broken = []
    if len(back.took_s) < clients:
        broken.append(f"{clients - len(back.took_s):,} of {clients:,} clients were not back after {GIVE_UP_S:g} s")
    elif all_s > limit_s:
        broken.append(f"all were back after {all_s:.1f} s: {limit_s:.1f} s are allowed")
    return {
        "scenario": "storm",
        "broken": broken,
        "clients": clients,
        "outage_s": round(outage_s, 2),
        "ask_s": round(ask_s, 2),
        "greet_s": round(greet_s, 2),
        "answers_per_s": round(clients / ask_s),
        "greetings_per_s": round(clients / greet_s),
        "needed_s": round(needed_s, 2),
        "half_s": round(back.took_s[len(back.took_s) // 2], 2) if back.took_s else 0.0,
        "all_s": round(all_s, 2),
        "ratio": round(all_s / needed_s, 2),
        "answers": dict(back.answers),
        "ends": dict(back.ends),
    }
