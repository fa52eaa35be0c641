"""Checks of names and addresses: what processes bind, what others connect to, which web pages may."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from meshim.topology.finding import Finding
from meshim.topology.structs import ConnectorListener, Listener, RestListener, Topology, WebSocketListener, Worker

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class Bind(NamedTuple):
    """One address that a process binds; its path is `{path}.bind`."""

    path: str
    listener: Listener | RestListener | WebSocketListener
    scheme: str

    def address(self) -> tuple[str, int]:
        """Return host and port.  Raises ValueError with the reason for any other text."""
        return address_of(self.listener.bind, self.scheme)


def members(topology: Topology) -> Iterator[tuple[str, Listener | Worker | RestListener]]:
    """Yield (path, member) for every process."""
    for group, processes in _groups(topology).items():
        for index, member in enumerate(processes):
            yield f"$.{group}[{index}]", member


def binds(topology: Topology) -> Iterator[Bind]:
    """Yield every address that a process binds."""
    for path, member in members(topology):
        if isinstance(member, Worker):
            continue
        yield Bind(path, member, "http" if isinstance(member, RestListener) else "tcp")
        if isinstance(member, ConnectorListener) and (websocket := member.websocket) is not None:
            scheme = "wss" if websocket.bind.startswith("wss:") else "ws"
            yield Bind(f"{path}.websocket", websocket, scheme)


def _groups(topology: Topology) -> dict[str, tuple[Listener | Worker | RestListener, ...]]:
    return {
        "connectors": topology.connectors,
        "transfers": topology.transfers,
        "writers": topology.writers,
        "rest": topology.rest,
    }


# ---------------------------------------------------------------- the checks


def empty_groups(topology: Topology) -> Iterator[Finding]:
    for group, processes in _groups(topology).items():
        if not processes:
            yield Finding(f"$.{group}", "A mesh needs at least one process here")


def names(topology: Topology) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for path, member in members(topology):
        if member.name in taken:
            yield Finding(f"{path}.name", f"The name {member.name!r} is taken by `{taken[member.name]}`")
        taken.setdefault(member.name, path)


def bound(topology: Topology) -> Iterator[Finding]:
    taken: dict[tuple[str, int], str] = {}
    for bind in binds(topology):
        path, text = f"{bind.path}.bind", bind.listener.bind
        try:
            address = bind.address()
        except ValueError as reason:
            yield Finding(path, f"{text!r} is not an address to bind: {reason}")
            continue
        if address in taken:
            yield Finding(path, f"The address {text!r} is taken by `{taken[address]}`")
        if address[1] != 0:
            taken.setdefault(address, bind.path)


def advertised(topology: Topology) -> Iterator[Finding]:
    for bind in binds(topology):
        if isinstance(bind.listener, RestListener):
            continue
        if bind.listener.advertise is None:
            yield from _unreachable_bind(bind)
            continue
        try:
            host, port = _advertised_address(bind.listener)
            if port == 0:
                raise ValueError("its port is 0")
            if is_wildcard(host):
                raise ValueError("it is no address of one host")
        except ValueError as reason:
            text = f"Nobody can connect to {bind.listener.advertise!r}: {reason}"
            yield Finding(f"{bind.path}.advertise", text)


def _unreachable_bind(bind: Bind) -> Iterator[Finding]:
    try:
        host, _ = bind.address()
    except ValueError:  # `bound` says it
        return
    if is_wildcard(host):
        text = f"Nobody can connect to {bind.listener.bind!r}: say in `advertise` what others connect to"
        yield Finding(bind.path, text)


def _advertised_address(listener: Listener | WebSocketListener) -> tuple[str, int]:
    url = listener.advertise or ""
    return address_of(url, "tcp") if isinstance(listener, Listener) else _websocket_address(url)


def shared_addresses(topology: Topology) -> Iterator[Finding]:
    """Connectors that show one key may advertise one address, that of a load balancer; without CURVE none has a key."""
    one_key = not topology.security.curve or topology.security.connector_key_file is not None
    first_of: dict[str, str] = {}
    for group, listeners in (("connectors", topology.connectors), ("transfers", topology.transfers)):
        for index, member in enumerate(listeners):
            if member.advertise is None:
                continue
            path = f"$.{group}[{index}]"
            first = first_of.setdefault(member.advertise, path)
            if first == path or (one_key and group == "connectors"):
                continue
            if group == "connectors":
                remedy = "give all connectors one key in `security.connector_key_file`, or each an address of its own"
            else:
                remedy = "a transfer needs an address of its own"
            yield Finding(f"{path}.advertise", f"{member.advertise!r} is advertised by `{first}` too: {remedy}")


def tls(topology: Topology) -> Iterator[Finding]:
    for bind in binds(topology):
        if not isinstance(bind.listener, WebSocketListener):
            continue
        for field in ("tls_certificate_file", "tls_key_file"):
            given = getattr(bind.listener, field) is not None
            if bind.scheme == "wss" and not given:
                yield Finding(f"{bind.path}.{field}", "wss:// needs the file of a certificate and that of its key")
            elif bind.scheme == "ws" and given:
                yield Finding(f"{bind.path}.{field}", "ws:// has no TLS: bind to wss://, or leave this out")


def origins(topology: Topology) -> Iterator[Finding]:
    for index, origin in enumerate(topology.security.origins):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            text = (
                f"{origin!r} is no origin as browsers write it: SCHEME://HOST or SCHEME://HOST:PORT in lower case, "
                "without a final slash; or `*`"
            )
            yield Finding(f"$.security.origins[{index}]", text)


# ---------------------------------------------------------------- addresses


def address_of(url: str, scheme: str) -> tuple[str, int]:
    """Return host and port of SCHEME://HOST:PORT.  Raises ValueError with the reason for any other text."""
    parts = urlsplit(url)
    if not url.startswith(f"{scheme}://"):
        raise ValueError(f"it does not begin with {scheme}://")
    if any(character.isspace() for character in url):  # `urlsplit` would drop some of them
        raise ValueError("there is a space in it")
    if not parts.hostname:
        raise ValueError("it has no host")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("there is more than host and port")
    if parts.port is None:
        raise ValueError("it has no port (0 takes a free one)")
    return parts.hostname, parts.port


def _websocket_address(url: str) -> tuple[str, int]:
    """Return host and port of a WebSocket URL, with a path or without.  Raises ValueError for any other text."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not url.startswith(f"{parts.scheme}://"):
        raise ValueError("it begins neither with ws:// nor with wss://")
    if any(character.isspace() for character in url):
        raise ValueError("there is a space in it")
    if not parts.hostname:
        raise ValueError("it has no host")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("there is more than host, port and path")
    return parts.hostname, {"ws": 80, "wss": 443}[parts.scheme] if parts.port is None else parts.port


def is_wildcard(host: str) -> bool:
    """Whether the host stands for all addresses of a machine."""
    if host == "*":
        return True
    try:
        return ip_address(host).is_unspecified
    except ValueError:  # a name
        return False
