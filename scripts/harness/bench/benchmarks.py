"""The measurements of `bench.py`: each on a mesh of its own, whose processes nobody used before.

Every answer is a plain mapping that says what was asked beside what was seen, so that it can be kept and asked again.
"""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress

from scripts.harness.bench import workloads
from scripts.harness.bench.workloads import Soak, Told, Worthless
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.measured_mesh import Measured, measured

Answer = dict[str, Any]

WARM_S = 2.0
SENDERS, AWAY = 50, 100
WARM_CONNECTIONS = 100
REST_S = 5.0
SOAK_PAIRS = 50
SOAK_LOOK_S = 5.0

SCALE_RATE = 2_000.0
"""Messages a second, while only the number of users changes."""
LINK_RATE = 750.0
"""Messages a second for each link between a connector and a transfer, while the number of links changes."""
USERS = (100, 500, 1_000, 2_000, 5_000)
CONNECTORS = (2, 3, 4, 6)
TRANSFERS = (1, 2, 4)


class Bench:
    """Runs measurements, and shows on a terminal how far they are."""

    def __init__(self, *, curve: bool = True) -> None:
        self._curve = curve
        self._console = Console(stderr=True)

    def online(self, pairs: int, window: int, seconds: float, connectors: int = 2, transfers: int = 1) -> Answer:
        """As fast as it goes: what a message and its receipt cost, and how many there are in a second."""
        asked = {"pairs": pairs, "window": window, "connectors": connectors, "transfers": transfers}
        with self._mesh("online", 2 * pairs, _pairs(pairs), connectors, transfers) as (mesh, told):
            return asked | _ran(workloads.online(mesh, pairs, window, WARM_S, seconds, told))

    def latency(self, users: int, rate: float, seconds: float, connectors: int = 2, transfers: int = 1) -> Answer:
        """At a rate that leaves the mesh time: how long a message takes, and what it costs then."""
        asked = {"users": users, "rate_asked": rate, "connectors": connectors, "transfers": transfers}
        with self._mesh("latency", users, _pairs(users // 2), connectors, transfers) as (mesh, told):
            return asked | _ran(workloads.paced(mesh, users, rate, WARM_S, seconds, told))

    def offline(self, messages: int) -> Answer:
        """Messages for people who are away: stored, written, and collected when these log in."""
        friends = [(number, SENDERS + other) for number in range(SENDERS) for other in range(AWAY)]
        with self._mesh("offline", SENDERS + AWAY, friends) as (mesh, told):
            figures = _ran(workloads.offline(mesh, SENDERS, workloads.WINDOW, AWAY, messages, told))
        return {"messages": messages, "senders": SENDERS, "away": AWAY} | figures

    def idle(self, connections: int) -> Answer:
        """Connections that say nothing: how many are made in a second, and what each takes of memory."""
        with self._mesh("idle", connections + WARM_CONNECTIONS, []) as (mesh, told):
            return {"connections": connections} | _ran(
                workloads.idle(mesh, WARM_CONNECTIONS, connections, REST_S, told)
            )

    def soak(self, minutes: float, rate: float) -> Answer:
        """Memory of every process while it works at that rate: after the first minute, and at the end."""
        with self._mesh("soak", 2 * SOAK_PAIRS, _pairs(SOAK_PAIRS)) as (mesh, told):
            soak = Soak(mesh, SOAK_LOOK_S)
            figures = _ran(workloads.paced(mesh, 2 * SOAK_PAIRS, rate, 0.0, 60 * minutes, told, soak))
        return {"minutes": minutes, "rate_asked": rate} | figures | grown(soak.rss_kib)

    def scale(self, seconds: float, repetitions: int, tell: Callable[[str], None]) -> dict[str, list[Answer]]:
        """What a message costs as users, connectors and transfers become more; each case that often, in turns."""
        cases: dict[str, list[tuple[int, int, int, float]]] = {
            "users": [(users, 2, 1, SCALE_RATE) for users in USERS],
            "connectors": [(100, count, 1, LINK_RATE * count) for count in CONNECTORS],
            "transfers": [(100, 2, count, LINK_RATE * 2 * count) for count in TRANSFERS],
        }
        seen: dict[str, list[list[Answer]]] = {name: [[] for _ in each] for name, each in cases.items()}
        for _ in range(repetitions):
            for name, each in cases.items():
                for at, (users, connectors, transfers, rate) in enumerate(each):
                    tell(f"scale: {users:,} users, {connectors} connectors, {transfers} transfers")
                    ask = partial(self.latency, users, rate, seconds, connectors, transfers)
                    seen[name][at].append(twice(ask, tell))
        return {name: [medians(answers) for answers in each] for name, each in seen.items()}

    @contextmanager
    def _mesh(
        self, title: str, people: int, friends: Sequence[tuple[int, int]], connectors: int = 2, transfers: int = 1
    ) -> Iterator[tuple[Measured, Told]]:
        topology = local_mesh.topology(connectors, transfers, curve=self._curve)
        with Progress(console=self._console, transient=True, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(f"{title}: starting a mesh", total=1.0)

            def told(what: str, done: float) -> None:
                progress.update(task, description=f"{title}: {what}", completed=done)

            with measured(topology, people, friends) as mesh:
                yield mesh, told


def twice(ask: Callable[[], Answer], tell: Callable[[str], None]) -> Answer:
    """The answer, or that of a second try where the first is worth nothing: machines have bad moments."""
    try:
        return ask()
    except Worthless as error:
        tell(f"once more, because {error}")
        return ask()


def _ran(work: Coroutine[Any, Any, Answer]) -> Answer:
    return uvloop.run(work)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(number, count + number) for number in range(count)]


def medians(answers: Sequence[Answer]) -> Answer:
    """The median of every number in answers to the same question; of what is no number, the first."""
    merged: Answer = {}
    for name, value in answers[0].items():
        values = [answer[name] for answer in answers]
        if isinstance(value, dict):
            merged[name] = medians(values)
        else:
            merged[name] = median(values) if isinstance(value, int | float) else value
    return merged


def grown(rss_kib: Sequence[tuple[float, dict[str, int]]]) -> Answer:
    """How much more memory processes take at the end than after the first minute, as a ratio, all and each."""
    first, last = at_a_minute(rss_kib), rss_kib[-1][1]
    return {
        "rss_kib": [[at, kib] for at, kib in rss_kib],
        "growth": round(sum(last.values()) / sum(first.values()), 4),
        "growth_by": {name: round(last[name] / first[name], 4) for name in last},
    }


def at_a_minute(rss_kib: Sequence[tuple[float, dict[str, int]]]) -> dict[str, int]:
    return next((kib for at, kib in rss_kib if at >= 60.0), rss_kib[-1][1])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through (x, y) with the least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
