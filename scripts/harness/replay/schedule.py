"""Acting out the plan of some logs: every nick is a task that does its steps, each not before its time."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from scripts.harness.replay.irclog import Action, Step


class ScheduledClient(Protocol):
    """Whoever acts for one nick.  Its calls come one after another."""

    async def connect(self) -> None: ...

    async def send(self, to: str, text: str) -> None: ...

    async def disconnect(self) -> None: ...


@dataclass
class Progress:
    """How far it is; changes while it runs."""

    steps: int
    done: int = 0
    said: int = 0
    online: int = 0
    online_max: int = 0
    late_s: float = 0.0
    """By how much the latest step began late: more than a few seconds is more than this machine can do."""


class Pace:
    """Log time as time of this process: `speedup` log seconds are one second."""

    def __init__(self, speedup: float) -> None:
        self._speedup = speedup
        self._start = asyncio.get_running_loop().time()

    async def __call__(self, minute: float) -> float:
        """Wait until a minute of the log has come, and return how many seconds ago that was."""
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
    """Do all steps, with at most `places` nicks online at a time: whoever finds none waits, and is late.

    Raises what a client raises, as an ExceptionGroup, and then does no more.
    """
    parts: defaultdict[str, list[Step]] = defaultdict(list)
    for step in steps:
        parts[step.nick].append(step)
    free = asyncio.Semaphore(places)
    async with asyncio.TaskGroup() as tasks:
        for nick, part in parts.items():
            tasks.create_task(_run_one(part, clients[nick], pace, progress, free))


async def _run_one(
    part: Iterable[Step],
    client: ScheduledClient,
    pace: Callable[[float], Awaitable[float]],
    progress: Progress,
    free: asyncio.Semaphore,
) -> None:
    for step in part:
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
                progress.said += 1
            case Action.DISCONNECT:
                await client.disconnect()
                progress.online -= 1
                free.release()
        progress.done += 1
