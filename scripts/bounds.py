#!/usr/bin/env python3
"""Hostile and heavy clients against a real mesh: is memory bounded, and do other people notice?

Each ordeal is one attack on the first connector, while two innocent people talk through it.  Measured are the highest
resident memory of every process, beyond what it had before, and how long the messages of the two took
before, during and after, as a ratio in the same run.

Exit code 0: every bound held.  1: at least one was broken.  2: it could not be done.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.errors import MeshimError
from scripts.harness.abuse.scenarios import GROUPS, Ordeal, endure, topology
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.options import end_politely

FILES = 20_000
"""Descriptors: 5,000 connections need two each in the client, and one or two in the connector."""


def main() -> int:
    options = _options()
    end_politely()
    _raise_files()
    ordeals = [each for name in options.ordeals for each in GROUPS[name]]
    try:
        with tempfile.TemporaryDirectory(prefix="meshim-bounds-") as folder:
            results = _run(Path(folder), ordeals)
    except MeshimError as error:
        print(f"bounds: {error.sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    ok = not any(result["broken"] for result in results)
    if options.json:
        print(json.dumps({"ok": ok, "ordeals": results}, indent=2))
    else:
        _show(results)
    return 0 if ok else 1


def _options() -> argparse.Namespace:
    groups = [f"  {name:<12} {', '.join(each.name for each in GROUPS[name])}" for name in GROUPS]
    parser = argparse.ArgumentParser(
        description="Hostile and heavy clients against a real mesh.",
        epilog="\n".join(["what each name is (half a minute an ordeal):", *groups]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*GROUPS, "all"]
    parser.add_argument(
        "ordeals", nargs="*", choices=names, default="all", metavar="NAME", help=f"{', '.join(names)} (all)"
    )
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON object")
    options = parser.parse_args()
    chosen = [options.ordeals] if isinstance(options.ordeals, str) else options.ordeals
    options.ordeals = list(GROUPS) if "all" in chosen else chosen
    return options


def _raise_files() -> None:
    """The mesh inherits the limit of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _run(folder: Path, ordeals: list[Ordeal]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for curve in (True, False):
        those = [ordeal for ordeal in ordeals if ordeal.curve is curve]
        if not those:
            continue
        place = folder / f"curve-{curve}"
        place.mkdir()
        with local_mesh.running(place, topology(curve=curve)):
            for ordeal in those:
                with _told(f"{ordeal.name} ({len(results) + 1} of {len(ordeals)})"):
                    results.append(asyncio.run(endure(place / "data", ordeal)))
    return results


@contextmanager
def _told(what: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"bounds: {what} ...", file=sys.stderr, flush=True)
    yield
    print(f"bounds: {what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _show(results: list[dict[str, Any]]) -> None:
    for result in results:
        print(f"{result['ordeal']}: {'; '.join(result['broken']) or 'every bound held'}")
        grown = ", ".join(f"{name} {mib}" for name, mib in result["grown_mib"].items() if mib >= 1)
        print(f"  memory grew by MiB: {grown or 'less than 1 each'}; descriptors left: {result['files_left']}")
        for phase in ("before", "during", "after"):
            latency = result[phase]
            print(
                f"  {phase:>6}: {latency['messages']} messages, p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"
            )
        counts = ", ".join(f"{name} {count}" for name, count in result["counts"].items())
        print(f"  attack: {counts}")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())
