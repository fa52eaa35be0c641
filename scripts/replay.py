#!/usr/bin/env python3
"""Replay chat logs through a mesh with the client library, and have the judge check every promise.

Every nick of the logs becomes a user, and every message that is addressed to another nick a message to that user
(`scripts/harness/replay/irclog.py` has the rule); a nick that is quiet for ten minutes of the log goes offline.  The
mesh is one for this run, or the one behind `--api`.  `check_history.py` judges the history (`docs/history.md`).

Exit code 0: every promise was kept.  1: at least one was broken.  2: it could not be done.
"""

import argparse
import json
import secrets
import sys
from pathlib import Path

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.errors import MeshimError
from scripts.harness.mesh.options import count, interrupt_on_sigterm, natural, number
from scripts.harness.replay.judged import Settings, replay

SPEEDUP = 1800.0
"""Half an hour of log a second."""
PLACES = 300
"""Nicks online at a time."""


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    settings = Settings(
        logs=options.logs, speedup=options.speedup, seed=seed, places=options.places, api=options.api,
        history=options.history,
    )  # fmt: skip
    try:
        answer = replay(settings)
    except MeshimError as error:
        return _failed(error.sentence)
    except ExceptionGroup as group:  # of many clients, often with the same error
        first = _first(group)
        if not isinstance(first, MeshimError):
            raise
        return _failed(first.sentence)
    except OSError as error:
        if error.filename is None:
            raise
        return _failed(f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(f"{name:>13} {value}" for name, value in answer.items()))
    return 0 if answer["ok"] else 1


def _failed(sentence: str) -> int:
    print(f"replay: {sentence}", file=sys.stderr)
    return 2


def _first(group: ExceptionGroup[Exception]) -> Exception:
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay chat logs through a mesh and judge what it did.")
    speedup = number(1e-9, 1e9, "a number above 0")
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG", help="IRC logs; several are consecutive days")
    parser.add_argument("--speedup", type=speedup, default=SPEEDUP, metavar="N", help="log time over time (1800)")
    parser.add_argument("--api", metavar="URL", help="use the mesh that runs there, instead of one of its own")
    parser.add_argument("--history", type=Path, metavar="FILE", help="where to write the history")
    parser.add_argument("--seed", type=natural, metavar="S", help="makes names and message ids; random by default")
    parser.add_argument("--places", type=count, default=PLACES, metavar="N", help="users online at a time (300)")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
