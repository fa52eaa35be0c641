#!/usr/bin/env python3
"""meshim beside the peers: the adapter for the harness that measures messaging servers on the same work.

The harness gives the module `common` (on PYTHONPATH) and runs this file as it runs its own adapters; nothing else of
meshim knows it.  The mesh is one process tree, `meshim up` in the foreground on embedded backends, so that the CPU
of everything counts: connectors, transfers, writer, REST, Valkey, NATS.  CURVE is on unless `--plain`.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim import topology as topologies
from scripts.harness.clients.minimal import MinimalClient
from scripts.harness.clients.misbehaving import ZmqContext, context
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.options import count, interrupt_on_sigterm
from scripts.harness.mesh.seed_database import SeededUser, seed_database
from scripts.harness.mesh.users import living_connectors

try:
    import common  # type: ignore[import-not-found]
except ModuleNotFoundError:
    common = None

START_S = 60.0
BESIDE = """## Beside other servers

The same work for each, one after the other on one machine, every server fresh for each measurement, the load from one
process; medians. A message counts when its sender holds the receipt of the recipient. µs are CPU of all processes of
the server for each message. None of the others encrypts here, and none syncs to disk before it acknowledges; two of
them (zmq-proxy, nats) know no users or keep nothing. Offline: 20,000 messages stored for 100 absent users, then
collected by all of them at once. Idle: 2,000 connections.

| | online/s | µs each | at 1,000/s: median / 99 % ms | µs each | stored/s (µs) | collected/s (µs) | KiB | connects/s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


class Client:
    """One user, as the harness wants her: `send(to, mid)`, `close()`."""

    def __init__(self, light: MinimalClient, user: int, load: Any, mode: str) -> None:
        self._light = light
        self._user = user
        self._load = load
        self._mids: dict[tuple[tuple[int, ...], int], int] = {}
        light.on_message = self._message
        if mode in ("im", "accept"):
            light.on_settled = self._settled

    def send(self, to: int, mid: int) -> None:
        user = SeededUser.of(to).user
        seq = self._light.send(user, common.body(mid, self._user))
        self._mids[(1, user, 0), seq] = mid

    def _settled(self, to: tuple[int, ...], seq: int, how: int) -> None:
        mid = self._mids.pop((to, seq), None)
        if mid is not None:  # a receipt has none
            self._load.confirmed(mid)

    def _message(self, body: bytes, _sender: int) -> None:
        self._load.received(int(body[:10]))

    def close(self) -> None:
        self._light.close()


class Meshim:
    """What the harness calls a peer."""

    name = "meshim"
    workloads = ("w1", "w2", "w3")

    def __init__(self, options: argparse.Namespace) -> None:
        if options.plain:
            self.name = "meshim-plain"
        self._topology = local_mesh.topology(options.connectors, options.transfers, curve=not options.plain)
        self._database = Path(tempfile.mkdtemp(prefix="meshim-bench-"))
        self._seeded = False
        self._endpoints: list[tuple[str, bytes]] = []
        self._context: ZmqContext | None = None

    def end(self) -> None:
        shutil.rmtree(self._database)

    def version(self) -> str:
        return f"meshim {metadata.version('meshim')}"

    def start(self, tmp: str) -> Any:
        """A fresh mesh in an empty folder, with everybody registered and logged in once."""
        folder = Path(tmp)
        if not self._seeded:
            seed_database(self._database, common.USERS, self._friends())
            self._seeded = True
        shutil.copytree(self._database, folder / "data")
        file = folder / "topology.yaml"
        file.write_text(topologies.dump(self._topology))
        state = folder / "data" / "run" / "state.json"
        command = [sys.executable, "-m", "meshim", "up", "-t", str(file), "--data", str(folder / "data")]
        server = common.Server(command, tmp, 0, ready=str(state), timeout=START_S)
        try:
            self._until_running(server, state)
            leases = asyncio.run(living_connectors(folder / "data"))
        except BaseException:
            server.stop()
            raise
        self._endpoints = [(lease.endpoint, lease.key.encode()) for lease in leases]
        return server

    def _friends(self) -> list[tuple[int, int]]:
        pairs = [(number, number + common.PAIRS) for number in range(common.PAIRS)]
        away = range(2 * common.PAIRS, 2 * common.PAIRS + common.OFFLINE)
        return pairs + [(number, each) for number in range(common.PAIRS) for each in away]

    def _until_running(self, server: Any, state: Path) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and server.proc.poll() is None:
            mesh = json.loads(state.read_bytes())
            if mesh["state"] == "running" and mesh["api"]:
                return
            time.sleep(0.05)
        raise RuntimeError(f"the mesh did not start, see {server.tmp}/server.log")

    async def connect(self, srv: Any, user: int, load: Any, mode: str) -> Client:
        """A client of the protocol; recipients of W1 are on another connector than its senders."""
        if self._context is None:
            self._context = context()
        which = user // common.PAIRS if user < 2 * common.PAIRS else user
        endpoint, key = self._endpoints[which % len(self._endpoints)]
        light = MinimalClient(self._context, endpoint, key, SeededUser.of(user))
        client = Client(light, user, load, mode)
        await light.welcomed
        return client


def beside(results: Path) -> str:
    """A section for the page of performance: everybody in the harness's `results.jsonl`, by medians."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in results.read_text().splitlines():
        each = json.loads(line)
        if "error" not in each:
            seen.setdefault((each["peer"], each["work"]), []).append(each)

    def figure(peer: str, work: str, name: str, form: str) -> str:
        values = [each[name] for each in seen.get((peer, work), []) if each.get(name) is not None]
        return format(median(values), form) if values else "-"

    rows = []
    for peer in dict.fromkeys(peer for peer, _ in seen):
        cell = partial(figure, peer)
        rows.append(
            f"| {peer} | {cell('w1_closed', 'rate', ',.0f')} | {cell('w1_closed', 'srv_us', ',.1f')} "
            f"| {cell('w1_open', 'p50_ms', '.2f')} / {cell('w1_open', 'p99_ms', '.2f')} "
            f"| {cell('w1_open', 'srv_us', ',.0f')} "
            f"| {cell('w2_store', 'rate', ',.0f')} ({cell('w2_store', 'srv_us', ',.0f')}) "
            f"| {cell('w2_drain', 'rate', ',.0f')} ({cell('w2_drain', 'srv_us', ',.0f')}) "
            f"| {cell('w3_idle', 'kib_per_conn', '.1f')} | {cell('w3_idle', 'rate', ',.0f')} |"
        )
    return BESIDE + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="meshim, for the harness that measures messaging servers.",
        epilog="Everything else is the harness's.",
    )
    parser.add_argument("--plain", action="store_true", help="links without CURVE")
    parser.add_argument("--connectors", type=count, default=2, metavar="N", help="(2)")
    parser.add_argument("--transfers", type=count, default=1, metavar="N", help="(1)")
    parser.add_argument(
        "--beside", type=Path, metavar="FILE", help="measure nothing: print a table of the harness's results.jsonl"
    )
    options, sys.argv[1:] = parser.parse_known_args()
    interrupt_on_sigterm()
    if options.beside is not None:
        print(beside(options.beside), end="")
        return
    if common is None:
        sys.exit("bench_peer: the harness is not on PYTHONPATH: have its run_all.sh run this, as EXTRA.")
    peer = Meshim(options)
    try:
        common.main(peer)
    finally:
        peer.end()


if __name__ == "__main__":
    main()
