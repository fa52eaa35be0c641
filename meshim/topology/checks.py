"""Semantic validation of a topology.

Each function below yields one sentence for each thing that is wrong, with the path of the field.  Relations between
two timers, and between a limit and what holds it, are tables.
"""

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from meshim.errors import TopologyError
from meshim.protocol.flush_queue import TICK_S
from meshim.protocol.timeouts import CLIENT_GIVE_UP_S, CLIENT_RESEND_S
from meshim.protocol.token_bucket import FRAME_ITEMS_MAX, SUBMIT_BYTES
from meshim.topology.structs import ConnectorListener, Listener, RestListener, Topology, WebSocketListener, Worker
from meshim.wire.bounds import ITEMS_MAX, LIST_MAX
from meshim.wire.sizes import ENVELOPE_FIELDS_BYTES, RECORD_BYTES_MAX

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DETECTION_S_MAX = 5.0
"""A dead process must be noticed within it: lease and silence together."""
_SILENCE_S_MAX = ((1 << 31) - 1) // 1000
_PRESENCE_ANSWER_S_MAX = 3.0
"""Between two answers of Redis: it is asked every second and has two seconds for its answer."""


def check(topology: Topology) -> None:
    """Raise `TopologyError` for the first thing that is wrong.  `load` calls it; so should code that makes one."""
    for violations in _CHECKS:
        for sentence in violations(topology):
            raise TopologyError(sentence)


# ---------------------------------------------------------------- processes and backends


def _processes(topology: Topology) -> Iterator[str]:
    names: dict[str, str] = {}
    binds: dict[tuple[str, int], str] = {}
    for group, members in _groups(topology).items():
        if not members:
            yield f"A mesh needs at least one process here - at `$.{group}`."
        for index, member in enumerate(members):
            path = f"$.{group}[{index}]"
            if member.name in names:
                yield f"The name {member.name!r} is taken by `{names[member.name]}` - at `{path}.name`."
            names[member.name] = path
            if isinstance(member, Worker):
                continue
            yield from _binds(member, "http" if isinstance(member, RestListener) else "tcp", path, binds)
            if isinstance(member, ConnectorListener) and (websocket := member.websocket) is not None:
                scheme = "wss" if websocket.bind.startswith("wss:") else "ws"
                yield from _binds(websocket, scheme, f"{path}.websocket", binds)
                yield from _tls(websocket, scheme, f"{path}.websocket")


def _binds(
    listener: Listener | RestListener | WebSocketListener, scheme: str, path: str, binds: dict[tuple[str, int], str]
) -> Iterator[str]:
    try:
        address = _address(listener.bind, scheme)
    except ValueError as reason:
        yield f"{listener.bind!r} is not an address to bind: {reason} - at `{path}.bind`."
        return
    if address in binds:
        yield f"The address {listener.bind!r} is taken by `{binds[address]}` - at `{path}.bind`."
    if address[1] != 0:
        binds[address] = path
    if not isinstance(listener, RestListener):
        yield from _advertise(listener, address, path)


def _tls(websocket: WebSocketListener, scheme: str, path: str) -> Iterator[str]:
    for field in ("tls_certificate_file", "tls_key_file"):
        given = getattr(websocket, field) is not None
        if scheme == "wss" and not given:
            yield f"wss:// needs the file of a certificate and that of its key - at `{path}.{field}`."
        elif scheme == "ws" and given:
            yield f"ws:// has no TLS: bind to wss://, or leave this out - at `{path}.{field}`."


def _groups(topology: Topology) -> dict[str, tuple[Listener | Worker | RestListener, ...]]:
    return {
        "connectors": topology.connectors,
        "transfers": topology.transfers,
        "writers": topology.writers,
        "rest": topology.rest,
    }


def _advertise(listener: Listener | WebSocketListener, bound: tuple[str, int], path: str) -> Iterator[str]:
    if listener.advertise is None:
        if _is_wildcard(bound[0]):
            yield f"Nobody can connect to {listener.bind!r}: say in `advertise` what others connect to - at `{path}`."
        return
    try:
        if isinstance(listener, Listener):
            host, port = _address(listener.advertise, "tcp")
        else:
            host, port = _url(listener.advertise)
        if port == 0:
            raise ValueError("its port is 0")
        if _is_wildcard(host):
            raise ValueError("it is no address of one host")
    except ValueError as reason:
        yield f"Nobody can connect to {listener.advertise!r}: {reason} - at `{path}.advertise`."


