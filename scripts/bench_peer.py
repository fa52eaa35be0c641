#!/usr/bin/env python3
"""Measure meshim beside its peers: the adapter for a harness that measures messaging servers on the same work.

The harness puts the module `common` on PYTHONPATH and runs this file like its own adapters.  CURVE is on unless
`--plain`, or clients come over WebSocket.
"""

import argparse
import sys
from pathlib import Path

import _venv  # noqa: F401  (the project's own Python from here on)

from scripts.harness.bench.peer import MeshimPeer
from scripts.harness.bench.peer_table import table
from scripts.harness.mesh.options import count, interrupt_on_sigterm

try:
    import common  # type: ignore[import-not-found]
except ModuleNotFoundError:
    common = None


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="meshim, for the harness that measures messaging servers.",
        epilog="The harness takes all other options.",
    )
    parser.add_argument("--plain", action="store_true", help="links without CURVE")
    parser.add_argument("--transport", choices=["zeromq", "websocket"], default="zeromq", help="of clients (zeromq)")
    parser.add_argument("--connectors", type=count, default=2, metavar="N", help="(2)")
    parser.add_argument("--transfers", type=count, default=1, metavar="N", help="(1)")
    parser.add_argument(
        "--beside", type=Path, metavar="FILE", help="measure nothing: print a table of the harness's results.jsonl"
    )
    options, sys.argv[1:] = parser.parse_known_args()
    interrupt_on_sigterm()
    if options.beside is not None:
        print(table(options.beside), end="")
        return
    if common is None:
        sys.exit("bench_peer: the harness is not on PYTHONPATH: have its run_all.sh run this, as EXTRA.")
    peer = MeshimPeer(
        common, options.connectors, options.transfers, curve=not options.plain, transport=options.transport
    )
    try:
        common.main(peer)
    finally:
        peer.remove_files()


if __name__ == "__main__":
    main()
