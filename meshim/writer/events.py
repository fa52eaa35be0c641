"""What a writer core is told, and what it asks for.

Every action is answered by exactly one event: the one named beside it, `Failed` when the
backend did not answer, or `FencedOff`.  An action that failed may have happened; all of them
can be repeated.

=================  ======================================
action             event
=================  ======================================
Claim              Claimed, ClaimDenied
Release            Released
Ensure             LogEnsured
Fetch              MessagesFetched
Read               MessagesRead
Write              BatchWritten, FencedOff
LookUp             PresenceSeen
Tell               Told
Acknowledge        Acknowledged
Bury               LetterBuried
Extend             Extended
Purge              Purged
DropIdleDevices    IdleDevicesDropped
=================  ======================================
"""

from collections.abc import Mapping
from typing import NamedTuple

from meshim.stores.ports import LogMessage, UserPresence, Written
from meshim.wire.notification import WakeUp
from meshim.wire.offline_log import Entry

# ---------------------------------------------------------------- actions


class Claim(NamedTuple):
    """Lease the partition, or renew the lease."""

    partition: int


class Release(NamedTuple):
    partition: int
    fence: int


class Ensure(NamedTuple):
    """Create the partition's log if it is missing; `first` is above every position ever seen."""

    partition: int
    first: int


class Fetch(NamedTuple):
    partition: int
    most: int


class Read(NamedTuple):
    """Look whether these messages, which were not delivered here, exist."""

    partition: int
    positions: tuple[int, ...]


class Write(NamedTuple):
    """One transaction."""

    partition: int
    fence: int
    through: int
    records: tuple[tuple[int, tuple[Entry, ...]], ...]


class LookUp(NamedTuple):
    partition: int
    users: tuple[int, ...]


class Tell(NamedTuple):
    """WakeUp connectors, each by its incarnation.  A wake-up that cannot be sent is passed over."""

    partition: int
    wake_ups: tuple[tuple[int, WakeUp], ...]


class Acknowledge(NamedTuple):
    partition: int
    positions: tuple[int, ...]


class PublishDeadLetter(NamedTuple):
    """Put into the dead-letter stream, with a reason for people."""

    partition: int
    position: int
    reason: str
    data: bytes


class Extend(NamedTuple):
    partition: int
    positions: tuple[int, ...]


class Purge(NamedTuple):
    """Delete rows that were read long ago."""

    most: int


class DropIdleDevices(NamedTuple):
    most: int


PartitionAction = (
    Claim | Release | Ensure | Fetch | Read | Write | LookUp | Tell | Acknowledge | PublishDeadLetter | Extend
)
Action = PartitionAction | Purge | DropIdleDevices


# ---------------------------------------------------------------- events


class WritersSeen(NamedTuple):
    """The names of all writers whose leases live.  Not told while Redis is away."""

    names: tuple[str, ...]


class StopRequested(NamedTuple):
    """Finish what is under way and give everything back."""


class Claimed(NamedTuple):
    partition: int
    fence: int
    position: int


class ClaimDenied(NamedTuple):
    """Another writer's lease lasts."""

    partition: int


class Released(NamedTuple):
    partition: int


class LogEnsured(NamedTuple):
    partition: int


class MessagesFetched(NamedTuple):
    partition: int
    messages: tuple[LogMessage, ...]


class MessagesRead(NamedTuple):
    """For each position the data, or None when there is no such message any more."""

    partition: int
    found: tuple[tuple[int, bytes | None], ...]


class BatchWritten(NamedTuple):
    partition: int
    written: Written


class FencedOff(NamedTuple):
    """Another writer owns the partition now; nothing was written."""

    partition: int


class PresenceSeen(NamedTuple):
    partition: int
    present: Mapping[int, UserPresence]


class Told(NamedTuple):
    """How many devices were told of, and how many wake-ups could not be sent."""

    partition: int
    devices: int
    missed: int


class Acknowledged(NamedTuple):
    partition: int


class DeadLetterPublished(NamedTuple):
    partition: int


class Extended(NamedTuple):
    partition: int


class Purged(NamedTuple):
    rows: int


class IdleDevicesDropped(NamedTuple):
    devices: int


class Failed(NamedTuple):
    """The backend of this action is not available."""

    action: Action


Event = (
    WritersSeen
    | StopRequested
    | Claimed
    | ClaimDenied
    | Released
    | LogEnsured
    | MessagesFetched
    | MessagesRead
    | BatchWritten
    | FencedOff
    | PresenceSeen
    | Told
    | Acknowledged
    | DeadLetterPublished
    | Extended
    | Purged
    | IdleDevicesDropped
    | Failed
)