def _shared_addresses(topology: Topology) -> Iterator[str]:
    """Connectors that show one key may advertise one address, that of a load balancer; without CURVE none has a key."""
    one_key = not topology.security.curve or topology.security.connector_key_file is not None
    advertised: dict[str, str] = {}
    for group, members in (("connectors", topology.connectors), ("transfers", topology.transfers)):
        for index, member in enumerate(members):
            if member.advertise is None:
                continue
            path = f"$.{group}[{index}]"
            first = advertised.setdefault(member.advertise, path)
            if first == path or (one_key and group == "connectors"):
                continue
            if group == "connectors":
                remedy = "give all connectors one key in `security.connector_key_file`, or each an address of its own"
            else:
                remedy = "a transfer needs an address of its own"
            yield f"{member.advertise!r} is advertised by `{first}` too: {remedy} - at `{path}.advertise`."


def _address(url: str, scheme: str) -> tuple[str, int]:
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


def _url(url: str) -> tuple[str, int]:
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


def _origins(topology: Topology) -> Iterator[str]:
    for index, origin in enumerate(topology.security.origins):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield (
                f"{origin!r} is no origin as browsers write it: SCHEME://HOST or SCHEME://HOST:PORT in lower case, "
                f"without a final slash; or `*` - at `$.security.origins[{index}]`."
            )


def _is_wildcard(host: str) -> bool:
    if host == "*":
        return True
    try:
        return ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def _backends(topology: Topology) -> Iterator[str]:
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
        if url != "embedded" and not _is_backend(
            url, schemes
        ):  # the sentence leaves out the URL: it may hold a password
            yield f"This is neither `embedded` nor a URL like {form} - at `$.backends.{name}`."


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


def _monitor(topology: Topology) -> Iterator[str]:
    url = topology.durability.nats_monitor
    if url is not None and not _is_backend(url, ("http", "https")):
        yield "This is no URL like http://HOST:8222 - at `$.durability.nats_monitor`."


# ---------------------------------------------------------------- timers


class _Below(NamedTuple):
    """`factor` times the timer `low` must be less than the timer `high`, or else."""

    factor: int
    low: str
    high: str
    otherwise: str


_BELOW = (
    _Below(2, "lease_renew_s", "lease_ttl_s", "one lost renewal ends a lease"),
    _Below(1, "lease_ttl_s", "partition_lease_s", "a partition changes hands before its writer counts as dead"),
    _Below(2, "mesh_heartbeat_s", "mesh_silence_s", "one lost heartbeat cuts a link"),
    _Below(50, "outcome_delay_s", "delivery_timeout_s", "senders wait longer for outcomes than deliveries take"),
    _Below(2, "client_heartbeat_s", "client_silence_s", "one lost heartbeat cuts a client"),
)
_TIMES = {1: "Its value of", 2: "Twice", 50: "Fifty times"}


def _timers_below(topology: Topology) -> Iterator[str]:
    for factor, low, high, otherwise in _BELOW:
        low_s, high_s = getattr(topology.timers, low), getattr(topology.timers, high)
        if factor * low_s >= high_s:
            yield (
                f"{_TIMES[factor]} {low_s:g} s must be less than {high} ({high_s:g} s), "
                f"or {otherwise} - at `$.timers.{low}`."
            )


def _client_timeouts(topology: Topology) -> Iterator[str]:
    for timer, still in (("delivery_timeout_s", "delivering"), ("publish_timeout_s", "storing")):
        value_s = getattr(topology.timers, timer)
        if value_s >= CLIENT_RESEND_S:
            yield (
                f"Its value of {value_s:g} s must be less than what every client waits ({CLIENT_RESEND_S:g} s), "
                f"or clients resend what the mesh is still {still} - at `$.timers.{timer}`."
            )


def _acknowledgements(topology: Topology) -> Iterator[str]:
    acknowledged_s, give_up_s = topology.timers.ack_delay_s + TICK_S, topology.timers.delivery_timeout_s
    if 2 * acknowledged_s >= give_up_s:
        yield (
            f"An acknowledgement may take {acknowledged_s:g} s, it and the {TICK_S:g} s between two looks at the "
            f"clock; twice that must be less than delivery_timeout_s ({give_up_s:g} s), or links end that only wait "
            "for it - at `$.timers.ack_delay_s`."
        )


