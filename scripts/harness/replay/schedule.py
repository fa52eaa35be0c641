"""Runs the steps of `irclog.plan`: each nick is a task that does its steps in order, none before its time."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from scripts.harness.replay.irclog import Action, Step


class ScheduledClient(Protocol):
    """The client of one nick.  Its calls do not overlap."""

    async def connect(self) -> None: ...

    async def send(self, to: str, text: str) -> None: ...

    async def disconnect(self) -> None: ...


@dataclass
class Progress:
    """Progress of the run; changes while it runs."""

    steps: int
    done: int = 0
    sent: int = 0
    online: int = 0
    online_max: int = 0
    late_s: float = 0.0
    """Largest delay of a step: more than a few seconds is more than this machine can do."""


class Pace:
    """Waits for log time: `speedup` seconds of the log are one second."""

    def __init__(self, speedup: float) -> None:
        self._speedup = speedup
        self._start = asyncio.get_running_loop().time()

    async def __call__(self, minute: float) -> float:
        """Wait until this minute of the log; return the seconds since then."""
        loop = asyncio.get_running_loop()
        due = self._start + minute * 60 / self._speedup
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        return loop.time() - due


async def run_schedule(
    steps: Iterable[Step],
    clients: Mapping[str, ScheduledClient],
    pace: Callable[[float], Awaitable[float]],
    progress: Progress,
    places: int,
) -> None:
    """Run all steps, with at most `places` nicks online at a time; further nicks wait, and are late.

    Raises the errors of clients as an ExceptionGroup, and then runs no more steps.
    """
    by_nick: defaultdict[str, list[Step]] = defaultdict(list)
    for step in steps:
        by_nick[step.nick].append(step)
    free = asyncio.Semaphore(places)
    async with asyncio.TaskGroup() as tasks:
        for nick, own_steps in by_nick.items():
            tasks.create_task(_run_one(own_steps, clients[nick], pace, progress, free))


async def _run_one(
    own_steps: Iterable[Step],
    client: ScheduledClient,
    pace: Callable[[float], Awaitable[float]],
    progress: Progress,
    free: asyncio.Semaphore,
) -> None:
    for step in own_steps:
        late_s = await pace(step.minute)
        progress.late_s = max(progress.late_s, late_s)
        match step.action:
            case Action.CONNECT:
                await free.acquire()
                progress.online += 1
                progress.online_max = max(progress.online_max, progress.online)
                await client.connect()
            case Action.SEND:
                await client.send(step.to, step.text)
                progress.sent += 1
            case Action.DISCONNECT:
                await client.disconnect()
                progress.online -= 1
                free.release()
        progress.done += 1
