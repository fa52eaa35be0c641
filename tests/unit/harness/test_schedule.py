"""All steps of a plan are run, in the order of each nick, with a bounded number of nicks online."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.harness.replay.irclog import Action, Step, plan
from scripts.harness.replay.schedule import Pace, Progress, run_schedule


class Recorder:
    """Records the calls of all clients; `turns` are the turns of the loop that a call takes."""

    def __init__(self, turns: Callable[[], int] = lambda: 0) -> None:
        self.turns = turns
        self.calls: defaultdict[str, list[tuple[Action, str, str]]] = defaultdict(list)
        self.online: set[str] = set()
        self.online_max = 0


class RecordingClient:
    def __init__(self, recorder: Recorder, nick: str) -> None:
        self._recorder = recorder
        self._nick = nick

    async def connect(self) -> None:
        self._recorder.online.add(self._nick)
        self._recorder.online_max = max(self._recorder.online_max, len(self._recorder.online))
        await self._do(Action.CONNECT)

    async def send(self, to: str, text: str) -> None:
        assert self._nick in self._recorder.online
        await self._do(Action.SEND, to, text)

    async def disconnect(self) -> None:
        await self._do(Action.DISCONNECT)
        self._recorder.online.remove(self._nick)

    async def _do(self, action: Action, to: str = "", text: str = "") -> None:
        self._recorder.calls[self._nick].append((action, to, text))
        for _ in range(self._recorder.turns()):
            await asyncio.sleep(0)


async def at_once(minute: float) -> float:
    await asyncio.sleep(0)
    return minute / 100


def clients(steps: list[Step], recorder: Recorder) -> dict[str, RecordingClient]:
    return {step.nick: RecordingClient(recorder, step.nick) for step in steps}


nicks = st.sampled_from(["ann", "bob", "cy", "dee"])
lines = st.builds("[{:02}:{:02}] <{}> {}: hi".format, st.integers(0, 3), st.integers(0, 59), nicks, nicks)


@settings(max_examples=100)
@given(st.lists(lines, max_size=40), st.integers(1, 4), st.randoms(use_true_random=False))
def test_every_step_of_any_plan_runs_in_order(log: list[str], places: int, random: Random) -> None:
    steps = plan(["\n".join(sorted(log)).encode()])
    recorder = Recorder(lambda: random.randint(0, 5))
    progress = Progress(len(steps))
    asyncio.run(run_schedule(steps, clients(steps, recorder), at_once, progress, places))

    for nick, calls in recorder.calls.items():
        assert calls == [(step.action, step.to, step.text) for step in steps if step.nick == nick]
    assert progress.done == len(steps) == sum(map(len, recorder.calls.values()))
    assert progress.sent == sum(step.action is Action.SEND for step in steps)
    assert not recorder.online
    assert recorder.online_max == progress.online_max <= places
    assert progress.late_s == max((step.minute / 100 for step in steps), default=0)


async def test_what_a_party_raises_ends_it() -> None:
    class Broken(RecordingClient):
        async def send(self, to: str, text: str) -> None:
            raise ValueError(text)

    recorder = Recorder()
    steps = plan([b"[10:00] <ann> bob: x\n[10:00] <bob> y\n"])
    with pytest.raises(ExceptionGroup) as raised:
        await run_schedule(
            steps,
            {"ann": Broken(recorder, "ann"), "bob": RecordingClient(recorder, "bob")},
            at_once,
            Progress(len(steps)),
            9,
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
