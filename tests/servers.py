"""Backends as processes for the tests: start one, wait until it answers, end it by its pid."""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pymysql

from meshim.deploy.embedded import Embedded, Nats, free_port
from meshim.deploy.pdeathsig import die_with_parent
from meshim.deploy.probe import probe
from meshim.errors import BackendUnavailable

_START_S = 60.0
_END_S = 20.0


@dataclass(frozen=True)
class Server:
    """A running backend; tests use `pid` to stop or kill it."""

    url: str
    pid: int


@contextmanager
def running(backend: Embedded) -> Iterator[Server]:
    """Run a backend during the block; raise AssertionError with its output if it does not start."""
    deadline = time.monotonic() + _START_S
    while True:
        with tempfile.TemporaryFile() as output:
            process = _spawn(backend.command(), output)
            try:
                url = _wait_until_it_answers(backend, process, deadline)
                if url is not None:
                    backend.keep_port()
                    yield Server(url, process.pid)
                    return
            finally:
                _end(process)
            output.seek(0)
            printed = output.read().decode(errors="replace")
        # Another process may have taken the port between our choice and the bind: then choose another.
        assert "in use" in printed, f"{backend.name} did not start:\n{printed[-4000:]}"


def _spawn(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(die_with_parent(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _wait_until_it_answers(backend: Embedded, process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """Return the URL once the backend answers, or None if its process ended or the deadline passed."""
    while process.poll() is None and time.monotonic() < deadline:
        url = backend.url(process.pid)
        if url is not None and _answers(url):
            return url
        time.sleep(0.02)
    return None


def _answers(url: str) -> bool:
    with ThreadPoolExecutor(1) as thread:  # this thread may have a running loop already
        try:
            thread.submit(asyncio.run, probe(url)).result()
        except BackendUnavailable:
            return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:  # stopped by a test, or stuck
        process.kill()
        process.wait()


class UnsyncedNats(Nats):
    """While `weak` is set, it acknowledges before it syncs (every two minutes, the default of nats-server)."""

    weak = True

    def command(self) -> list[str]:
        command = super().command()
        if self.weak:
            config = Path(command[-1])
            config.write_text(config.read_text().replace("sync_interval: always", ""))
        return command


class MariaDB:
    """mariadbd of this machine, with a data folder, socket and port of its own."""

    name = "mariadb"

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._socket = folder / "socket"
        self._port = 0
        self._user = ["--user=root"] if os.geteuid() == 0 else []  # mariadbd refuses to run as root without it

    def command(self) -> list[str]:
        server = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        assert server is not None, "mariadbd is missing: apt install mariadb-server"
        if not self._data.exists():
            self._install()
        self._port = free_port()
        return [
            server,
            "--no-defaults",
            *self._user,
            f"--datadir={self._data}",
            f"--socket={self._socket}",
            f"--port={self._port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-buffer-pool-size=64M",
            "--character-set-server=utf8mb4",
        ]

    def url(self, pid: int) -> str | None:
        with socket.socket(socket.AF_UNIX) as listening:  # PyMySQL leaks its socket when the connection is refused
            if listening.connect_ex(str(self._socket)) != 0:
                return None
        with self._administrator() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE USER IF NOT EXISTS meshim@'127.0.0.1' IDENTIFIED BY 'test'")
            cursor.execute("GRANT ALL ON *.* TO meshim@'127.0.0.1'")
        return f"mysql+pymysql://meshim:test@127.0.0.1:{self._port}"

    def keep_port(self) -> None:
        """Nothing to do: each start chooses a port."""

    def create(self, database: str) -> str:
        """Create an empty database; return its URL."""
        with self._administrator() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4")
        return f"mysql+pymysql://meshim:test@127.0.0.1:{self._port}/{database}"

    def _administrator(self) -> "pymysql.Connection[pymysql.cursors.Cursor]":
        return pymysql.connect(unix_socket=str(self._socket), user="root", autocommit=True)

    def _install(self) -> None:
        self._data.mkdir(parents=True)
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                *self._user,
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
