"""A role that does nothing but behave, or misbehave, as its name says.

Run as `fake_role.py ROLE NAME TOPOLOGY`.  Names: `mute...` never gets ready; `broken...` says why
and ends before it is ready; `stubborn...` ignores SIGTERM; any other waits for it, and then notes in
NAME.ended next to the topology whether the backends were still there.
"""

import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from meshim import topology


def main(role: str, name: str, file: Path) -> None:
    if name.startswith("broken"):
        sys.exit("meshim: The answer is not 42.")
    # A signal is only taken by sigwait: it cannot come before that.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if not name.startswith("mute"):
        print("ready", role, name, f"fake://{name}", flush=True)
    while signal.sigwait({signal.SIGTERM}) and name.startswith("stubborn"):
        pass
    backends = topology.load(file).backends
    there = [_listens(url) for url in (backends.redis, backends.nats)]
    file.with_name(f"{name}.ended").write_text(f"{all(there)}")


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
