"""A bound socket for WebSocket connections, and its TLS."""

import errno
import socket
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from meshim.errors import UsageError

BACKLOG = 4_096
"""Of connections that TCP has made and nobody has accepted: a storm of clients comes at once."""
_KEEPALIVE_IDLE_S = 60
_KEEPALIVE_INTERVAL_S = 10
_KEEPALIVE_PROBES = 3


class Listening(NamedTuple):
    """A listening socket.  `url` has the real port; `tls` is None for plain connections."""

    socket: socket.socket
    url: str
    tls: ssl.SSLContext | None


def listen(bind: str, certificate_file: str | None = None, key_file: str | None = None) -> Listening:
    """Bind to `ws://HOST:PORT`, or `wss://HOST:PORT` with the files of a certificate and its key (PEM).

    Raises UsageError when a file is missing or is none, and when the address is in use or none of this machine.
    """
    parts = urlsplit(bind)
    host, port = parts.hostname or "", parts.port or 0
    tls = _server_tls(certificate_file or "", key_file or "") if parts.scheme == "wss" else None
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Accepted connections inherit all of these on Linux.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier run may be in TIME_WAIT
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{bind} is in use: stop what listens there, or choose another port (0 takes a free one)"
            ) from error
        raise UsageError(f"{bind} cannot be bound: {error.strerror or error}") from error
    shown = f"[{host}]" if ":" in host else host
    return Listening(listening, f"{parts.scheme}://{shown}:{listening.getsockname()[1]}", tls)


def _server_tls(certificate_file: str, key_file: str) -> ssl.SSLContext:
    for file in (certificate_file, key_file):
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without `password` OpenSSL would ask the terminal for that of an encrypted key.
        tls.load_cert_chain(certificate_file, key_file, password="")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{certificate_file} and {key_file} are no certificate and its key: both must be PEM, the key without a "
            "password"
        ) from error
    return tls
