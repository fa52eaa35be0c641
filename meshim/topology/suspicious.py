"""Checks that warn: files that work and are probably not what their author wants."""

import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import msgspec

from meshim.addresses import is_loopback
from meshim.topology.addresses import binds, members
from meshim.topology.finding import Finding
from meshim.topology.structs import ConnectorListener, RestListener, Topology, WebSocketListener

_PASSWORDS = ("change-me", "changeme")
_HOSTS = ("example", "example.com", "example.net", "example.org")
"""Domains of examples (RFC 2606, 6761)."""


def placeholder_passwords(topology: Topology) -> Iterator[Finding]:
    for name, parts in _backend_urls(topology):
        if parts.password in _PASSWORDS:
            text = f"The password {parts.password!r} is that of the example: choose another one"
            yield Finding(f"$.backends.{name}", text)


def placeholder_hosts(topology: Topology) -> Iterator[Finding]:
    urls = {f"$.backends.{name}": parts.hostname for name, parts in _backend_urls(topology)}
    for bind in binds(topology):
        if not isinstance(bind.listener, RestListener) and bind.listener.advertise is not None:
            urls[f"{bind.path}.advertise"] = urlsplit(bind.listener.advertise).hostname
    for index, origin in enumerate(topology.security.origins):
        urls[f"$.security.origins[{index}]"] = urlsplit(origin).hostname
    for path, host in urls.items():
        if host is not None and any(host == example or host.endswith(f".{example}") for example in _HOSTS):
            yield Finding(path, f"{host!r} is the host of an example: write your own")


def connectors_on_loopback(topology: Topology) -> Iterator[Finding]:
    """REST gives clients elsewhere an address of theirs."""
    if all(_is_local(member) for _, member in members(topology) if isinstance(member, RestListener)):
        return
    for path, member in members(topology):
        if not isinstance(member, ConnectorListener):
            continue
        if _is_local(member) and (member.websocket is None or _is_local(member.websocket)):
            text = (
                f"Clients elsewhere reach REST and not this connector ({member.bind}): bind it to an address that they "
                "reach, or say in `advertise` what they connect to"
            )
            yield Finding(f"{path}.bind", text)


def readable_passwords(topology: Topology, file: Path) -> Iterator[Finding]:
    """Passwords in a file that every user of the host can read.  Raises OSError."""
    mode = stat.S_IMODE(file.stat().st_mode)
    names = [name for name, parts in _backend_urls(topology) if parts.password]
    if names and mode & stat.S_IROTH:
        text = f"The file holds a password, and every user of this host can read it (mode {mode:04o}): chmod 600 {file}"
        yield Finding(f"$.backends.{names[0]}", text)


def _is_local(listener: ConnectorListener | RestListener | WebSocketListener) -> bool:
    """Whether only this host can reach it."""
    advertised = None if isinstance(listener, RestListener) else listener.advertise
    return is_loopback(urlsplit(advertised or listener.bind).hostname or "")


def _backend_urls(topology: Topology) -> Iterator[tuple[str, SplitResult]]:
    for name, url in msgspec.structs.asdict(topology.backends).items():
        if url != "embedded":
            yield name, urlsplit(url)
