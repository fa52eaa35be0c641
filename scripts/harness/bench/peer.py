"""meshim as a peer of the harness that measures messaging servers on the same work (the module `common`).

The mesh is one process tree, `meshim up` in the foreground on embedded backends, so that the CPU of every process
counts: connectors, transfers, writer, REST, Valkey, NATS.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from meshim import topology as topologies
from meshim.stores.ports import Lease
from scripts.harness.clients.connections import Dialer, Transport
from scripts.harness.clients.minimal import MinimalClient
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.seed_database import SeededUser, seed_database
from scripts.harness.mesh.users import living_connectors

START_S = 60.0


class PeerClient:
    """The client interface of the harness, `send(to, mid)` and `close()`, on a minimal client."""

    def __init__(self, common: Any, client: MinimalClient, user: int, load: Any, mode: str) -> None:
        self._common = common
        self._client = client
        self._user = user
        self._load = load
        self._mids: dict[tuple[tuple[int, ...], int], int] = {}
        client.on_message = self._message
        if mode in ("im", "accept"):
            client.on_settled = self._settled

    def send(self, to: int, mid: int) -> None:
        """Send message `mid` to the user with the number `to`."""
        user = SeededUser.of(to).user
        seq = self._client.send(user, self._common.body(mid, self._user))
        self._mids[(1, user, 0), seq] = mid

    def _settled(self, to: tuple[int, ...], seq: int, status: int) -> None:
        mid = self._mids.pop((to, seq), None)
        if mid is not None:  # receipts have none
            self._load.confirmed(mid)

    def _message(self, body: bytes, _sender: int) -> None:
        self._load.received(int(body[:10]))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class MeshimPeer:
    """The server interface of the harness: `name`, `workloads`, `version`, `start`, `connect`."""

    workloads = ("w1", "w2", "w3")

    def __init__(self, common: Any, connectors: int, transfers: int, *, curve: bool, transport: Transport) -> None:
        self.name = "meshim-websocket" if transport == "websocket" else "meshim" if curve else "meshim-plain"
        self._transport: Transport = transport
        self._common = common
        self._topology = local_mesh.topology(connectors, transfers, curve=curve)
        self._database = Path(tempfile.mkdtemp(prefix="meshim-bench-"))
        self._seeded = False
        self._connectors: Sequence[Lease] = ()
        self._dialer: Dialer | None = None

    def remove_files(self) -> None:
        """Remove the seeded database."""
        shutil.rmtree(self._database)

    def version(self) -> str:
        """Return name and version of the server."""
        return f"meshim {metadata.version('meshim')}"

    def start(self, tmp: str) -> Any:
        """Start a fresh mesh in an empty folder, with all users seeded; return the `common.Server`."""
        folder = Path(tmp)
        if not self._seeded:
            seed_database(self._database, self._common.USERS, self._friends())
            self._seeded = True
        shutil.copytree(self._database, folder / "data")
        file = folder / "topology.yaml"
        file.write_text(topologies.dump(self._topology))
        state = folder / "data" / "run" / "state.json"
        command = [sys.executable, "-m", "meshim", "up", "-t", str(file), "--data", str(folder / "data")]
        server = self._common.Server(command, tmp, 0, ready=str(state), timeout=START_S)
        try:
            self._until_running(server, state)
            self._connectors = asyncio.run(living_connectors(folder / "data"))
        except BaseException:
            server.stop()
            raise
        return server

    def _friends(self) -> list[tuple[int, int]]:
        count = self._common.PAIRS
        pairs = [(number, number + count) for number in range(count)]
        away = range(2 * count, 2 * count + self._common.OFFLINE)
        return pairs + [(number, each) for number in range(count) for each in away]

    def _until_running(self, server: Any, state: Path) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and server.proc.poll() is None:
            mesh = json.loads(state.read_bytes())
            if mesh["state"] == "running" and mesh["api"]:
                return
            time.sleep(0.05)
        raise RuntimeError(f"the mesh did not start, see {server.tmp}/server.log")

    async def connect(self, srv: Any, user: int, load: Any, mode: str) -> PeerClient:
        """Connect a client; the recipients of W1 are on another connector than its senders."""
        if self._dialer is None:
            self._dialer = Dialer(self._transport)
        pairs = self._common.PAIRS
        index = user // pairs if user < 2 * pairs else user
        minimal = MinimalClient(self._dialer, self._connectors[index % len(self._connectors)], SeededUser.of(user))
        client = PeerClient(self._common, minimal, user, load, mode)
        await minimal.welcomed
        return client
