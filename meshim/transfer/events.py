"""Events and actions of the core of a transfer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meshim.stores.ports import UserPresence

# ---------------------------------------------------------------- events


class ConnectorsSent(NamedTuple):
    """Frames from connectors, each (peer, frame), in the order they came.

    `incarnations` has, by peer, the incarnation to which the key of the connection belongs, in decimal digits (and may
    have it of other peers).  None without CURVE: then every connector is believed.
    """

    batch: Sequence[tuple[bytes, bytes]]
    incarnations: Mapping[bytes, str] | None = None


class ConnectorGone(NamedTuple):
    """The socket has no connection to this peer any more."""

    peer: bytes


class PresenceRead(NamedTuple):
    """The answer to ReadPresence.  Users that `found` lacks have no entry in presence."""

    users: Sequence[int]
    found: Mapping[int, UserPresence]


class PresenceReadFailed(NamedTuple):
    """Redis did not answer the look-up of these users."""

    users: Sequence[int]


class PresenceChanged(NamedTuple):
    """The presence of these users changed.

    Empty: a heartbeat, all changes so far were reported.  None: changes may have been missed.
    """

    users: Sequence[int] | None


class Published(NamedTuple):
    """A record is fsynced in the log, at this position of its partition."""

    record: int
    position: int


class PublishFailed(NamedTuple):
    """The log refused the record or did not answer in time: the record may be there or not."""

    record: int


class StopRequested(NamedTuple):
    """Leave: end all links, and finish what was taken from connectors."""


Event = (
    ConnectorsSent
    | ConnectorGone
    | PresenceRead
    | PresenceReadFailed
    | PresenceChanged
    | Published
    | PublishFailed
    | StopRequested
)

# ---------------------------------------------------------------- actions


class SendConnector(NamedTuple):
    """Send one frame; answered by ConnectorGone when the peer is not connected."""

    peer: bytes
    frame: bytes


class ReportImpersonation(NamedTuple):
    """A Hello named an incarnation that is not the one of its key, which is in decimal digits."""

    named: int
    of_key: str


class ReadPresence(NamedTuple):
    """Answered by PresenceRead or PresenceReadFailed."""

    users: Sequence[int]


class Publish(NamedTuple):
    """Answered by Published or PublishFailed."""

    record: int
    partition: int
    data: bytes


Action = SendConnector | ReportImpersonation | ReadPresence | Publish
