#!/usr/bin/env python3
"""Replay chat logs through a mesh with the client library, and have the judge say whether it kept its promises.

Every nick of the logs becomes a user, every message that is addressed to another nick a message to
that user (`irclog.py` has the rule); whoever is quiet for ten minutes of the log goes offline.  The
mesh is started for the occasion, or is the one behind `--api`.  What happens is written to a
history (`docs/history.md`), which `check_history.py` judges in a process of its own.

Exit code 0: every promise was kept.  1: at least one was broken.  2: it could not be done.
"""

import argparse
import json
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.errors import MeshimError, UsageError
from scripts.harness.history.format import HistoryWriter
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.options import count, interrupt_on_sigterm, natural, number
from scripts.harness.replay.irclog import Action, count_addressed, plan
from scripts.harness.replay.run import ReplayRun

SPEEDUP = 1800.0
"""Half an hour of log a second."""

PLACES = 300
"""Nicks online at a time.  Each takes about ten file descriptors."""
FILES_PER_PLACE = 16


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    try:
        answer = _replay(options)
    except MeshimError as error:
        print(f"replay: {error.sentence}", file=sys.stderr)
        return 2
    except ExceptionGroup as group:  # of clients, many of which may have met the same
        first = _first(group)
        if not isinstance(first, MeshimError):
            raise
        print(f"replay: {first.sentence}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"replay: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    _show(answer, as_json=options.json)
    return 0 if answer["ok"] else 1


def _first(group: ExceptionGroup[Exception]) -> Exception:
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay chat logs through a mesh and judge what it did.")
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG", help="IRC logs; several are consecutive days")
    parser.add_argument(
        "--speedup",
        type=number(1e-9, 1e9, "a number above 0"),
        default=SPEEDUP,
        metavar="N",
        help="log time over time (1800)",
    )
    parser.add_argument("--api", metavar="URL", help="use the mesh that runs there, instead of one of its own")
    parser.add_argument("--history", type=Path, metavar="FILE", help="where to write the history")
    parser.add_argument("--seed", type=natural, metavar="S", help="makes names and message ids; random by default")
    parser.add_argument("--places", type=count, default=PLACES, metavar="N", help="users online at a time (300)")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    return parser.parse_args()


def _replay(options: argparse.Namespace) -> dict[str, Any]:
    logs = [path.read_bytes() for path in options.logs]
    steps = plan(logs)
    expected = sum(map(count_addressed, logs))
    assert expected == sum(step.action is Action.SEND for step in steps), "the plan and the plain count disagree"
    if expected == 0:
        raise UsageError("These logs have no message that is addressed to anybody: are they IRC logs?")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    places = _room_for(options.places)
    folder = Path(tempfile.mkdtemp(prefix="meshim-replay-"))
    history = options.history or folder / "history.jsonl"
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            facts = {"seed": seed, "speedup": options.speedup, "expected_sent": expected}
            writer = stack.enter_context(HistoryWriter(history, time.monotonic, "replay", **facts))
            api = options.api or stack.enter_context(local_mesh.running(folder, local_mesh.topology()))
            states = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
            report = ReplayRun(api, writer, Path(states), seed, places).run(steps, options.speedup)
        verdict = _judge(history)
    except BaseException:
        shutil.rmtree(folder)
        raise
    seconds = round(time.monotonic() - began, 1)
    if verdict["ok"]:  # otherwise somebody will want to look at what the mesh has left behind
        shutil.rmtree(folder / "data", ignore_errors=True)
    return {**verdict, "seconds": seconds, **report, "speedup": options.speedup, "seed": seed, "history": str(history)}


def _room_for(places: int) -> int:
    """Raise this process's limit of open files (our mesh inherits it); return for how many places it is enough."""
    wanted = places * FILES_PER_PLACE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, most // FILES_PER_PLACE)


def _judge(history: Path) -> dict[str, Any]:
    """Return the verdict of the judge, in a process of its own; raise MeshimError with its sentence if it has none."""
    judge = Path(__file__).with_name("check_history.py")
    done = subprocess.run([sys.executable, judge, history, "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise MeshimError(f"The judge failed: {done.stderr.strip()}")
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    for name, value in answer.items():
        print(f"{name:>13} {value}")


if __name__ == "__main__":
    sys.exit(main())
