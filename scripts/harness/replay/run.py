"""A replay from first to last: everybody gets an account and friends, the plan is acted out, everybody collects."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from meshim.client.rest import Api
from meshim.client.session import Credentials, Session
from meshim.client.state import StateFile
from scripts.harness.history.format import HistoryWriter
from scripts.harness.replay.clients import DEVICE, Player, Script
from scripts.harness.replay.irclog import Deed, Step, user_name
from scripts.harness.replay.schedule import Pace, Progress, act

_WORKERS = 8
"""Requests to REST at a time.  Most of their time goes into password hashes, two to a user."""
_TIMEOUT_S = 60.0
"""How long somebody waits for what is missing before it counts as lost."""
_TELL_EVERY_S = 5.0


class Stage:
    """A mesh and a cast.  `seed` makes the names of users and messages, `places` bounds who is online at a time."""

    def __init__(self, api: str, history: HistoryWriter, folder: Path, seed: int, places: int) -> None:
        self._script = Script(api, secrets.token_hex(16), history, f"{seed:x}")
        self._history = history
        self._folder = folder
        self._seed = seed
        self._places = places
        self._cast: dict[str, Player] = {}

    def perform(self, steps: Sequence[Step], speedup: float) -> dict[str, float]:
        """Do everything; return how many seconds each part took, and how well time was kept.

        Raises what goes wrong, as an ExceptionGroup.
        """
        return uvloop.run(self._perform(steps, speedup))

    async def _perform(self, steps: Sequence[Step], speedup: float) -> dict[str, float]:
        for nick in sorted({step.nick for step in steps}):
            name = user_name(nick, f"r{self._seed:x}.")
            self._cast[nick] = Player(self._script, self._cast, name, self._folder / f"{len(self._cast)}.db")
        progress = Progress(len(steps))
        began = time.monotonic()
        async with _told(lambda: f"{sum(bool(p.device) for p in self._cast.values())} of {len(self._cast)} users"):
            await self._enrol(steps)
        enrolled = time.monotonic()
        async with _told(lambda: f"{progress.done} of {progress.steps} steps, {progress.online} online"):
            await act(steps, self._cast, Pace(speedup), progress, self._places)
        acted = time.monotonic()
        async with _told(lambda: f"{sum(len(p.missing) for p in self._cast.values())} messages still to be seen"):
            await self._finish([player for player in self._cast.values() if player.unsettled])
            await self._finish(self._cast.values())
        return {
            "setup_s": round(enrolled - began, 1),
            "replay_s": round(acted - enrolled, 1),
            "collect_s": round(time.monotonic() - acted, 1),
            "late_s": round(progress.late_s, 1),
            "online_max": progress.online_max,
        }

    async def _enrol(self, steps: Sequence[Step]) -> None:
        """Give everybody an account, a device that the mesh knows, and the friends they will write to."""
        friends: dict[str, set[str]] = {nick: set() for nick in self._cast}
        for step in steps:
            if step.deed is Deed.SAY:
                friends[step.nick].add(step.to)
                friends[step.to].add(step.nick)

        async def register(api: Api, nick: str) -> None:
            player = self._cast[nick]
            await api.register(player.name, self._script.password)
            self._history.write({"type": "user", "user": player.name, "nick": nick})

        async def log_in(api: Api, nick: str) -> None:
            player = self._cast[nick]
            state = await asyncio.to_thread(StateFile, player.state)
            try:
                identity = await Session(api, state, Credentials(player.name, self._script.password, DEVICE)).open()
            finally:
                await asyncio.to_thread(state.close)
            player.device = str(identity.device)
            device = {"type": "device", "user": player.name, "device": player.device}
            self._history.write({**device, "state": f"{identity.epoch:016x}"})
            for friend in friends[nick]:
                await api.request(self._cast[friend].name)

        await self._each(register)
        await self._each(log_in)

    async def _each(self, do: Callable[[Api, str], Awaitable[None]]) -> None:
        """Do something for everybody, as many at a time as there are workers."""
        todo = iter(self._cast)

        async def work() -> None:
            async with Api(self._script.api) as api:
                for nick in todo:
                    await do(api, nick)

        async with asyncio.TaskGroup() as workers:
            for _ in range(_WORKERS):
                workers.create_task(work())

    async def _finish(self, players: Iterable[Player]) -> None:
        free = asyncio.Semaphore(self._places)

        async def finish(player: Player) -> None:
            async with free:
                await player.finish(_TIMEOUT_S)

        async with asyncio.TaskGroup() as tasks:
            for player in players:
                tasks.create_task(finish(player))


@asynccontextmanager
async def _told(what: Callable[[], str]) -> AsyncIterator[None]:
    """Tell on stderr, now and then, how far it is."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            print(f"replay: {what()}", file=sys.stderr, flush=True)

    teller = asyncio.create_task(tell())
    try:
        yield
    finally:
        teller.cancel()
