"""The hostile clients of a run: their users, and the one process that they all are in."""

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from meshim.client.rest import Api
from meshim.errors import MeshimError
from meshim.runtime.crypto import parse_token
from scripts.harness.chaos.hostile.sessions import PAUSE_S, SESSIONS
from scripts.harness.chaos.hostile.strangers import STRANGERS
from scripts.harness.chaos.hostile.world import HostileClient, HostileConfig, Tally, World
from scripts.harness.chaos.users import TRANSPORTS
from scripts.harness.mesh.users import MeshUser

LOW_PRIORITY = 10
"""Real attackers would not share these CPUs.  At the lowest priority (19) a busy machine would not run them at all."""
ATTACKS = SESSIONS | STRANGERS
SHARE = 4
"""One hostile client for so many honest ones: a fifth of all clients."""
START_S, END_S = 30.0, 20.0


# ---------------------------------------------------------------- before the run


def hostile_count(honest: int) -> int:
    """Return how many hostile clients there are: each kind has at least one."""
    return max(len(ATTACKS), round(honest / SHARE))


async def seed_hostile(
    api: str, password: str, data: Path, count: int, honest: Sequence[str], transport: str
) -> HostileConfig:
    """Register the users of hostile clients, each a friend of its neighbours and of one of the `honest` users.

    Raises MeshimError when REST refuses one.
    """
    names = [f"hostile{at}.{secrets.token_hex(3)}" for at in range(count)]
    users = {name: _Accounts(name, honest[at % len(honest)]) for at, name in enumerate(names)}
    async with Api(api) as rest:
        await rest.import_users([(name, password) for name in names])
        for at, name in enumerate(names):
            users[name].phone = await _log_in(rest, name, password, "phone")
            users[name].laptop = await _log_in(rest, name, password, "laptop")
            for friend in {names[at - 1], names[(at + 1) % count], users[name].victim}:
                await rest.request(friend)
        for name in names:
            await rest.login(users[name].victim, password)
            await rest.request(name)
        ids = {name: (await rest.user(name)).user_id for name in honest}
    kinds, transports = cycle(ATTACKS), cycle(TRANSPORTS[transport])
    clients = [
        HostileClient(
            kind=next(kinds),
            transport=next(transports),
            phone=users[name].phone,
            laptop=users[name].laptop,
            accomplice=users[names[(at + 1) % count]].phone.user,
            victim=ids[users[name].victim],
            stranger=ids[honest[(at + 1) % len(honest)]],
            stranger_name=honest[(at + 1) % len(honest)],
        )
        for at, name in enumerate(names)
    ]
    return HostileConfig(api, password, data, clients)


class _Accounts:
    """The devices of a hostile user, once they have logged in, and the name of its victim."""

    phone: MeshUser
    laptop: MeshUser

    def __init__(self, name: str, victim: str) -> None:
        self.name = name
        self.victim = victim


async def _log_in(api: Api, name: str, password: str, device: str) -> MeshUser:
    epoch = secrets.randbits(53)
    answer = await api.login(name, password, device, epoch, takeover=True)
    return MeshUser(name, answer.user_id, answer.device_id, epoch, parse_token(answer.token))


# ---------------------------------------------------------------- the process


def attack(control: Connection, config: HostileConfig) -> None:
    """Attack from the first message of `control` to the second, then send the tallies.  The body of a process."""
    os.nice(LOW_PRIORITY)
    asyncio.run(_attack(control, config))


async def _attack(control: Connection, config: HostileConfig) -> None:
    world = World(config)
    following = asyncio.create_task(world.follow_connectors(config.clients[0].phone.name))
    control.send("ready")
    await asyncio.to_thread(control.recv)
    tasks = [following, *(asyncio.create_task(_for_ever(world, client)) for client in config.clients)]
    stopping = asyncio.create_task(asyncio.to_thread(control.recv))
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()  # raises: none of them ends by itself
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    control.send(world.tallies)


async def _for_ever(world: World, client: HostileClient) -> None:
    while True:
        await ATTACKS[client.kind](world, client)
        await asyncio.sleep(PAUSE_S)


class HostileProcess:
    """The process, as the run sees it."""

    def __init__(self, config: HostileConfig) -> None:
        spawning = get_context("spawn")
        self._control, theirs = spawning.Pipe()
        self._process = spawning.Process(target=attack, args=(theirs, config), daemon=True)
        self._theirs = theirs
        self._stopping = False

    async def start(self) -> None:
        """Start it, and return when it could attack.  Raises MeshimError, as the next ones do."""
        await asyncio.to_thread(self._process.start)
        self._theirs.close()
        await self._receive(START_S)

    def begin(self) -> None:
        """Attack from now on."""
        self._control.send("begin")

    def check(self) -> None:
        """Raise MeshimError when it ended by itself."""
        if self._process.exitcode is not None and not self._stopping:
            raise MeshimError("The process of the hostile clients ended by itself: its last words are above.")

    async def stop(self) -> dict[str, Tally]:
        """End the attacks; return what the clients of each kind did."""
        self._stopping = True
        self._control.send("stop")
        tallies: dict[str, Tally] = await self._receive(END_S)
        return tallies

    async def end(self) -> None:
        """End the process, if it runs."""
        with suppress(AttributeError):  # it was never started
            self._process.terminate()
            await asyncio.to_thread(self._process.join)
        self._control.close()

    async def _receive(self, within_s: float) -> Any:
        if not await asyncio.to_thread(self._control.poll, within_s):
            raise MeshimError("The process of the hostile clients did not answer: is the machine busy?")
        try:
            return self._control.recv()
        except EOFError:
            raise MeshimError("The process of the hostile clients ended by itself: its last words are above.") from None
