"""A mesh for one script: real processes in a folder of their own, on free ports, ended with the script."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from meshim import topology as topologies
from meshim.deploy.embedded import free_port
from meshim.deploy.pdeathsig import die_with_parent
from meshim.errors import MeshimError
from meshim.topology import (
    ConnectorListener,
    Durability,
    Limits,
    Listener,
    OnWeak,
    RestListener,
    Security,
    Topology,
    WebSocketListener,
    Worker,
)

MESHIM = (sys.executable, "-m", "meshim")

_ROOT = Path(__file__).resolve().parents[3]
_ANY_PORT = "http://127.0.0.1:0"
_LIMITS = Limits(
    login_failures_per_address=1_000_000,
    friend_requests_incoming=5_000,
    friend_requests_outgoing=5_000,
    friend_requests_per_hour=1_000_000,
    name_lookups_per_minute=1_000_000,
)
"""The users of a script come all at once, from one address."""
_START_S = 60.0
_END_S = 30.0


def topology(
    connectors: int = 2, transfers: int = 2, writers: int = 1, weak: OnWeak = "refuse", *, curve: bool = True
) -> Topology:
    """Return a topology on embedded backends; all its addresses are chosen at the start."""
    return Topology(
        connectors=tuple(ConnectorListener(f"c{n}", websocket=WebSocketListener()) for n in range(1, connectors + 1)),
        transfers=tuple(Listener(f"t{n}") for n in range(1, transfers + 1)),
        writers=tuple(Worker(f"w{n}") for n in range(1, writers + 1)),
        rest=(RestListener("r1", _ANY_PORT),),
        durability=Durability(weak=weak),
        security=Security(curve=curve),
        limits=_LIMITS,
    )


def prepared(mesh: Topology, backends: Mapping[str, str]) -> Topology:
    """Return the topology with these URLs of backends, and with fixed ports for REST.

    Clients know one address of REST; a port that is chosen at each start would change when the process restarts.
    """
    rest = tuple(
        msgspec.structs.replace(each, bind=f"http://127.0.0.1:{free_port()}") if each.bind == _ANY_PORT else each
        for each in mesh.rest
    )
    urls = msgspec.structs.replace(mesh.backends, **backends)
    return msgspec.structs.replace(mesh, rest=rest, backends=urls)


@contextmanager
def running(folder: Path, mesh: Topology, program: Sequence[str] = MESHIM) -> Iterator[str]:
    """Run a mesh with its files in `folder`; yield the URL of its REST service.

    `program` is the command line of meshim.  Raises MeshimError with the last line of `meshim up` when the mesh does
    not start.
    """
    file, log = folder / "topology.yaml", folder / "mesh.log"
    file.write_text(topologies.dump(mesh))
    command = [*program, "up", "-t", str(file), "--data", str(folder / "data")]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C must reach the script alone, which then ends the mesh.
        process = subprocess.Popen(
            die_with_parent(command),
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield _until_ready(process, folder / "data" / "run" / "state.json", log)
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its children die with it (die_with_parent)
            process.wait()


def _until_ready(process: "subprocess.Popen[bytes]", state: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        mesh = json.loads(state.read_bytes()) if state.exists() else {}
        if mesh.get("state") == "running" and mesh.get("api"):
            return str(mesh["api"])
        time.sleep(0.05)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    raise MeshimError(f"The mesh did not start: {lines[-1].removeprefix('meshim: ').rstrip('.')}.")
