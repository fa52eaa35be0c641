"""Proxies with the configurations of the documents, on ports of this machine."""

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

_DOCS = Path(__file__).parents[3] / "docs"


def documented(page: str, language: str, replacements: Mapping[str, str]) -> str:
    """The only block of a page in this language, word for word but for these, each of which occurs once."""
    text: str
    [text] = re.findall(
        rf"^```{language}\n(.*?)^```$", (_DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for old, new in replacements.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextmanager
def running(folder: Path, package: str, arguments: list[str], port: int) -> Iterator[None]:
    """Run a proxy in the foreground, until it listens; raises AssertionError with its output when it does not start.

    The name of its program is that of its Debian package.
    """
    program = shutil.which(package, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert program is not None, f"{package} is missing: apt install {package}"
    log = folder / f"{package}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            die_with_parent([program, *arguments]), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
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