def _silence(topology: Topology) -> Iterator[str]:
    silence_s, silence_max_s = topology.timers.client_silence_s, topology.timers.client_silence_max_s
    if silence_max_s < silence_s:
        yield (
            f"Its value of {silence_max_s:g} s must be at least client_silence_s ({silence_s:g} s), which every client "
            "is granted - at `$.timers.client_silence_max_s`."
        )
    if silence_max_s > _SILENCE_S_MAX:
        yield (
            f"Its value of {silence_max_s:g} s must be at most {_SILENCE_S_MAX} s, since Welcome names it in "
            "milliseconds of 31 bits - at `$.timers.client_silence_max_s`."
        )


def _detection(topology: Topology) -> Iterator[str]:
    detection_s = topology.timers.lease_ttl_s + topology.timers.mesh_silence_s
    if detection_s >= _DETECTION_S_MAX:
        yield (
            f"Together with mesh_silence_s it is {detection_s:g} s and must be less than {_DETECTION_S_MAX:g} s, "
            "or a dead process is noticed too late - at `$.timers.lease_ttl_s`."
        )


def _presence_silence(topology: Topology) -> Iterator[str]:
    silence_s = topology.timers.presence_silence_s
    if silence_s <= _PRESENCE_ANSWER_S_MAX:
        yield (
            f"Its value of {silence_s:g} s must be more than {_PRESENCE_ANSWER_S_MAX:g} s, as so much may "
            "pass between two answers of Redis - at `$.timers.presence_silence_s`."
        )


# ---------------------------------------------------------------- limits


def _rate(topology: Topology) -> Iterator[str]:
    rate = topology.limits.session_rate
    largest = max(FRAME_ITEMS_MAX, topology.limits.frame_bytes // SUBMIT_BYTES)
    paid_s = largest / rate
    if paid_s >= CLIENT_GIVE_UP_S / 2:
        yield (
            f"At {rate} a second the largest frame, which counts as {largest} messages, is acknowledged "
            f"after {paid_s:g} s; it must be less than {CLIENT_GIVE_UP_S / 2:g} s, half of what every client waits "
            "before it gives its link up: raise the rate - at `$.limits.session_rate`."
        )


class _Fits(NamedTuple):
    """The limit `low` plus `overhead` must be at most the limit `high`, or the number behind its description."""

    low: str
    overhead: int
    high: str
    most: int | None = None


_FITS = (
    _Fits("body_bytes", ENVELOPE_FIELDS_BYTES, "frame_bytes"),
    _Fits("frame_bytes", 0, "bundle_bytes"),
    _Fits("bundle_bytes", 0, "what NATS takes", RECORD_BYTES_MAX),
    _Fits("bundle_bytes", 0, "log_bytes"),
    _Fits("body_bytes", ENVELOPE_FIELDS_BYTES, "sync_page_bytes"),
    _Fits("bundle_items", 0, "link_queue"),
    _Fits("bundle_bytes", 0, "link_bytes"),
    _Fits("client_window", 0, "session_queue"),
    _Fits("bundle_bytes", 0, "queue_bytes"),
    _Fits("client_window", 0, "what an acknowledgement can list", LIST_MAX),
    _Fits("mesh_window", 0, "what an acknowledgement can list", LIST_MAX),
    _Fits("devices_per_user", 0, "half of what an outcome can list", LIST_MAX // 2),
    _Fits("bundle_items", 0, "what decodes", ITEMS_MAX),
)


def _fits(topology: Topology) -> Iterator[str]:
    limits = topology.limits
    for low, overhead, high, number in _FITS:
        value, most = getattr(limits, low), getattr(limits, high) if number is None else number
        if value + overhead > most:
            plus = f" + {overhead}" if overhead else ""
            yield f"{value}{plus} must be at most {high} ({most}) - at `$.limits.{low}`."


_CHECKS: tuple[Callable[[Topology], Iterator[str]], ...] = (
    _processes,
    _shared_addresses,
    _origins,
    _backends,
    _monitor,
    _timers_below,
    _client_timeouts,
    _acknowledgements,
    _silence,
    _detection,
    _presence_silence,
    _rate,
    _fits,
)
