"""Runs the seeds of `simulate.py`, on several processes, each with one mechanism taken out if that is wanted."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from functools import partial

from tests.sim.breaks import broken
from tests.sim.simulation import Outcome, run

JOBS_PER_CORE_MAX = 4
SEEDS_PER_PROCESS_MAX = 200
"""A process of the pool is replaced after so many seeds, so that it returns its memory."""


class SimulationError(Exception):
    """An error of the simulation itself, not of the mesh that it simulates."""


def outcomes(seeds: range, mutation: str | None, jobs: int, transport: str) -> Iterator[Outcome]:
    """Yield the outcome of each seed, in order.  Raises SimulationError."""
    work = partial(_run, mutation, transport)
    jobs = min(jobs, len(seeds), JOBS_PER_CORE_MAX * (os.cpu_count() or 1))
    if jobs == 1:
        yield from map(work, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(
        jobs, _ignore_ctrl_c, maxtasksperchild=SEEDS_PER_PROCESS_MAX
    ) as pool:
        yield from pool.imap(work, seeds)


def _ignore_ctrl_c() -> None:
    """Leave Ctrl-C to the main process, which then ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(mutation: str | None, transport: str, seed: int) -> Outcome:
    with broken(mutation):
        try:
            return run(seed, transport=transport)
        except Exception as error:  # noqa: BLE001  # any error that is not a verdict of the judge
            traceback.print_exc()
            raise SimulationError(f"seed {seed} could not be run, the simulation itself failed: {error!r}") from None
