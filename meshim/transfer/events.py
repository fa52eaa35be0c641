"""What happens to a transfer, and what its core asks to be done."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meshim.stores.ports import UserPresence

# ---------------------------------------------------------------- events


class ConnectorsSent(NamedTuple):
    """Frames from connectors, each (peer, frame), in the order they came."""

    batch: Sequence[tuple[bytes, bytes]]


class ConnectorGone(NamedTuple):
    """The socket has no connection to this peer any more."""

    peer: bytes


class PresenceRead(NamedTuple):
    """For all users that were asked for; those who are missing from `found` have no entry."""

    users: Sequence[int]
    found: Mapping[int, UserPresence]


class PresenceUnreadable(NamedTuple):
    users: Sequence[int]


class PresenceChanged(NamedTuple):
    """Entries of these users changed; nobody: that is all so far; None when any may have."""

    users: Sequence[int] | None


class Published(NamedTuple):
    """A record is fsynced in the log, at this position of its partition."""

    record: int
    position: int


class Unpublished(NamedTuple):
    """The log did not take it, or did not say so in time: it may be there or not."""

    record: int


Event = ConnectorsSent | ConnectorGone | PresenceRead | PresenceUnreadable | PresenceChanged | Published | Unpublished

# ---------------------------------------------------------------- actions


class SendConnector(NamedTuple):
    peer: bytes
    frame: bytes


class ReadPresence(NamedTuple):
    """Answered by PresenceRead or PresenceUnreadable."""

    users: Sequence[int]


class Publish(NamedTuple):
    """Answered by Published or Unpublished."""

    record: int
    partition: int
    data: bytes


Action = SendConnector | ReadPresence | Publish
