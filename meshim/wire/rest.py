"""The JSON bodies between clients and the REST service: one struct for each.

Both sides ignore unknown fields, and every field that is added later has a default, so that older and newer versions
understand each other.  Bytes are base64 (RFC 4648, with padding).  Integers are below 2^53, since many readers of JSON
turn numbers into doubles.  Times are seconds since 1970-01-01 UTC.
"""

import msgspec

from meshim.wire.bounds import U53

PREFIX = "/v1"
"""The first part of the path of every endpoint but the probes."""

PROBLEM_JSON = "application/problem+json"


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer with a status from 400 on (RFC 9457).

    `detail` is one sentence for people; `code` is one word for programs, which also ends `type`.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str


class User(msgspec.Struct, frozen=True):
    """A user, by id and name."""

    user_id: int
    name: str


# ---------------------------------------------------------------- accounts


class Credentials(msgspec.Struct, frozen=True):
    """Registers a user."""

    name: str
    password: str


class Import(msgspec.Struct, frozen=True):
    """Registers many users in one request."""

    users: tuple[Credentials, ...]


class ImportResult(msgspec.Struct, frozen=True):
    """The result for one name of an import: the user, or `code` and `detail` as in `Problem`."""

    name: str
    user: User | None = None
    code: str = ""
    detail: str = ""


class ImportAnswer(msgspec.Struct, frozen=True):
    """The results of an import, in the order of the request."""

    users: tuple[ImportResult, ...]


# ---------------------------------------------------------------- sessions


class LoginRequest(msgspec.Struct, frozen=True):
    """Logs in on a device, or registers it.

    With `takeover` also a device that has another epoch, whose state file loses the device for good: a client says so
    only at the first login of a new state file.
    Without a device the token is for REST only: the login changes no device, and no connector accepts the token.
    """

    name: str
    password: str
    device: str | None = None
    epoch: U53 = 0
    takeover: bool = False


class Connector(msgspec.Struct, frozen=True):
    """Where clients connect: a ZeroMQ endpoint with its CURVE public key in Z85 (empty without CURVE), a WebSocket URL,
    or both; the other is empty.

    `name` is that of the living connector there.  Behind a load balancer several have the same endpoint, key and URL:
    they are one entry, with their names joined by commas.
    """

    name: str
    endpoint: str
    key: str
    url: str = ""


class Connectors(msgspec.Struct, frozen=True):
    """All living connectors."""

    connectors: tuple[Connector, ...]


class ContentKey(msgspec.Struct, frozen=True):
    """32 bytes for AES-256-GCM; the `key` field of an envelope holds `version`."""

    version: int
    key: bytes


class Relation(msgspec.Struct, frozen=True):
    """The relation of a user with `peer`.

    `state` is `friends`; `requested` by the user; `asked` by the peer; `removed`: ended, withdrawn or refused; or
    `blocked` by the user, of which the peer sees nothing.
    `keys` are all versions, oldest first: the last one seals, the others open old messages.
    """

    peer: User
    state: str
    keys: tuple[ContentKey, ...] = ()


class Relations(msgspec.Struct, frozen=True):
    """All relations of a user, sorted by the name of the peer; or only the one that was asked for, if there is any."""

    relations: tuple[Relation, ...]


class LoginAnswer(msgspec.Struct, frozen=True):
    """`token` is 32 bytes as base64url without padding: REST takes it as `Bearer`, the greeting takes the raw bytes.

    Without a device `device_id` is 0 and `connectors` and `relations` are empty.
    """

    token: str
    expires_at: float
    user_id: int
    name: str
    device_id: int
    epoch: int
    connectors: tuple[Connector, ...] = ()
    relations: tuple[Relation, ...] = ()
    mesh: str = ""
    """The identity of this mesh: ids, keys and messages that a device keeps of another mesh are useless here."""


# ---------------------------------------------------------------- presence, probes


class PeerPresence(msgspec.Struct, frozen=True):
    """Whether a device of this friend is connected."""

    peer: User
    online: bool


class PresenceAnswer(msgspec.Struct, frozen=True):
    """All friends, sorted by name."""

    friends: tuple[PeerPresence, ...]


class Probe(msgspec.Struct, frozen=True):
    """Whether a backend answers, and stores if that is its part, or the reason why not."""

    ok: bool
    reason: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Whether the service is ready: the probe of each backend, by name (`redis`, `nats`, `sql`)."""

    ready: bool
    backends: dict[str, Probe]
