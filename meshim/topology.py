"""The configuration of a mesh: frozen structs that refuse what they do not know.

One file describes the whole mesh; every process reads the same one and finds its own
part by name.  Units stand in the names: `_s` seconds, `_bytes` bytes, the rest are counts.

`load` reads and checks a file, `dump` writes one that `load` reads back.  Whatever is wrong
is one sentence, a `TopologyError`, with the path of the field as in `$.timers.sweep_s`.
"""

from collections.abc import Hashable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec
import yaml

from meshim.errors import TopologyError
from meshim.protocol.flush_queue import TICK_S
from meshim.protocol.timeouts import CLIENT_GIVE_UP_S, CLIENT_RESEND_S
from meshim.protocol.token_bucket import FRAME_ITEMS_MAX, SUBMIT_BYTES
from meshim.wire.bounds import ITEMS_MAX, LIST_MAX

Seconds = Annotated[float, msgspec.Meta(gt=0, le=10 * 366 * 86400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]
"""Part of file names, Redis keys and NATS subjects."""


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the topology."""


class Backends(Frozen, frozen=True, forbid_unknown_fields=True):
    """Where outside state lives: a URL, or `embedded` for one that `meshim up` starts itself."""

    redis: str = "embedded"
    nats: str = "embedded"
    sql: str = "embedded"


class Security(Frozen, frozen=True, forbid_unknown_fields=True):
    """What is encrypted, and with which keys."""

    curve: bool = True
    """CURVE on every ZeroMQ link.  Off is for measurements on one machine only."""
    master_key_file: str | None = None
    """File that wraps relation keys at rest (mode 0600); `master.key` in the data folder when null."""


OnWeak: TypeAlias = Literal["refuse", "warn"]
"""To store nothing where it would not be safe, or to say so and go on."""


class Durability(Frozen, frozen=True, forbid_unknown_fields=True):
    """What becomes of messages where a loss of power could take what was reported as `sent` (docs/adr/0013).

    The settings of the log and the database that decide it are read from the servers as they run.
    """

    weak: OnWeak = "refuse"
    """When a setting says that what is acknowledged is not yet synced."""
    unknown: OnWeak = "warn"
    """When a setting cannot be read."""
    nats_monitor: str | None = None
    """Where the monitoring of NATS answers, as http://HOST:8222: only there it tells how it syncs."""


class Listener(Frozen, frozen=True, forbid_unknown_fields=True):
    """A process that others connect to."""

    name: Name
    bind: str = "tcp://127.0.0.1:0"
    """Port 0 takes a free one; the lease in Redis tells the others which."""
    advertise: str | None = None
    """What others should connect to, where it is not what was bound (NAT, 0.0.0.0)."""


class Worker(Frozen, frozen=True, forbid_unknown_fields=True):
    """A process that nobody connects to."""

    name: Name


class RestListener(Frozen, frozen=True, forbid_unknown_fields=True):
    """The REST service."""

    name: Name
    bind: str = "http://127.0.0.1:8100"


class Timers(Frozen, frozen=True, forbid_unknown_fields=True):
    """Every timer of the mesh, in seconds.  `load` checks their relations.

    Those of clients alone are the same in every mesh: `protocol/timeouts.py`.
    """

    # leases: how soon the dead are noticed
    lease_renew_s: Seconds = 1.0
    lease_ttl_s: Seconds = 3.0
    partition_lease_s: Seconds = 6.0
    queue_lease_s: Seconds = 10.0
    # links between processes of the mesh
    mesh_heartbeat_s: Seconds = 0.5
    mesh_silence_s: Seconds = 1.5
    mesh_resend_s: Seconds = 0.5
    # links between clients and connectors
    client_heartbeat_s: Seconds = 10.0
    client_silence_s: Seconds = 25.0
    link_resend_s: Seconds = 1.0
    ack_delay_s: Seconds = 0.05
    """How long an acknowledgement waits for a frame that carries it, unless half the window waits for it."""
    outcome_delay_s: Seconds = 0.003
    """How long what became of a message waits on its way back for others, once some have just left."""
    delivery_timeout_s: Seconds = 2.5
    publish_timeout_s: Seconds = 2.0
    # caches and sweeps
    presence_cache_ttl_s: Seconds = 30.0
    presence_silence_s: Seconds = 5.0
    """How long what is cached is believed while Redis does not say, as it does every second, that this is all."""
    relation_ttl_s: Seconds = 60.0
    sweep_s: Seconds = 30.0
    # life of things in the store
    token_ttl_s: Seconds = 30 * 86400.0
    device_idle_s: Seconds = 90 * 86400.0
    read_retention_s: Seconds = 7 * 86400.0
    # process
    shutdown_s: Seconds = 5.0


class Limits(Frozen, frozen=True, forbid_unknown_fields=True):
    """Every bound of the mesh."""

    body_bytes: Count = 65_536
    """Of one envelope's body, as it travels (encrypted)."""
    frame_bytes: Count = 262_144
    """Of one frame between client and connector."""
    bundle_bytes: Count = 524_288
    """Of one bundle between processes, and of one record of the log."""
    bundle_items: Count = 512
    client_window: Count = 32
    """Unacknowledged frames on a client link, each way."""
    mesh_window: Count = 64
    """Unacknowledged bundles on a mesh link, each way."""
    link_queue: Count = 65_536
    """Envelopes that may wait for room in the window of a mesh link."""
    link_bytes: Count = 33_554_432
    """The same in bytes."""
    session_queue: Count = 1_024
    """Envelopes that may wait for one device in its connector."""
    session_rate: Count = 2_000
    """Messages that one device may submit in a second; those above 2 KiB count as several."""
    sessions: Count = 9_000
    """Connected devices of one connector (a connection needs two file descriptors at times)."""
    devices_per_user: Count = 10
    relations_per_user: Count = 5_000
    sync_page_rows: Count = 256
    sync_page_bytes: Count = 1_048_576
    presence_cache: Count = 200_000
    partitions: Count = 4
    """Fixed share of recipients in the log.  Never change it on a mesh with data."""
    log_bytes: Count = 4_294_967_296
    """Of one partition; when it is full senders are told to wait."""
    writer_records: Count = 256
    """Log records in one transaction."""
    db_threads: Count = 4
    publishes: Count = 64
    """Publishes to the log under way in one transfer."""


class Topology(Frozen, frozen=True, forbid_unknown_fields=True):
    """The whole mesh."""

    connectors: tuple[Listener, ...]
    transfers: tuple[Listener, ...]
    writers: tuple[Worker, ...]
    rest: tuple[RestListener, ...]
    namespace: Name = "meshim"
    """First part of every Redis key, NATS subject and stream name."""
    backends: Backends = Backends()
    durability: Durability = Durability()
    security: Security = Security()
    timers: Timers = Timers()
    limits: Limits = Limits()


def default() -> Topology:
    """The mesh of the repository's `topology.yaml`: one host, embedded backends."""
    return Topology(
        connectors=(Listener("c1"), Listener("c2")),
        transfers=(Listener("t1"), Listener("t2")),
        writers=(Worker("w1"),),
        rest=(RestListener("r1"),),
    )


def load(path: Path) -> Topology:
    """Return the checked topology of a file; raise `TopologyError` when it is missing, or wrong anywhere."""
    try:
        with path.open(encoding="utf-8") as file:
            written = yaml.load(file, _Loader)  # noqa: S506  (a safe loader)
        if written is None:
            raise TopologyError("It is empty: a topology names connectors, transfers, writers and rest services.")
        topology = msgspec.convert(written, Topology)
        check(topology)
    except FileNotFoundError:
        raise TopologyError(f"{path} does not exist: name a topology file.") from None
    except OSError as error:
        raise TopologyError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise TopologyError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    except msgspec.ValidationError as error:
        where = "" if "`$" in str(error) else " - at `$`"  # msgspec leaves out the path of the root
        raise TopologyError(f"{path}: {error}{where}.") from error
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error
    return topology


def dump(topology: Topology) -> str:
    """The topology as YAML, every default written out."""
    return msgspec.yaml.encode(topology).decode()


def check(topology: Topology) -> None:
    """Raise `TopologyError` where values do not fit together.  `load` does this; so does who makes one by hand."""
    for sentence in (
        *_processes(topology),
        *_backends(topology.backends),
        *_monitor(topology.durability.nats_monitor),
        *_relations(topology),
    ):
        raise TopologyError(sentence)


# What a topology has to satisfy beyond its types: each function yields one sentence for each thing that is wrong.

_ENVELOPE_OVERHEAD_BYTES = 4_096
"""More than stamp, envelope fields and framing ever add to a body."""
_BUNDLE_MAX_BYTES = 900 * 1024
"""NATS takes 1 MiB at most, and a log record has its own header."""
_DETECTION_MAX_S = 5.0
"""Within it a dead process must be noticed: lease and silence together."""
_PRESENCE_SPEAKS_S = 3.0
"""Redis is asked every second, and has two for its answer."""


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
            try:
                address = _address(member.bind, "http" if isinstance(member, RestListener) else "tcp")
            except ValueError as reason:
                yield f"{member.bind!r} is not an address to bind: {reason} - at `{path}.bind`."
                continue
            if address in binds:
                yield f"The address {member.bind!r} is taken by `{binds[address]}` - at `{path}.bind`."
            if address[1] != 0:
                binds[address] = path
            if isinstance(member, Listener):
                yield from _advertise(member, address, path)


def _groups(topology: Topology) -> dict[str, tuple[Listener | Worker | RestListener, ...]]:
    return {
        "connectors": topology.connectors,
        "transfers": topology.transfers,
        "writers": topology.writers,
        "rest": topology.rest,
    }


def _advertise(listener: Listener, bound: tuple[str, int], path: str) -> Iterator[str]:
    if listener.advertise is None:
        if _is_wildcard(bound[0]):
            yield f"Nobody can connect to {listener.bind!r}: say in `advertise` what others connect to - at `{path}`."
        return
    try:
        host, port = _address(listener.advertise, "tcp")
        if port == 0:
            raise ValueError("its port is 0")
        if _is_wildcard(host):
            raise ValueError("it is no address of one host")
    except ValueError as reason:
        yield f"Nobody can connect to {listener.advertise!r}: {reason} - at `{path}.advertise`."


def _address(url: str, scheme: str) -> tuple[str, int]:
    """Host and port of SCHEME://HOST:PORT; raise ValueError with the reason when it is anything else."""
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


def _is_wildcard(host: str) -> bool:
    if host == "*":
        return True
    try:
        return ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def _backends(backends: Backends) -> Iterator[str]:
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
        if url != "embedded" and not _is_backend(url, schemes):  # it may hold a password, so it is not repeated
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


def _monitor(url: str | None) -> Iterator[str]:
    if url is not None and not _is_backend(url, ("http", "https")):
        yield "This is no URL like http://HOST:8222 - at `$.durability.nats_monitor`."


def _relations(topology: Topology) -> Iterator[str]:
    timers, limits = topology.timers, topology.limits
    below = (  # factor times the first is less than the second, or else
        (2, "lease_renew_s", "lease_ttl_s", "one lost renewal ends a lease"),
        (1, "lease_ttl_s", "partition_lease_s", "a partition changes hands before its writer counts as dead"),
        (2, "mesh_heartbeat_s", "mesh_silence_s", "one lost heartbeat cuts a link"),
        (10, "outcome_delay_s", "mesh_resend_s", "senders wait longer for what became of a message than it takes"),
        (1, "mesh_resend_s", "delivery_timeout_s", "a bundle is given up before it was sent again"),
        (1, "link_resend_s", "delivery_timeout_s", "a frame is given up before it was sent again"),
        (2, "client_heartbeat_s", "client_silence_s", "one lost heartbeat cuts a client"),
    )
    for factor, low, high, otherwise in below:
        low_s, high_s = getattr(timers, low), getattr(timers, high)
        if factor * low_s >= high_s:
            times = {1: "Its value of", 2: "Twice", 10: "Ten times"}[factor]
            yield f"{times} {low_s:g} s must be less than {high} ({high_s:g} s), or {otherwise} - at `$.timers.{low}`."
    for low, still in (("delivery_timeout_s", "delivering"), ("publish_timeout_s", "storing")):
        low_s = getattr(timers, low)
        if low_s >= CLIENT_RESEND_S:
            yield (
                f"Its value of {low_s:g} s must be less than what every client waits ({CLIENT_RESEND_S:g} s), "
                f"or clients resend what the mesh is still {still} - at `$.timers.{low}`."
            )
    acknowledged_s = timers.ack_delay_s + TICK_S
    for resend in ("mesh_resend_s", "link_resend_s"):
        resend_s = getattr(timers, resend)
        if acknowledged_s >= resend_s:
            yield (
                f"An acknowledgement may take {acknowledged_s:g} s, it and the {TICK_S:g} s between two looks at the "
                f"clock; that must be less than {resend} ({resend_s:g} s), or frames are sent twice "
                "- at `$.timers.ack_delay_s`."
            )
    detection_s = timers.lease_ttl_s + timers.mesh_silence_s
    if detection_s >= _DETECTION_MAX_S:
        yield (
            f"Together with mesh_silence_s it is {detection_s:g} s and must be less than {_DETECTION_MAX_S:g} s, "
            "or a dead process is noticed too late - at `$.timers.lease_ttl_s`."
        )
    if timers.presence_silence_s <= _PRESENCE_SPEAKS_S:
        yield (
            f"Its value of {timers.presence_silence_s:g} s must be more than {_PRESENCE_SPEAKS_S:g} s, as so much may "
            "pass between two answers of Redis - at `$.timers.presence_silence_s`."
        )
    largest = max(FRAME_ITEMS_MAX, limits.frame_bytes // SUBMIT_BYTES)
    paid_s = largest / limits.session_rate
    if paid_s >= CLIENT_GIVE_UP_S / 2:
        yield (
            f"At {limits.session_rate} a second the largest frame, which counts as {largest} messages, is acknowledged "
            f"after {paid_s:g} s; it must be less than {CLIENT_GIVE_UP_S / 2:g} s, half of what every client waits "
            "before it gives its link up: raise the rate - at `$.limits.session_rate`."
        )
    at_most = (  # the first, and what travels with it, fits into the second
        ("body_bytes", _ENVELOPE_OVERHEAD_BYTES, "frame_bytes", limits.frame_bytes),
        ("frame_bytes", 0, "bundle_bytes", limits.bundle_bytes),
        ("bundle_bytes", 0, "what NATS takes", _BUNDLE_MAX_BYTES),
        ("bundle_bytes", 0, "log_bytes", limits.log_bytes),
        ("body_bytes", _ENVELOPE_OVERHEAD_BYTES, "sync_page_bytes", limits.sync_page_bytes),
        ("bundle_items", 0, "link_queue", limits.link_queue),
        ("bundle_bytes", 0, "link_bytes", limits.link_bytes),
        ("client_window", 0, "session_queue", limits.session_queue),
        ("client_window", 0, "what an acknowledgement can list", LIST_MAX),
        ("mesh_window", 0, "what an acknowledgement can list", LIST_MAX),
        ("devices_per_user", 0, "half of what an outcome can list", LIST_MAX // 2),
        ("bundle_items", 0, "what decodes", ITEMS_MAX),
    )
    for low, extra, high, most in at_most:
        if getattr(limits, low) + extra > most:
            plus = f" + {extra}" if extra else ""
            yield f"{getattr(limits, low)}{plus} must be at most {high} ({most}) - at `$.limits.{low}`."


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
    """YAML without tags, which refuses a key that is given twice instead of forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.value in keys[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping
