"""The three phases of a run with hostile clients, and what comes of them.

::

    0          a third             two thirds                 the end
    ├── quiet ──┼── hostile clients ─┼── hostile clients, faults ─┤

The latency of the honest clients is compared between the first and the second: in neither is a fault injected.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.harness.chaos.hostile.latency import Latencies, Percentiles
from scripts.harness.chaos.hostile.process import HostileProcess, hostile_count, seed_hostile
from scripts.harness.chaos.hostile.world import Tally
from scripts.harness.chaos.settings import Settings
from scripts.harness.chaos.users import ClientsConfig
from scripts.harness.mesh.process_stats import role_pids

RATIO_MAX = 2.0
P99_FLOOR_MS = 10.0
"""Ratios are against at least this: a smaller p99 is noise of a machine that clients, mesh and attackers share."""
MESSAGES_MIN = 1_000
"""In each phase; of fewer, a hundredth is a handful."""


class HostilePhases:
    """What a run has to do for its hostile clients, in the order of the methods."""

    def __init__(self, settings: Settings, data: Path) -> None:
        self.latencies = Latencies()
        """Gets every record of the history."""
        self._settings = settings
        self._data = data
        self._process: HostileProcess | None = None
        self._tallies: dict[str, Tally] = {}
        self._ended: list[str] = []
        self._phases = (0.0, 0.0, 0.0)

    async def seed(self, config: ClientsConfig) -> None:
        """Register the hostile users, and start their process, which waits.  Raises MeshimError, as the next ones."""
        count = hostile_count(len(config.devices))
        # The applications of minimal clients do not tell by the name of a sender who is hostile.
        minimal = {device.user for device in config.devices if device.name == "minimal"}
        honest = [user for user in config.friends if user not in minimal]
        hostile = await seed_hostile(config.api, config.password, self._data, count, honest, self._settings.transport)
        self._process = HostileProcess(hostile)
        await self._process.start()

    async def begin(self, began: float, clock: Callable[[], float], note: Callable[..., None]) -> float:
        """Wait for a third of the time, attack for another; return when the faults may begin."""
        assert self._process is not None
        third_s = self._settings.seconds / 3
        self._phases = (began, began + third_s, began + 2 * third_s)
        await asyncio.sleep(self._phases[1] - clock())
        pids = role_pids(self._data)
        note(hostile=True)
        self._process.begin()
        await asyncio.sleep(self._phases[2] - clock())
        self._ended = [name for name, pid in pids.items() if role_pids(self._data).get(name) != pid]
        return self._phases[2]

    def check(self) -> None:
        """Raise MeshimError when the process has ended by itself."""
        assert self._process is not None
        self._process.check()

    async def stop(self) -> None:
        """End the attacks."""
        assert self._process is not None
        self._tallies = await self._process.stop()

    async def end(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.end()

    # ---------------------------------------------------------------- afterwards

    def _percentiles(self) -> tuple[Percentiles, Percentiles]:
        began, attacked, faults = self._phases
        return self.latencies.between(began, attacked), self.latencies.between(attacked, faults)

    def report(self) -> dict[str, Any]:
        """Return the fields of the answer."""
        quiet, hostile = self._percentiles()
        ends: Counter[str] = Counter()
        for tally in self._tallies.values():
            ends.update(tally.ends)
        return {
            "hostile": {kind: tally.clients for kind, tally in self._tallies.items()},
            "hostile_frames": {kind: tally.frames for kind, tally in self._tallies.items()},
            "hostile_ends": dict(ends.most_common()),
            "latency_quiet": quiet._asdict(),
            "latency_hostile": hostile._asdict(),
            "p99_ratio": self._ratio(),
        }

    def _ratio(self) -> float:
        quiet, hostile = self._percentiles()
        return round(hostile.p99_ms / max(quiet.p99_ms, P99_FLOOR_MS), 2)

    def broken(self) -> Iterator[str]:
        """Yield a sentence for each broken promise."""
        if self._ratio() > RATIO_MAX:
            quiet, hostile = self._percentiles()
            yield (
                f"the p99 of honest clients is {hostile.p99_ms:g} ms among hostile ones: more than {RATIO_MAX:g} times "
                f"{max(quiet.p99_ms, P99_FLOOR_MS):g} ms"
            )
        for name in self._ended:
            yield f"{name} ended under the hostile clients"

    def inconclusive(self) -> Iterator[str]:
        """Yield the reasons why the run proves nothing about hostile clients."""
        for latency in self._percentiles():
            if latency.messages < MESSAGES_MIN:
                yield f"only {latency.messages} latencies were measured in a phase, {MESSAGES_MIN} are wanted"
        if idle := [kind for kind, tally in self._tallies.items() if not tally.frames]:
            yield f"these hostile clients sent nothing: {', '.join(idle)}"
