"""HAProxy with the configuration of docs/load-balancer.md, on ports of this machine."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from meshim.deploy.pdeathsig import die_with_parent
from tests.mesh.harness.real_mesh import DEADLINE_S

_PAGE = Path(__file__).parents[3] / "docs" / "load-balancer.md"


def documented(port: int, connectors: Mapping[str, int], timeout: str = "50s") -> str:
    """The configuration of the page, word for word but for addresses, idle timeouts and the number of connections."""
    text: str
    [text] = re.findall(r"^```haproxy\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    replacements = {
        "bind :5000\n": f"bind 127.0.0.1:{port}\n",
        "maxconn 20000\n": "maxconn 500\n",  # descriptors: not every machine of a test has as many
    }
    for side in ("client", "server"):
        replacements[f"timeout {side} 50s\n"] = f"timeout {side} {timeout}\n"
    for number, (name, its_port) in enumerate(connectors.items(), start=1):
        replacements[f"server {name} 10.0.0.1{number}:7100\n"] = f"server {name} 127.0.0.1:{its_port}\n"
    for old, new in replacements.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextmanager
def running(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """Run HAProxy during the block; raises AssertionError with its output when it does not start."""
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert program is not None, "haproxy is missing: apt install haproxy"
    file, log = folder / "haproxy.cfg", folder / "haproxy.log"
    file.write_text(configuration)
    with log.open("wb") as output:
        process = subprocess.Popen(
            die_with_parent([program, "-db", "-f", str(file)]),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not _listens(port):
            printed = log.read_text()
            assert process.poll() is None, printed
            assert time.monotonic() < deadline, printed
            time.sleep(0.02)
        yield
    finally:
        process.kill()  # asked to end politely, it would wait for its connections
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
