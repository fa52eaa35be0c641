#!/usr/bin/env python3
"""Simulate whole meshes with faults of every kind, one for each seed, and judge whether the promises were kept.

The real cores, shells and lease keepers run on one virtual clock against models of Redis, the log and the database
(`tests/sim/`).  A failing seed is printed with its faults and replays exactly: `simulate.py --from S --seeds 1`.

Exit code 0: every promise was kept.  1: at least one was broken.  2: it could not be done.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim import compiled
from scripts.harness.mesh.options import count, interrupt_on_sigterm, natural

# Before the import of any module that has a compiled form.  The processes of the pool import this file, too.
if "--compiled" in sys.argv and not compiled.use():
    print("simulate: nothing is compiled here: run `scripts/compile.py` first", file=sys.stderr)
    sys.exit(2)

from scripts.harness.simulation.seeds import SimulationError, outcomes
from scripts.harness.simulation.totals import Totals
from tests.sim.breaks import BREAKS
from tests.sim.mesh import MIXED, TRANSPORTS


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    began = time.monotonic()
    totals = Totals(options.first, options.break_, options.transport)
    seeds = range(options.first, options.first + options.seeds)
    try:
        for outcome in outcomes(seeds, options.break_, options.jobs, options.transport):
            totals.add(outcome)
            _show_progress(totals, options.seeds)
            if options.break_ and outcome.failed:
                break
    except KeyboardInterrupt:
        return 130
    except SimulationError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    answer = totals.answer(time.monotonic() - began)
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        _show(answer)
    return 0 if answer["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Simulate meshes with faults of every kind, and judge them."
    )
    parser.add_argument("--seeds", type=count, default=100, metavar="N", help="how many runs (100)")
    parser.add_argument("--from", type=natural, default=1, dest="first", metavar="S", help="the first seed (1)")
    parser.add_argument("--break", choices=sorted(BREAKS), dest="break_", metavar="NAME",
                        help=f"take a mechanism out; ends when the judge has noticed: {', '.join(BREAKS)}")  # fmt: skip
    parser.add_argument("--transport", choices=sorted(TRANSPORTS), default=MIXED,
                        help="by which devices connect: one of the two, or each by one of them (mixed)")  # fmt: skip
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", type=count, default=jobs, metavar="N",
                        help="processes: one for each core, four for each at most")  # fmt: skip
    parser.add_argument("--compiled", action="store_true", help="with compiled cores instead of plain Python")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    options = parser.parse_args()
    if options.compiled and options.break_:
        parser.error("--break cannot take anything away from compiled cores: leave out --compiled")
    return options


def _show_progress(totals: Totals, seeds: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{totals.seeds} of {seeds} seeds, {totals.failures} failed", end="", file=sys.stderr)


def _show(answer: dict[str, Any]) -> None:
    print(
        f"{answer['seeds']} seeds from {answer['from']}: {answer['failures']} failed. "
        f"{answer['messages']} messages, {answer['shown']} times shown, {answer['via_store']} by way of the store, "
        f"{sum(answer['faults'].values())} faults, in {answer['seconds']} s."
    )
    print("Races met: " + ", ".join(f"{race} {times}" for race, times in answer["races"].items()))
    for failing in answer["failing"]:
        again = f"--from {failing['seed']} --seeds 1 --transport {answer['transport']}"
        again += f" --break {answer['break']}" if answer["break"] else ""
        print(f"\nSeed {failing['seed']} (simulate.py {again}):")
        for line in (*failing["violations"], *failing["schedule"]):
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
