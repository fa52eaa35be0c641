"""What travels between clients and the REST service: one struct per body, JSON.

Both sides ignore fields they do not know, and every field that is added later has a
default, so that older and newer versions talk.  Bytes are base64 in JSON (RFC 4648,
with padding).  64-bit epochs are 16 hexadecimal digits: numbers of JSON are doubles to
many readers.  Times are seconds since 1970 UTC.
"""

from typing import Annotated

import msgspec

PREFIX = "/v1"
"""First part of the path of every endpoint but the probes."""

PROBLEM_JSON = "application/problem+json"

Epoch = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$", description="64 bits as 16 hexadecimal digits")]


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer from 400 on (RFC 9457).

    `detail` is one sentence for people; `code` is one word for programs, and the end of `type`.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str


class User(msgspec.Struct, frozen=True):
    user_id: int
    name: str


# ---------------------------------------------------------------- accounts


class Credentials(msgspec.Struct, frozen=True):
    """Registers a user."""

    name: str
    password: str


class Import(msgspec.Struct, frozen=True):
    """Registers many at once."""

    users: tuple[Credentials, ...]


class Imported(msgspec.Struct, frozen=True):
    """What became of one name of an import: a user, or why not (as in `Problem`)."""

    name: str
    user: User | None = None
    code: str = ""
    detail: str = ""


class ImportAnswer(msgspec.Struct, frozen=True):
    """In the order of the request."""

    users: tuple[Imported, ...]


# ---------------------------------------------------------------- sessions


class LoginRequest(msgspec.Struct, frozen=True):
    """Logs a device in: registers it, or takes it over with this epoch.

    Without a device the token is for REST alone: it touches no device and no connector accepts it.
    """

    name: str
    password: str
    device: str | None = None
    epoch: Epoch = "0" * 16


class Connector(msgspec.Struct, frozen=True):
    """A living connector: a ZeroMQ endpoint, and its CURVE public key in Z85 (empty without CURVE)."""

    name: str
    endpoint: str
    key: str


class Connectors(msgspec.Struct, frozen=True):
    connectors: tuple[Connector, ...]


class ContentKey(msgspec.Struct, frozen=True):
    """32 bytes for AES-256-GCM; `version` is what envelopes call it."""

    version: int
    key: bytes


class Relation(msgspec.Struct, frozen=True):
    """How one stands with `peer`.

    `requested`: we asked; `asked`: the peer did; `removed`: it ended, was withdrawn or refused.
    `keys` are all versions, oldest first: the last one seals, the others open old messages.
    """

    peer: User
    state: str
    keys: tuple[ContentKey, ...] = ()


class Relations(msgspec.Struct, frozen=True):
    """By name of the peer."""

    relations: tuple[Relation, ...]


class LoginAnswer(msgspec.Struct, frozen=True):
    """`token` is 32 bytes as base64url without padding: `Bearer` in REST, raw in the greeting.

    Without a device `device_id` is 0 and `connectors` and `relations` are empty.
    """

    token: str
    expires_at: float
    user_id: int
    name: str
    device_id: int
    epoch: Epoch
    connectors: tuple[Connector, ...] = ()
    relations: tuple[Relation, ...] = ()
    mesh: str = ""
    """Names this mesh: what a device keeps of another one (ids, keys, messages) is of no use here."""


# ---------------------------------------------------------------- presence, probes


class PeerPresence(msgspec.Struct, frozen=True):
    """Whether any device of this friend is connected."""

    peer: User
    online: bool


class PresenceAnswer(msgspec.Struct, frozen=True):
    """All friends, by name."""

    friends: tuple[PeerPresence, ...]


class Probe(msgspec.Struct, frozen=True):
    """Whether a backend answers, and why not."""

    ok: bool
    reason: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Of each backend by name (`redis`, `nats`, `sql`)."""

    ready: bool
    backends: dict[str, Probe]


def format_epoch(epoch: int) -> str:
    """A 64-bit epoch as JSON carries it."""
    assert 0 <= epoch < 1 << 64
    return f"{epoch:016x}"


def parse_epoch(text: str) -> int:
    """The other way; the pattern of `Epoch` was checked when the struct was decoded."""
    return int(text, 16)
