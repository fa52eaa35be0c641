"""Totals of the outcomes of many seeds."""

import zlib
from collections import Counter
from typing import Any

from tests.sim.simulation import Outcome

MESSAGES_MIN = 200
FAULTS_MIN = 3
"""A run with fewer messages or faults proves nothing."""
EXAMPLES_MAX = 10
"""Failing seeds whose violations are kept for the answer."""
CONCLUSIVE_SEEDS = 1_000
"""A run of so many seeds has to meet every race, and may have no seed that proves nothing."""


class Totals:
    """Adds up the outcomes of seeds from `first` on; `mutation` is the name of `--break`."""

    def __init__(self, first: int, mutation: str | None, transport: str) -> None:
        self._first = first
        self._mutation = mutation
        self._transport = transport
        self._seeds = 0
        self._failing: list[Outcome] = []
        self._failing_seeds: list[int] = []
        self._races: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._counters: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._too_little: list[int] = []
        self._digest = 0

    @property
    def seeds(self) -> int:
        """The number of seeds so far."""
        return self._seeds

    @property
    def failures(self) -> int:
        """The number of failed seeds so far."""
        return len(self._failing_seeds)

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of a seed."""
        self._seeds += 1
        self._races.update(outcome.races)
        self._faults.update(outcome.faults)
        self._counters.update(outcome.counters)
        names = ("messages", "shown", "via_store", "gaps", "cpu_s", "virtual_s")
        self._sums.update({name: getattr(outcome, name) for name in names})
        self._digest = zlib.crc32(outcome.digest.to_bytes(4, "big"), self._digest)
        if outcome.messages < MESSAGES_MIN or sum(outcome.faults.values()) < FAULTS_MIN:
            self._too_little.append(outcome.seed)
        if outcome.failed:
            self._failing_seeds.append(outcome.seed)
            if len(self._failing) < EXAMPLES_MAX:
                self._failing.append(outcome)

    def answer(self, seconds: float) -> dict[str, Any]:
        """Return the answer of a run that took so many seconds, `ok` first."""
        never_met = sorted(race for race, times in self._races.items() if not times)
        conclusive = self._seeds >= CONCLUSIVE_SEEDS and self._mutation is None
        return {
            "ok": not self.failures and not (conclusive and (never_met or self._too_little)),
            "seeds": self._seeds,
            "from": self._first,
            "break": self._mutation,
            "transport": self._transport,
            "failures": self.failures,
            "failing_seeds": self._failing_seeds,
            "failing": [
                {"seed": each.seed, "violations": each.violations, "schedule": each.schedule.splitlines()}
                for each in self._failing
            ],
            **{name: self._sums[name] for name in ("messages", "shown", "via_store", "gaps")},
            "races": dict(sorted(self._races.items(), key=lambda race: int(race[0][1:]))),
            "never_met": never_met,
            "too_little": self._too_little,
            "faults": dict(sorted(self._faults.items())),
            "counters": {name: count for name, count in sorted(self._counters.items()) if count},
            "digest": f"{self._digest:08x}",
            "virtual_s": round(self._sums["virtual_s"]),
            "cpu_s": round(self._sums["cpu_s"], 1),
            "seconds": round(seconds, 1),
        }
