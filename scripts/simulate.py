#!/usr/bin/env python3
"""Simulate whole meshes, a seed each, with everything that can go wrong, and judge whether the promises were kept.

The real cores, shells and lease keepers run on one virtual clock against models of Redis, the log and the database
(`tests/sim/`).  A seed that fails is printed with its faults, and replays exactly: `simulate.py --from S --seeds 1`.

Exit code 0: every promise was kept.  1: at least one was broken.  2: it could not be done.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim import compiled
from scripts.harness.mesh.options import count, interrupt_on_sigterm, natural

# Before what is compiled is imported; each process of the pool comes here too.
if "--compiled" in sys.argv and not compiled.use():
    print("simulate: nothing is compiled here: run `scripts/compile.py` first", file=sys.stderr)
    sys.exit(2)

from tests.sim.breaks import BREAKS, broken
from tests.sim.simulation import Outcome, run

MESSAGES_LEAST = 200
FAULTS_LEAST = 3
"""A run with less proves nothing."""
SHOWN_MOST = 10
"""Failing seeds that are kept for the answer."""


class NotPlayedError(Exception):
    """A bug of the simulation, not of what it simulates."""


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    began = time.monotonic()
    tally = Tally(options)
    try:
        for outcome in _outcomes(options):
            tally.add(outcome)
            if options.break_ and outcome.failed:
                break
    except KeyboardInterrupt:
        return 130
    except NotPlayedError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    finally:
        tally.close()
    answer = tally.answer(time.monotonic() - began)
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        _show(answer)
    return 0 if answer["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Simulate meshes in which everything goes wrong, and judge them."
    )
    parser.add_argument("--seeds", type=count, default=100, metavar="N", help="how many runs (100)")
    parser.add_argument("--from", type=natural, default=1, dest="first", metavar="S", help="the first seed (1)")
    parser.add_argument("--break", choices=sorted(BREAKS), dest="break_", metavar="NAME",
                        help=f"take a mechanism away; ends when that is noticed: {', '.join(BREAKS)}")  # fmt: skip
    parser.add_argument(
        "--jobs",
        type=count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes: all cores, four times as many at most",
    )
    parser.add_argument("--compiled", action="store_true", help="with compiled cores instead of plain Python")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    options = parser.parse_args()
    if options.compiled and options.break_:
        parser.error("--break cannot take anything away from compiled cores: leave out --compiled")
    return options


def _leave_ctrl_c() -> None:
    """To the process that gives out the work, and ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    seeds = range(options.first, options.first + options.seeds)
    work = partial(_one, options.break_)
    jobs = min(options.jobs, options.seeds, 4 * (os.cpu_count() or 1))
    if jobs == 1:
        yield from map(work, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _leave_ctrl_c, maxtasksperchild=200) as pool:
        yield from pool.imap(work, seeds)


def _one(name: str | None, seed: int) -> Outcome:
    with broken(name):
        try:
            return run(seed)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not the verdict of the judge
            traceback.print_exc()
            raise NotPlayedError(f"seed {seed} could not be played, the simulation itself failed: {error!r}") from None


class Tally:
    """Adds up, and shows on a terminal how far it is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._done = 0
        self._failing: list[Outcome] = []
        self._failures = 0
        self._failing_seeds: list[int] = []
        self._races: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._counters: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._thin: list[int] = []
        self._digest = 0
        self._terminal = sys.stderr.isatty()

    def add(self, outcome: Outcome) -> None:
        self._done += 1
        self._races.update(outcome.races)
        self._faults.update(outcome.faults)
        self._counters.update(outcome.counters)
        totals = {
            name: getattr(outcome, name) for name in ("messages", "shown", "via_store", "gaps", "cpu_s", "virtual_s")
        }
        self._totals.update(totals)
        self._digest = zlib.crc32(outcome.digest.to_bytes(4, "big"), self._digest)
        if outcome.messages < MESSAGES_LEAST or sum(outcome.faults.values()) < FAULTS_LEAST:
            self._thin.append(outcome.seed)
        if outcome.failed:
            self._failures += 1
            self._failing_seeds.append(outcome.seed)
            if len(self._failing) < SHOWN_MOST:
                self._failing.append(outcome)
        if self._terminal:
            print(f"\r{self._done} of {self._options.seeds} seeds, {self._failures} failed", end="", file=sys.stderr)

    def close(self) -> None:
        if self._terminal:
            print(file=sys.stderr)

    def answer(self, seconds: float) -> dict[str, Any]:
        never = sorted(race for race, times in self._races.items() if not times)
        whole = self._done >= 1000 and self._options.break_ is None
        return {
            "ok": not self._failures and not (whole and (never or self._thin)),
            "seeds": self._done,
            "from": self._options.first,
            "break": self._options.break_,
            "failures": self._failures,
            "failing_seeds": self._failing_seeds,
            "failing": [
                {"seed": o.seed, "violations": o.violations, "schedule": o.schedule.splitlines()} for o in self._failing
            ],
            "messages": self._totals["messages"],
            "shown": self._totals["shown"],
            "via_store": self._totals["via_store"],
            "gaps": self._totals["gaps"],
            "races": dict(sorted(self._races.items(), key=lambda race: int(race[0][1:]))),
            "never_met": never,
            "too_little": self._thin,
            "faults": dict(sorted(self._faults.items())),
            "counters": {name: count for name, count in sorted(self._counters.items()) if count},
            "digest": f"{self._digest:08x}",
            "virtual_s": round(self._totals["virtual_s"]),
            "cpu_s": round(self._totals["cpu_s"], 1),
            "seconds": round(seconds, 1),
        }


def _show(answer: dict[str, Any]) -> None:
    print(
        f"{answer['seeds']} seeds from {answer['from']}: {answer['failures']} failed. "
        f"{answer['messages']} messages, {answer['shown']} times shown, {answer['via_store']} by way of the store, "
        f"{sum(answer['faults'].values())} faults, in {answer['seconds']} s."
    )
    print("Races met: " + ", ".join(f"{race} {times}" for race, times in answer["races"].items()))
    for failing in answer["failing"]:
        again = f"--from {failing['seed']} --seeds 1" + (f" --break {answer['break']}" if answer["break"] else "")
        print(f"\nSeed {failing['seed']} (simulate.py {again}):")
        for line in (*failing["violations"], *failing["schedule"]):
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
