"""The structs of a topology: frozen, with defaults, and without unknown fields.

One file describes the whole mesh.  Every process reads the same file and finds its own part by name.  The names of the
fields carry the units: `_s` seconds, `_bytes` bytes; the other numbers are counts.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=10 * 366 * 86400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]
"""It is part of file names, Redis keys and NATS subjects."""


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of every part of the topology: frozen, and an unknown field is an error."""


class Backends(Frozen, frozen=True, forbid_unknown_fields=True):
    """The servers that hold all state: for each a URL, or `embedded` for one that `meshim up` starts."""

    redis: str = "embedded"
    nats: str = "embedded"
    sql: str = "embedded"


class Security(Frozen, frozen=True, forbid_unknown_fields=True):
    """Encryption of links and of stored keys."""

    curve: bool = True
    """CURVE on every ZeroMQ link.  Turn it off for measurements on one machine only."""
    master_key_file: str | None = None
    """The file of the key that wraps relation keys at rest (mode 0600); null: `master.key` in the data folder.  The
    first REST process of a mesh makes it; every other one needs a copy."""
    connector_key_file: str | None = None
    """The file of the CURVE key pair that every connector shows to clients (mode 0600), so that they reach any of them
    behind one address; `meshim key new` makes it.  null: each connector makes a key pair at its start."""
    origins: tuple[str, ...] = ()
    """The web pages that may use connectors and REST from a browser, as `https://chat.example`; `*` for all."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """The networks of the proxies in front of REST, as `10.1.0.0/16`.  REST believes what they say in X-Forwarded-For,
    and nobody else; a proxy there has to set the header or to append to it."""


OnWeak: TypeAlias = Literal["refuse", "warn"]
"""`refuse` does not start, and stores nothing, where it could be lost; `warn` logs that and goes on."""


class Durability(Frozen, frozen=True, forbid_unknown_fields=True):
    """The policy for backends that could lose what they have acknowledged, in a power loss or at any time (adr/0013).

    The deciding settings are read from the running servers.
    """

    weak: OnWeak = "refuse"
    """Applies when a setting lets a server acknowledge what it has not yet synced, evict what it holds, or is that of a
    replica."""
    unknown: OnWeak = "warn"
    """Applies when a setting cannot be read."""
    nats_monitor: str | None = None
    """The monitoring of NATS, as http://HOST:8222: NATS shows `sync_interval` nowhere else."""


class WebSocketListener(Frozen, frozen=True, forbid_unknown_fields=True):
    """Where clients connect by WebSocket."""

    bind: str = "ws://127.0.0.1:0"
    """`wss://` with the two files below; a proxy with TLS in front needs neither."""
    advertise: str | None = None
    """The URL that clients connect to, with its path, where it differs from the bound one (a proxy, NAT, 0.0.0.0)."""
    tls_certificate_file: str | None = None
    """The certificate of `wss://` and those that sign it (PEM)."""
    tls_key_file: str | None = None
    """Its key (PEM, without a password)."""


class Listener(Frozen, frozen=True, forbid_unknown_fields=True):
    """A process that accepts connections."""

    name: Name
    bind: str = "tcp://127.0.0.1:0"
    """Port 0 takes a free port, which the lease in Redis publishes."""
    advertise: str | None = None
    """The address that others connect to, where it differs from the bound one (NAT, 0.0.0.0)."""


class ConnectorListener(Listener, frozen=True, forbid_unknown_fields=True):
    """One connector: clients reach it by ZeroMQ, and by WebSocket where it has an address for that."""

    websocket: WebSocketListener | None = None


class Worker(Frozen, frozen=True, forbid_unknown_fields=True):
    """A process that accepts no connections."""

    name: Name


class RestListener(Frozen, frozen=True, forbid_unknown_fields=True):
    """One process of the REST service."""

    name: Name
    bind: str = "http://127.0.0.1:8100"


class Timers(Frozen, frozen=True, forbid_unknown_fields=True):
    """Every timer of the mesh, in seconds.  timers.py says how they depend on each other.

    The timers that only clients use are the same in every mesh: `protocol/timeouts.py`.
    """

    # leases: how soon a dead process is noticed
    lease_renew_s: Seconds = 1.0
    lease_ttl_s: Seconds = 3.0
    partition_lease_s: Seconds = 6.0
    queue_lease_s: Seconds = 10.0
    # links between processes of the mesh
    mesh_heartbeat_s: Seconds = 0.5
    mesh_silence_s: Seconds = 1.5
    # links between clients and connectors
    client_heartbeat_s: Seconds = 10.0
    client_silence_s: Seconds = 25.0
    """An end of a link to a client that was silent for so long is dead."""
    client_silence_max_s: Seconds = 150.0
    """The longest silence that a client may ask for."""
    ack_delay_s: Seconds = 0.05
    """How long an acknowledgement waits for a data frame that carries it, unless half the window waits for it."""
    outcome_delay_s: Seconds = 0.003
    """How long an outcome waits for others on a mesh link that has just sent one (protocol/coalescing.py)."""
    delivery_timeout_s: Seconds = 2.5
    publish_timeout_s: Seconds = 2.0
    # caches and sweeps
    presence_cache_ttl_s: Seconds = 30.0
    presence_silence_s: Seconds = 5.0
    """A transfer asks Redis for changes every second; it ignores its presence cache after so long without an answer."""
    relation_ttl_s: Seconds = 60.0
    sweep_s: Seconds = 30.0
    # retention in the database
    token_ttl_s: Seconds = 30 * 86400.0
    device_idle_s: Seconds = 90 * 86400.0
    login_window_s: Seconds = 60.0
    """So long failed logins of an address, or of a known device, count."""
    registration_window_s: Seconds = 3600.0
    """So long registrations from one address count."""
    account_login_window_s: Seconds = 600.0
    """So long failed logins of an account from unknown devices count."""
    friend_request_pause_s: Seconds = 86400.0
    """So long a user may not ask the same peer again after a request that was refused or withdrawn."""
    read_retention_s: Seconds = 7 * 86400.0
    # process
    shutdown_s: Seconds = 5.0


