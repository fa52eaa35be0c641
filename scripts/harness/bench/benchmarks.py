"""The measurements of `bench.py`.  Each runs on a fresh mesh.

A result is a plain dictionary of the parameters and the figures, so that it can be stored as JSON and repeated.
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
from scripts.harness.bench.workloads import InvalidMeasurement, MemorySampler, ReportProgress
from scripts.harness.clients.connections import Transport
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.measured_mesh import MeasuredMesh, measured_mesh

Result = dict[str, Any]

WARM_UP_S = 2.0
SENDERS, AWAY = 50, 100
WARM_UP_CONNECTIONS = 100
IDLE_S = 5.0
"""Pause between the last connection and the reading of memory."""
SOAK_PAIRS = 50
SOAK_SAMPLE_S = 5.0

SCALE_RATE = 2_000.0
"""Messages a second while the number of users varies."""
LINK_RATE = 750.0
"""Messages a second on each link between a connector and a transfer, while the number of links varies."""
USERS = (100, 500, 1_000, 2_000, 5_000)
CONNECTORS = (2, 3, 4, 6)
TRANSFERS = (1, 2, 4)


class Bench:
    """Runs measurements and shows their progress on a terminal."""

    def __init__(self, *, curve: bool = True, transport: Transport = "zeromq") -> None:
        """`transport` is that of the clients; `curve` is of ZeroMQ, and of links within the mesh."""
        self._curve = curve
        self._transport: Transport = transport
        self._console = Console(stderr=True)

    def online(self, pairs: int, window: int, seconds: float, connectors: int = 2, transfers: int = 1) -> Result:
        """Measure throughput: messages a second, and the CPU time of a message with its receipt."""
        parameters = {"pairs": pairs, "window": window, "connectors": connectors, "transfers": transfers}
        with self._mesh("online", 2 * pairs, _pairs(pairs), connectors, transfers) as (mesh, progress):
            return parameters | _run(workloads.online(mesh, pairs, window, WARM_UP_S, seconds, progress))

    def latency(self, users: int, rate: float, seconds: float, connectors: int = 2, transfers: int = 1) -> Result:
        """Measure latency and CPU time of a message at a fixed rate below saturation."""
        parameters = {"users": users, "rate_asked": rate, "connectors": connectors, "transfers": transfers}
        with self._mesh("latency", users, _pairs(users // 2), connectors, transfers) as (mesh, progress):
            return parameters | _run(workloads.paced(mesh, users, rate, WARM_UP_S, seconds, progress))

    def offline(self, messages: int) -> Result:
        """Measure messages to offline users: stored in the log, written to the database, collected at login."""
        friends = [(number, SENDERS + other) for number in range(SENDERS) for other in range(AWAY)]
        with self._mesh("offline", SENDERS + AWAY, friends) as (mesh, progress):
            figures = _run(workloads.offline(mesh, SENDERS, workloads.WINDOW, AWAY, messages, progress))
        return {"messages": messages, "senders": SENDERS, "away": AWAY} | figures

    def idle(self, connections: int) -> Result:
        """Measure idle connections: connects a second, and memory of each."""
        with self._mesh("idle", connections + WARM_UP_CONNECTIONS, []) as (mesh, progress):
            return {"connections": connections} | _run(
                workloads.idle(mesh, WARM_UP_CONNECTIONS, connections, IDLE_S, progress)
            )

    def soak(self, minutes: float, rate: float) -> Result:
        """Measure memory of every process under load: its growth from the first minute to the end."""
        with self._mesh("soak", 2 * SOAK_PAIRS, _pairs(SOAK_PAIRS)) as (mesh, progress):
            sampler = MemorySampler(mesh, SOAK_SAMPLE_S)
            figures = _run(workloads.paced(mesh, 2 * SOAK_PAIRS, rate, 0.0, 60 * minutes, progress, sampler))
        return {"minutes": minutes, "rate_asked": rate} | figures | memory_growth(sampler.rss_kib)

    def scale(self, seconds: float, repetitions: int, tell: Callable[[str], None]) -> dict[str, list[Result]]:
        """Measure CPU time of a message for several numbers of users, connectors and transfers.

        Every case is measured `repetitions` times, in turns, so that slow minutes of the machine do not hit one case.
        """
        cases: dict[str, list[tuple[int, int, int, float]]] = {
            "users": [(users, 2, 1, SCALE_RATE) for users in USERS],
            "connectors": [(100, count, 1, LINK_RATE * count) for count in CONNECTORS],
            "transfers": [(100, 2, count, LINK_RATE * 2 * count) for count in TRANSFERS],
        }
        seen: dict[str, list[list[Result]]] = {name: [[] for _ in each] for name, each in cases.items()}
        for _ in range(repetitions):
            for name, each in cases.items():
                for at, (users, connectors, transfers, rate) in enumerate(each):
                    tell(f"scale: {users:,} users, {connectors} connectors, {transfers} transfers")
                    measure = partial(self.latency, users, rate, seconds, connectors, transfers)
                    seen[name][at].append(with_retry(measure, tell))
        return {name: [medians(results) for results in each] for name, each in seen.items()}

    @contextmanager
    def _mesh(
        self, title: str, users: int, friends: Sequence[tuple[int, int]], connectors: int = 2, transfers: int = 1
    ) -> Iterator[tuple[MeasuredMesh, ReportProgress]]:
        topology = local_mesh.topology(connectors, transfers, curve=self._curve)
        with Progress(console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(f"{title}: starting a mesh", total=1.0)

            def progress(what: str, done: float) -> None:
                bar.update(task, description=f"{title}: {what}", completed=done)

            with measured_mesh(topology, users, friends, self._transport) as mesh:
                yield mesh, progress


def with_retry(measure: Callable[[], Result], tell: Callable[[str], None]) -> Result:
    """Measure; try once more after an invalid measurement, since other load on the machine passes."""
    try:
        return measure()
    except InvalidMeasurement as error:
        tell(f"once more, because {error}")
        return measure()


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return uvloop.run(work)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(number, count + number) for number in range(count)]


def medians(results: Sequence[Result]) -> Result:
    """Return the median of every number in repeated results; the first value where it is no number."""
    merged: Result = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        if isinstance(value, dict):
            merged[name] = medians(values)
        else:
            merged[name] = median(values) if isinstance(value, int | float) else value
    return merged


def memory_growth(rss_kib: Sequence[tuple[float, dict[str, int]]]) -> Result:
    """Return memory at the end over memory after the first minute: of all processes together, and of each."""
    first, last = at_a_minute(rss_kib), rss_kib[-1][1]
    return {
        "rss_kib": [[at, kib] for at, kib in rss_kib],
        "growth": round(sum(last.values()) / sum(first.values()), 4),
        "growth_by": {name: round(last[name] / first[name], 4) for name in last},
    }


def at_a_minute(rss_kib: Sequence[tuple[float, dict[str, int]]]) -> dict[str, int]:
    """Return the first sample that is at least 60 s old; the last one in a shorter run."""
    return next((kib for at, kib in rss_kib if at >= 60.0), rss_kib[-1][1])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through points (x, y); 0 where all x are equal."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
