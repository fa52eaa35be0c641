"""A process with many devices that stay connected; `storm.py` tells it what to do, over a pipe.

connect     connect all devices, `AT_ONCE` at a time, each with patience: how long did it take
ask         the same for a question to REST each
leave       end all connections
watch       which devices are welcomed, and since when; how connections ended and what REST answered since the last
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import uvloop

from meshim.wire.rest import Connector
from scripts.harness.clients.connections import Transport
from scripts.harness.clients.reconnecting import ReconnectingClient, Service, ask
from scripts.harness.mesh.seed_database import SeededUser

AT_ONCE = 50
"""Enough to keep the mesh busy, and few enough that none waits long."""
PATIENCE_S = 60.0


class FleetOptions(NamedTuple):
    """The devices of one process, by the numbers of their users, and the mesh that they connect to."""

    numbers: range
    api: str
    connectors: Sequence[Connector]
    transport: Transport


class Watched(NamedTuple):
    """The state of the devices of a process."""

    welcomed_at: Sequence[float]
    """Of those that are welcomed: since when, by the monotonic clock, which is one for all processes."""
    answers: Counter[str]
    ends: Counter[str]


def fleet(control: Connection, options: FleetOptions) -> None:
    """Do what `control` says, until it ends.  The body of a process."""
    uvloop.run(_Fleet(options).serve(control))


class _Fleet:
    def __init__(self, options: FleetOptions) -> None:
        self._options = options
        self._service = Service(options.api, Counter())
        self._ends: Counter[str] = Counter()
        self._clients: list[ReconnectingClient] = []

    async def serve(self, control: Connection) -> None:
        commands = {"connect": self._connect, "ask": self._ask, "leave": self._leave, "watch": self._watch}
        control.send("ready")
        while True:
            try:
                command = await asyncio.to_thread(control.recv)
            except EOFError:
                return
            control.send(await commands[command]())

    async def _connect(self) -> float:
        async def connect(number: int) -> None:
            options = self._options
            client = ReconnectingClient(
                self._service, SeededUser.of(number), options.connectors, options.transport, self._ends
            )
            self._clients.append(client)
            async with asyncio.timeout(PATIENCE_S):
                await client.online.wait()

        return await _timed(connect, self._options.numbers)

    async def _ask(self) -> float:
        async def question(number: int) -> None:
            await ask(self._service, SeededUser.of(number), PATIENCE_S)

        return await _timed(question, self._options.numbers)

    async def _leave(self) -> int:
        clients, self._clients = self._clients, []
        await asyncio.gather(*(client.close() for client in clients))
        return len(clients)

    async def _watch(self) -> Watched:
        offset = time.monotonic() - asyncio.get_running_loop().time()
        since = [client.welcomed_at + offset for client in self._clients if client.welcomed_at is not None]
        watched = Watched(since, self._service.answers.copy(), self._ends.copy())
        self._service.answers.clear()
        self._ends.clear()
        return watched


async def _timed(work: Callable[[int], Awaitable[None]], numbers: range) -> float:
    """Work on each number, `AT_ONCE` at a time; return the seconds."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            await work(number)

    began = time.monotonic()
    await asyncio.gather(*map(one, numbers))
    return time.monotonic() - began
