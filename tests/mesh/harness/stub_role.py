"""A process in place of a role for the tests of the supervisor.  Its name says how it behaves.

Run as `stub_role.py ROLE NAME TOPOLOGY`.  A name that begins with `never-ready` prints no ready line.  `fails` prints a
reason and exits before it is ready.  `stubborn` ignores SIGTERM.  Any other waits for SIGTERM and writes to NAME.ended,
next to the topology, whether Redis and NATS were still reachable.
"""

import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from meshim import topology


def main(role: str, name: str, file: Path) -> None:
    if name.startswith("fails"):
        sys.exit("meshim: The answer is not 42.")
    # With the signal blocked only sigwait can take it: a SIGTERM before that is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if not name.startswith("never-ready"):
        print("ready", role, name, f"stub://{name}", flush=True)
    while signal.sigwait({signal.SIGTERM}) and name.startswith("stubborn"):
        pass
    backends = topology.load(file).backends
    reachable = [_listens(url) for url in (backends.redis, backends.nats)]
    file.with_name(f"{name}.ended").write_text(f"{all(reachable)}")


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
