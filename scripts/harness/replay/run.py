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
from scripts.harness.replay.clients import DEVICE, ReplayClient, ReplayContext
from scripts.harness.replay.irclog import Action, Step, user_name
from scripts.harness.replay.schedule import Pace, Progress, run_schedule

_WORKERS = 8
"""Requests to REST at a time.  Most of their time goes into password hashes, two to a user."""
_TIMEOUT_S = 60.0
"""How long somebody waits for what is missing before it counts as lost."""
_TELL_EVERY_S = 5.0


class ReplayRun:
    """A mesh and a clients.  `seed` makes the names of users and messages, `places` bounds who is online at a time."""

    def __init__(self, api: str, history: HistoryWriter, folder: Path, seed: int, places: int) -> None:
        self._context = ReplayContext(api, secrets.token_hex(16), history, f"{seed:x}")
        self._history = history
        self._folder = folder
        self._seed = seed
        self._places = places
        self._clients: dict[str, ReplayClient] = {}

    def run(self, steps: Sequence[Step], speedup: float) -> dict[str, float]:
        """Do everything; return how many seconds each part took, and how well time was kept.

        Raises what goes wrong, as an ExceptionGroup.
        """
        return uvloop.run(self._run_in_loop(steps, speedup))

    async def _run_in_loop(self, steps: Sequence[Step], speedup: float) -> dict[str, float]:
        for nick in sorted({step.nick for step in steps}):
            name = user_name(nick, f"r{self._seed:x}.")
            self._clients[nick] = ReplayClient(
                self._context, self._clients, name, self._folder / f"{len(self._clients)}.db"
            )
        progress = Progress(len(steps))
        began = time.monotonic()
        async with _progress_on_stderr(
            lambda: f"{sum(bool(p.device) for p in self._clients.values())} of {len(self._clients)} users"
        ):
            await self._seed_users(steps)
        enrolled = time.monotonic()
        async with _progress_on_stderr(lambda: f"{progress.done} of {progress.steps} steps, {progress.online} online"):
            await run_schedule(steps, self._clients, Pace(speedup), progress, self._places)
        acted = time.monotonic()
        async with _progress_on_stderr(
            lambda: f"{sum(len(p.missing) for p in self._clients.values())} messages still to be seen"
        ):
            await self._finish([client for client in self._clients.values() if client.unsettled])
            await self._finish(self._clients.values())
        return {
            "setup_s": round(enrolled - began, 1),
            "replay_s": round(acted - enrolled, 1),
            "collect_s": round(time.monotonic() - acted, 1),
            "late_s": round(progress.late_s, 1),
            "online_max": progress.online_max,
        }

    async def _seed_users(self, steps: Sequence[Step]) -> None:
        """Give everybody an account, a device that the mesh knows, and the friends they will write to."""
        friends: dict[str, set[str]] = {nick: set() for nick in self._clients}
        for step in steps:
            if step.action is Action.SEND:
                friends[step.nick].add(step.to)
                friends[step.to].add(step.nick)

        async def register(api: Api, nick: str) -> None:
            client = self._clients[nick]
            await api.register(client.name, self._context.password)
            self._history.write({"type": "user", "user": client.name, "nick": nick})

        async def log_in(api: Api, nick: str) -> None:
            client = self._clients[nick]
            state = await asyncio.to_thread(StateFile, client.state)
            try:
                identity = await Session(api, state, Credentials(client.name, self._context.password, DEVICE)).open()
            finally:
                await asyncio.to_thread(state.close)
            client.device = str(identity.device)
            device = {"type": "device", "user": client.name, "device": client.device}
            self._history.write({**device, "state": f"{identity.epoch:016x}"})
            for friend in friends[nick]:
                await api.request(self._clients[friend].name)

        await self._each(register)
        await self._each(log_in)

    async def _each(self, do: Callable[[Api, str], Awaitable[None]]) -> None:
        """Do something for everybody, as many at a time as there are workers."""
        todo = iter(self._clients)

        async def work() -> None:
            async with Api(self._context.api) as api:
                for nick in todo:
                    await do(api, nick)

        async with asyncio.TaskGroup() as workers:
            for _ in range(_WORKERS):
                workers.create_task(work())

    async def _finish(self, clients: Iterable[ReplayClient]) -> None:
        free = asyncio.Semaphore(self._places)

        async def finish(client: ReplayClient) -> None:
            async with free:
                await client.finish(_TIMEOUT_S)

        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(finish(client))


@asynccontextmanager
async def _progress_on_stderr(what: Callable[[], str]) -> AsyncIterator[None]:
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
