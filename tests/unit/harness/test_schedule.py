"""A plan is acted out whole, in the order of each nick, by no more at a time than there is room for."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.harness.replay.irclog import Action, Step, plan
from scripts.harness.replay.schedule import Pace, Progress, run_schedule


class Room:
    """The clients of a test, and what each of them did."""

    def __init__(self, dawdle: Callable[[], int] = lambda: 0) -> None:
        self.dawdle = dawdle
        self.did: defaultdict[str, list[tuple[Action, str, str]]] = defaultdict(list)
        self.online: set[str] = set()
        self.online_max = 0


class Guest:
    def __init__(self, room: Room, nick: str) -> None:
        self._room = room
        self._nick = nick

    async def connect(self) -> None:
        self._room.online.add(self._nick)
        self._room.online_max = max(self._room.online_max, len(self._room.online))
        await self._do(Action.CONNECT)

    async def send(self, to: str, text: str) -> None:
        assert self._nick in self._room.online
        await self._do(Action.SEND, to, text)

    async def disconnect(self) -> None:
        await self._do(Action.DISCONNECT)
        self._room.online.remove(self._nick)

    async def _do(self, action: Action, to: str = "", text: str = "") -> None:
        self._room.did[self._nick].append((action, to, text))
        for _ in range(self._room.dawdle()):
            await asyncio.sleep(0)


async def at_once(minute: float) -> float:
    await asyncio.sleep(0)
    return minute / 100


def clients(steps: list[Step], room: Room) -> dict[str, Guest]:
    return {step.nick: Guest(room, step.nick) for step in steps}


nicks = st.sampled_from(["ann", "bob", "cy", "dee"])
lines = st.builds("[{:02}:{:02}] <{}> {}: hi".format, st.integers(0, 3), st.integers(0, 59), nicks, nicks)


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(lines, max_size=40), st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_plan(log: list[str], places: int, random: Random) -> None:
    steps = plan(["\n".join(sorted(log)).encode()])
    room = Room(lambda: random.randint(0, 5))
    progress = Progress(len(steps))
    asyncio.run(run_schedule(steps, clients(steps, room), at_once, progress, places))

    for nick, did in room.did.items():
        assert did == [(step.action, step.to, step.text) for step in steps if step.nick == nick]
    assert progress.done == len(steps) == sum(map(len, room.did.values()))
    assert progress.said == sum(step.action is Action.SEND for step in steps)
    assert not room.online
    assert room.online_max == progress.online_max <= places
    assert progress.late_s == max((step.minute / 100 for step in steps), default=0)


async def test_what_a_party_raises_ends_it() -> None:
    class Broken(Guest):
        async def send(self, to: str, text: str) -> None:
            raise ValueError(text)

    room = Room()
    steps = plan([b"[10:00] <ann> bob: x\n[10:00] <bob> y\n"])
    with pytest.raises(ExceptionGroup) as raised:
        await run_schedule(
            steps, {"ann": Broken(room, "ann"), "bob": Guest(room, "bob")}, at_once, Progress(len(steps)), 9
        )
    assert raised.group_contains(ValueError, match="bob: x")


async def test_pace_waits_for_the_minute() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    pace = Pace(speedup=6000)
    assert await pace(0) >= 0
    await pace(5)
    assert loop.time() - start >= 0.05
    assert await pace(0) >= 0.05
