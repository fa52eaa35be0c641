#!/usr/bin/env python3
"""Kill, stop and restart the processes of a mesh under load, and have the judge check every promise.

`docs/chaos.md` describes the faults and the answer, and what to do after a run that failed.

Exit code 0: every promise was kept, and the run was long enough to show it.  1: a promise was broken, or the run proves
nothing (`why` has the reasons).  2: it could not be done.
"""

import argparse
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.client.connection import Transport
from meshim.errors import MeshimError
from scripts.harness.chaos import fault_plan
from scripts.harness.chaos.minimal_clients import transports_here
from scripts.harness.chaos.mutations import MUTATIONS
from scripts.harness.chaos.run import Run
from scripts.harness.chaos.settings import (
    Settings,
    check_mutation,
    check_transport,
    chosen_kinds,
    new_folder,
    topology_of,
)
from scripts.harness.chaos.users import TRANSPORTS
from scripts.harness.mesh.options import interrupt_on_sigterm, natural, number, whole

SECONDS = number(5, 86_400, "a number of seconds, 5 to 86400")
BACKENDS = ("redis", "nats", "sql")
RATE = number(1, 100_000, "a number of messages a second, 1 to 100000")
RATE_DEFAULT, RATE_HOSTILE = 600.0, 150.0
"""Latencies that tell something need idle cores: the hostile clients get them."""
USERS = whole(7, 10_000, "a whole number of people, 7 to 10000")  # each user has three friends on either side


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    try:
        answer = _run(options)
    except MeshimError as error:
        print(f"chaos: {error.sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    _show(answer, as_json=options.json)
    return 0 if answer["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break a mesh under load, and judge what it did.")
    parser.add_argument(
        "--seconds", type=SECONDS, default=120.0, metavar="N", help="how long there is traffic: 5 at least (120)"
    )
    parser.add_argument("--seed", type=natural, metavar="S", help="of faults and traffic; random by default")
    parser.add_argument("--only", metavar="KIND,…", help=f"only these faults: {', '.join(fault_plan.KINDS)}")
    parser.add_argument(
        "--break", dest="mutation", metavar="NAME", help=f"take a mechanism out first: {', '.join(MUTATIONS)}"
    )
    parser.add_argument(
        "--rate", type=RATE, metavar="N", help=f"messages a second ({RATE_DEFAULT:g}; --hostile: {RATE_HOSTILE:g})"
    )
    parser.add_argument("--users", type=USERS, default=60, metavar="N", help="how many people: 7 at least (60)")
    parser.add_argument(
        "--transport", choices=TRANSPORTS, default="mixed", help="of the devices: half of them by each (mixed)"
    )
    parser.add_argument(
        "--minimal", type=natural, default=6, metavar="N", help="how many users have a client of examples/ (6)"
    )
    parser.add_argument(
        "--hostile", action="store_true", help="one client of five is hostile, from a third of the time on"
    )
    parser.add_argument(
        "--topology", type=Path, metavar="FILE", help="of the mesh (3 connectors, 3 transfers, 2 writers)"
    )
    for backend in BACKENDS:
        parser.add_argument(f"--{backend}", metavar="URL", help=f"use this {backend}, without faults")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="new folder for what the run leaves behind")
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> dict[str, Any]:
    urls = {name: url for name in BACKENDS if (url := getattr(options, name)) is not None}
    mesh = topology_of(options.topology, urls)
    kinds = chosen_kinds(options.only, mesh)
    check_mutation(options.mutation)
    check_transport(options.transport, mesh)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    folder = new_folder(options.folder)
    settings = Settings(
        seed=seed, seconds=options.seconds, rate=_rate(options), users=options.users, kinds=kinds,
        everything=options.only is None, mutation=options.mutation or "",
        transport=options.transport, minimal=_minimal(options.transport, min(options.minimal, options.users)),
        hostile=options.hostile,
    )  # fmt: skip
    print(f"chaos: seed {seed}, all files of the run are in {folder}", file=sys.stderr, flush=True)
    return Run(settings, mesh, folder).run()


def _rate(options: argparse.Namespace) -> float:
    if options.rate is not None:
        return float(options.rate)
    return RATE_HOSTILE if options.hostile else RATE_DEFAULT


def _minimal(transport: str, count: int) -> tuple[Transport, ...]:
    """Return the transports of the minimal clients that can run here, and say which cannot."""
    transports = transports_here(transport, count)
    if count and transport != "zeromq" and "websocket" not in transports:
        sentence = "no JavaScript client runs: `scripts/setup test` installs Node and what it imports"
        print(f"chaos: {sentence}", file=sys.stderr, flush=True)
    return transports


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    for name, value in answer.items():
        if name not in ("kills", "why", "violations", "counters"):
            print(f"{name:>13} {value}")
    for violation in answer["violations"]:
        print("line {line}: {kind}: message {message!r}: {sentence}.".format_map(violation))
    for reason in answer["why"]:
        print(f"NOT good: {reason}.")


if __name__ == "__main__":
    sys.exit(main())
