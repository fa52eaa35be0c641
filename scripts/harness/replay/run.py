"""A replay: seed the users, run the schedule, then let every client collect its messages."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from meshim.client.rest import Api
from meshim.client.session import Credentials
from scripts.harness.clients.devices import for_each, log_in_device
from scripts.harness.history.format import HistoryWriter
from scripts.harness.replay.clients import DEVICE, ReplayClient, ReplayContext
from scripts.harness.replay.irclog import Action, Step, user_name
from scripts.harness.replay.schedule import Pace, Progress, run_schedule

_REQUESTS_MAX = 8
"""Requests to REST at a time.  Most of their time are password hashes, two for each user."""
_TIMEOUT_S = 60.0
"""Time that a client waits for missing messages at the end; what comes later is lost."""
_PROGRESS_S = 5.0


class ReplayRun:
    """A replay on a mesh.  `seed` makes the names of users and messages; at most `places` nicks are online at once."""

    def __init__(self, api: str, history: HistoryWriter, folder: Path, seed: int, places: int) -> None:
        self._context = ReplayContext(api, secrets.token_hex(16), history, f"{seed:x}")
        self._history = history
        self._folder = folder
        self._seed = seed
        self._places = places
        self._clients: dict[str, ReplayClient] = {}

    def run(self, steps: Sequence[Step], speedup: float) -> dict[str, float]:
        """Run the replay; return the seconds of each phase, and the delay of the schedule.

        Raises the errors of clients as an ExceptionGroup.
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
        async with _show_progress(
            lambda: f"{sum(bool(client.device) for client in self._clients.values())} of {len(self._clients)} users"
        ):
            await self._seed_users(steps)
        seeded = time.monotonic()
        async with _show_progress(lambda: f"{progress.done} of {progress.steps} steps, {progress.online} online"):
            await run_schedule(steps, self._clients, Pace(speedup), progress, self._places)
        replayed = time.monotonic()
        async with _show_progress(
            lambda: f"{sum(len(client.missing) for client in self._clients.values())} messages still to be seen"
        ):
            await self._finish([client for client in self._clients.values() if client.unsettled])
            await self._finish(self._clients.values())
        return {
            "setup_s": round(seeded - began, 1),
            "replay_s": round(replayed - seeded, 1),
            "collect_s": round(time.monotonic() - replayed, 1),
            "late_s": round(progress.late_s, 1),
            "online_max": progress.online_max,
        }

    async def _seed_users(self, steps: Sequence[Step]) -> None:
        """Register the users, each with a device and with the friends it will write to."""
        friends: dict[str, set[str]] = {nick: set() for nick in self._clients}
        for step in steps:
            if step.action is Action.SEND:
                friends[step.nick].add(step.to)
                friends[step.to].add(step.nick)

        async def register(nick: str) -> None:
            client = self._clients[nick]
            async with Api(self._context.api) as api:
                await api.register(client.name, self._context.password)
            self._history.write({"type": "user", "user": client.name, "nick": nick})

        async def log_in(nick: str) -> None:
            client = self._clients[nick]
            async with Api(self._context.api) as api:
                credentials = Credentials(client.name, self._context.password, DEVICE)
                identity = await log_in_device(api, credentials, client.state)
                client.device = str(identity.device)
                device = {"type": "device", "user": client.name, "device": client.device}
                self._history.write({**device, "state": f"{identity.epoch:016x}"})
                for friend in friends[nick]:
                    await api.request(self._clients[friend].name)

        await for_each(self._clients, register, _REQUESTS_MAX)
        await for_each(self._clients, log_in, _REQUESTS_MAX)

    async def _finish(self, clients: Iterable[ReplayClient]) -> None:
        free = asyncio.Semaphore(self._places)

        async def finish(client: ReplayClient) -> None:
            async with free:
                await client.finish(_TIMEOUT_S)

        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(finish(client))


@asynccontextmanager
async def _show_progress(what: Callable[[], str]) -> AsyncIterator[None]:
    """Print the progress to stderr every `_PROGRESS_S`."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            print(f"replay: {what()}", file=sys.stderr, flush=True)

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
