"""The configuration of a mesh: frozen structs that refuse what they do not know.

One file describes the whole mesh; every process reads the same one and finds its own
part by name.  Units stand in the names: `_s` seconds, `_bytes` bytes, the rest are counts.
"""

import msgspec


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


class Listener(Frozen, frozen=True, forbid_unknown_fields=True):
    """A process that others connect to."""

    name: str
    bind: str = "tcp://127.0.0.1:0"
    """Port 0 takes a free one; the lease in Redis tells the others which."""
    advertise: str | None = None
    """What others should connect to, where it is not what was bound (NAT, 0.0.0.0)."""


class Worker(Frozen, frozen=True, forbid_unknown_fields=True):
    """A process that nobody connects to."""

    name: str


class RestListener(Frozen, frozen=True, forbid_unknown_fields=True):
    """The REST service."""

    name: str
    bind: str = "http://127.0.0.1:8100"


class Timers(Frozen, frozen=True, forbid_unknown_fields=True):
    """Every timer of the mesh, in seconds.  `load` checks their relations."""

    # leases: how soon the dead are noticed
    lease_renew_s: float = 1.0
    lease_ttl_s: float = 3.0
    partition_lease_s: float = 6.0
    queue_lease_s: float = 10.0
    # links between processes of the mesh
    mesh_heartbeat_s: float = 0.5
    mesh_silence_s: float = 1.5
    mesh_resend_s: float = 0.5
    # links between clients and connectors
    greet_timeout_s: float = 5.0
    client_heartbeat_s: float = 10.0
    client_silence_s: float = 25.0
    link_resend_s: float = 1.0
    delivery_timeout_s: float = 2.5
    publish_timeout_s: float = 2.0
    client_resend_s: float = 4.0
    gap_release_s: float = 30.0
    # caches and sweeps
    presence_cache_ttl_s: float = 5.0
    relation_ttl_s: float = 60.0
    sweep_s: float = 30.0
    # life of things in the store
    token_ttl_s: float = 30 * 86400.0
    device_idle_s: float = 90 * 86400.0
    read_retention_s: float = 7 * 86400.0
    # process
    shutdown_s: float = 5.0


class Limits(Frozen, frozen=True, forbid_unknown_fields=True):
    """Every bound of the mesh."""

    body_bytes: int = 65_536
    """Of one envelope's body, as it travels (encrypted)."""
    frame_bytes: int = 262_144
    """Of one frame between client and connector."""
    bundle_bytes: int = 524_288
    """Of one bundle between processes, and of one record of the log."""
    bundle_items: int = 512
    client_window: int = 32
    """Unacknowledged frames on a client link, each way."""
    mesh_window: int = 64
    """Unacknowledged bundles on a mesh link, each way."""
    link_queue: int = 65_536
    """Envelopes that may wait for room in the window of a mesh link."""
    session_queue: int = 1_024
    """Envelopes that may wait for one device in its connector."""
    sessions: int = 9_000
    """Connected devices of one connector (a connection needs two file descriptors at times)."""
    devices_per_user: int = 10
    relations_per_user: int = 5_000
    drain_page_rows: int = 256
    drain_page_bytes: int = 1_048_576
    presence_cache: int = 200_000
    partitions: int = 4
    """Fixed share of recipients in the log.  Never change it on a mesh with data."""
    log_bytes: int = 4_294_967_296
    """Of one partition; when it is full senders are told to wait."""
    writer_records: int = 256
    """Log records in one transaction."""
    db_threads: int = 4
    publishes: int = 64
    """Publishes to the log under way in one transfer."""


class Topology(Frozen, frozen=True, forbid_unknown_fields=True):
    """The whole mesh."""

    connectors: tuple[Listener, ...]
    transfers: tuple[Listener, ...]
    writers: tuple[Worker, ...]
    rest: tuple[RestListener, ...]
    namespace: str = "meshim"
    """First part of every Redis key, NATS subject and stream name."""
    backends: Backends = Backends()
    security: Security = Security()
    timers: Timers = Timers()
    limits: Limits = Limits()
