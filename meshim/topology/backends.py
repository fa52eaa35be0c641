"""Checks of the URLs of backends."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from meshim.topology.finding import Finding
from meshim.topology.structs import Topology


def urls(topology: Topology) -> Iterator[Finding]:
    backends = topology.backends
    forms = {
        "redis": (backends.redis, ("redis", "rediss"), "redis://HOST:PORT/0"),
        "nats": (backends.nats, ("nats", "tls"), "nats://HOST:PORT"),
        "sql": (
            backends.sql,
            ("mysql+pymysql", "sqlite"),
            "mysql+pymysql://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:///FILE",
        ),
    }
    for name, (url, schemes, form) in forms.items():
        if url != "embedded" and not _is_backend(url, schemes):  # without the URL: it may hold a password
            yield Finding(f"$.backends.{name}", f"This is neither `embedded` nor a URL like {form}")


def _is_backend(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in schemes:
        return False
    if parts.scheme == "sqlite":  # SQLite in memory would be another database in each process
        return not parts.netloc and len(parts.path) > 1 and parts.path != "/:memory:"
    if parts.scheme == "mysql+pymysql" and len(parts.path) < 2:
        return False
    return bool(parts.hostname) and port != 0


def monitor(topology: Topology) -> Iterator[Finding]:
    url = topology.durability.nats_monitor
    if url is not None and not _is_backend(url, ("http", "https")):
        yield Finding("$.durability.nats_monitor", "This is no URL like http://HOST:8222")
