#!/usr/bin/env python3
"""Run hostile and heavy clients against a real mesh: is memory bounded, and do other clients notice?

Exit code 0: every bound held.  1: at least one was broken.  2: it could not be done.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.errors import MeshimError
from scripts.harness.abuse import storm
from scripts.harness.abuse.run import run_all
from scripts.harness.abuse.scenarios import GROUPS
from scripts.harness.mesh.options import count, interrupt_on_sigterm, raise_open_files

STORM = "storm"
FILES = 20_000
"""Descriptors: 5,000 connections take two each in the client, and one or two in the connector."""


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    raise_open_files(FILES)
    try:
        with tempfile.TemporaryDirectory(prefix="meshim-bounds-") as folder:
            chosen = [each for name in options.groups for each in GROUPS.get(name, ())]
            chosen = [each for each in chosen if options.transport in each.transports]
            results = run_all(Path(folder), chosen, options.transport)
            if STORM in options.groups:
                results.append(storm.run(options.clients, options.transport))
    except MeshimError as error:
        print(f"bounds: {error.sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    ok = not any(result["broken"] for result in results)
    if options.json:
        print(json.dumps({"ok": ok, "scenarios": results}, indent=2))
    else:
        _show(results)
    return 0 if ok else 1


def _options() -> argparse.Namespace:
    groups = [f"  {name:<12} {', '.join(each.name for each in GROUPS[name])}" for name in GROUPS]
    groups.append(f"  {STORM:<12} all connectors are killed and come back on other ports: a minute or two")
    parser = argparse.ArgumentParser(
        description="Hostile and heavy clients against a real mesh.",
        epilog="\n".join(["the scenarios of each name (half a minute a scenario):", *groups]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*GROUPS, STORM, "all"]
    parser.add_argument(
        "groups", nargs="*", choices=names, default="all", metavar="NAME", help=f"{', '.join(names)} (all)"
    )
    parser.add_argument(
        "--transport", choices=["zeromq", "websocket"], default="zeromq",
        help="of all clients (zeromq); what only one of the two can do is left out for the other",
    )  # fmt: skip
    parser.add_argument(
        "--clients", type=count, default=storm.CLIENTS, metavar="N", help=f"of {STORM} ({storm.CLIENTS:,})"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    options = parser.parse_args()
    chosen = [options.groups] if isinstance(options.groups, str) else options.groups
    options.groups = [*GROUPS, STORM] if "all" in chosen else chosen
    return options


def _show(results: list[dict[str, Any]]) -> None:
    for result in results:
        print(f"{result['scenario']}: {'; '.join(result['broken']) or 'every bound held'}")
        if result["scenario"] == STORM:
            _show_storm(result)
            continue
        grown = ", ".join(f"{name} {mib}" for name, mib in result["grown_mib"].items() if mib >= 1)
        print(f"  memory grew by MiB: {grown or 'less than 1 each'}; descriptors left: {result['files_left']}")
        for phase in ("before", "during", "after"):
            latency = result[phase]
            print(
                f"  {phase:>6}: {latency['messages']} messages, p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"
            )
        counts = ", ".join(f"{name} {count}" for name, count in result["counts"].items())
        print(f"  attack: {counts}")


def _show_storm(result: dict[str, Any]) -> None:
    rows = (
        ("clients", f"{result['clients']:,}"),
        ("no connector", f"{result['outage_s']} s"),
        ("REST answers", f"{result['answers_per_s']:,} a second, all in {result['ask_s']} s"),
        ("connectors greet", f"{result['greetings_per_s']:,} a second, all in {result['greet_s']} s"),
        ("needed", f"{result['needed_s']} s"),
        ("half were back", f"{result['half_s']} s"),
        ("all were back", f"{result['all_s']} s, {result['ratio']} times what is needed"),
    )
    for name, figure in rows:
        print(f"  {name:<16} {figure}")
    for name in ("answers", "ends"):
        counts = ", ".join(f"{what} {number:,}" for what, number in sorted(result[name].items()))
        print(f"  {name:<16} {counts or 'none'}")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())