class Limits(Frozen, frozen=True, forbid_unknown_fields=True):
    """Every bound of the mesh."""

    body_bytes: Count = 65_536
    """Of the encrypted body of one envelope."""
    frame_bytes: Count = 262_144
    """Of one frame between client and connector."""
    bundle_bytes: Count = 524_288
    """Of one bundle on a mesh link, and of one record of the log."""
    bundle_items: Count = 512
    client_window: Count = 32
    """Unacknowledged frames on a client link, in each direction."""
    mesh_window: Count = 64
    """Unacknowledged bundles on a mesh link, in each direction."""
    link_queue: Count = 65_536
    """Envelopes that may wait for room in the window of a mesh link."""
    link_bytes: Count = 33_554_432
    """Bytes that may wait there."""
    session_queue: Count = 1_024
    """Envelopes that may wait for one device in its connector."""
    session_rate: Count = 2_000
    """Messages that one device may submit in a second; a message above 2 KiB counts as several."""
    greetings_per_s: Count = 10
    """Greetings with one token that one connector takes in a second; of ten seconds also at once."""
    sessions: Count = 9_000
    """Connected devices of one connector (a connection needs up to two file descriptors)."""
    devices_per_user: Count = 10
    relations_per_user: Count = 5_000
    """Friends, former friends and blocks.  Requests that are not answered do not count."""
    registrations_per_address: Count = 20
    """From one address, also those that are refused, within `registration_window_s`."""
    registrations_per_minute: Count = 120
    """From all addresses, where registration is open."""
    login_failures: Count = 10
    """Failed logins as one user from one address, or from one known device, within `login_window_s`."""
    login_failures_per_account: Count = 60
    """As one user from all unknown devices, within `account_login_window_s`."""
    login_failures_per_address: Count = 100
    """From one address as any users, from unknown devices, within `login_window_s`."""
    friend_requests_incoming: Count = 200
    """Requests that wait for the answer of one user: a further one takes the place of the oldest."""
    friend_requests_outgoing: Count = 100
    """Requests of one user that wait for an answer."""
    friend_requests_per_hour: Count = 60
    """Requests that one user may make, through one REST service."""
    presence_lookups_per_s: Count = 100
    """Friends whose presence one user may ask for in a second, from one REST service."""
    name_lookups_per_minute: Count = 120
    """Names that one user may name to one REST service which are not of friends, of requests, or of blocked users."""
    rate_limited_users: Count = 10_000
    """Users whose rates of such requests one REST service remembers."""
    queue_rows: Count = 50_000
    """Messages that may wait for one device.  One sender alone gets a quarter of them (docs/adr/0042)."""
    queue_bytes: Count = 268_435_456
    """Bytes of their envelopes.  Beyond either limit the sender gets BUSY with QUEUE_FULL and keeps the message."""
    sync_page_rows: Count = 256
    sync_page_bytes: Count = 1_048_576
    presence_cache: Count = 200_000
    partitions: Count = 4
    """Parts of the log, each with a fixed share of the recipients.  The database records it; it can never change."""
    log_bytes: Count = 4_294_967_296
    """Of one partition.  While it is full, senders get BUSY and keep their messages.  Dead letters add a quarter."""
    writer_records: Count = 256
    """Log records in one transaction."""
    db_threads: Count = 4
    publishes: Count = 64
    """Concurrent publishes to the log of one transfer."""


Registration: TypeAlias = Literal["open", "invite", "closed"]
"""Who may register: everybody, those with an invite (`meshim user invite`), or nobody but imports where REST runs."""


class Topology(Frozen, frozen=True, forbid_unknown_fields=True):
    """The whole mesh."""

    connectors: tuple[ConnectorListener, ...]
    transfers: tuple[Listener, ...]
    writers: tuple[Worker, ...]
    rest: tuple[RestListener, ...]
    namespace: Name = "meshim"
    """First part of every Redis key, NATS subject and stream name.  The database records it; it can never change."""
    registration: Registration = "open"
    backends: Backends = Backends()
    durability: Durability = Durability()
    security: Security = Security()
    timers: Timers = Timers()
    limits: Limits = Limits()


def default() -> Topology:
    """Return the mesh of the repository's `topology.yaml`: one host, embedded backends."""
    return Topology(
        connectors=tuple(ConnectorListener(name, websocket=WebSocketListener()) for name in ("c1", "c2")),
        transfers=(Listener("t1"), Listener("t2")),
        writers=(Worker("w1"),),
        rest=(RestListener("r1"),),
    )
