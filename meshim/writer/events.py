"""Events and actions of the core of a writer.

Every action is answered by exactly one event: one of those named beside it, or `Failed` when the backend did not
answer.  An action that failed may have taken effect; all of them can be repeated.

=================  =======================
action             event
=================  =======================
Claim              Claimed, ClaimDenied
Release            Released
Ensure             LogEnsured
Fetch              MessagesFetched
Read               MessagesRead
Write              BatchWritten, FencedOff
ReadPresence       PresenceRead
SendWakeUps        WakeUpsSent
Acknowledge        Acknowledged
PublishDeadLetter  DeadLetterPublished
Extend             Extended
CountQueues        QueuesCounted
AnnounceFull       FullAnnounced
Purge              Purged
DropIdleDevices    IdleDevicesDropped
=================  =======================
"""

from collections.abc import Mapping
from typing import NamedTuple

from meshim.stores.ports import FullQueue, LogMessage, QueueKey, QueueUsage, UserPresence, Written
from meshim.wire.notification import WakeUp
from meshim.wire.offline_log import Entry

# ---------------------------------------------------------------- actions


class Claim(NamedTuple):
    """Lease the partition, or renew the lease."""

    partition: int


class Release(NamedTuple):
    """End the lease, if `fence` is still its fencing token."""

    partition: int
    fence: int


class Ensure(NamedTuple):
    """Create the partition's log if it does not exist; `first` is above every position ever seen."""

    partition: int
    first: int


class Fetch(NamedTuple):
    """Get the next messages of the log, `most` at most."""

    partition: int
    most: int


class Read(NamedTuple):
    """Read messages that were delivered to another consumer, or do not exist."""

    partition: int
    positions: tuple[int, ...]


class Write(NamedTuple):
    """Write records, each (position, entries), and the position of the partition, in one transaction."""

    partition: int
    fence: int
    through: int
    records: tuple[tuple[int, tuple[Entry, ...]], ...]


class ReadPresence(NamedTuple):
    """Look up where the devices of these users are bound."""

    partition: int
    users: tuple[int, ...]


class SendWakeUps(NamedTuple):
    """Send a wake-up to each of these connector incarnations; one that cannot be sent is counted, not repeated."""

    partition: int
    wake_ups: tuple[tuple[int, WakeUp], ...]


class Acknowledge(NamedTuple):
    """Tell the log that these messages are done."""

    partition: int
    positions: tuple[int, ...]


class PublishDeadLetter(NamedTuple):
    """Put data of this position into the dead-letter stream; `reason` is a sentence for people."""

    partition: int
    position: int
    reason: str
    data: bytes


class Extend(NamedTuple):
    """Tell the log that these messages are still in work, so that it does not redeliver them."""

    partition: int
    positions: tuple[int, ...]


class CountQueues(NamedTuple):
    """Count the unread rows of these queues by sender, unless the first row is still the one given with the queue."""

    partition: int
    queues: tuple[tuple[QueueKey, int], ...]
    rows_max: int


class AnnounceFull(NamedTuple):
    """Tell transfers for `ttl_s` which queues of these users are full; nothing where none is any more."""

    partition: int
    users: tuple[tuple[int, tuple[FullQueue, ...]], ...]
    ttl_s: float


class Purge(NamedTuple):
    """Delete rows that were read long ago, `most` at most."""

    most: int


class DropIdleDevices(NamedTuple):
    """Drop devices that were not seen for long, `most` at most."""

    most: int


PartitionAction = (
    Claim
    | Release
    | Ensure
    | Fetch
    | Read
    | Write
    | ReadPresence
    | SendWakeUps
    | Acknowledge
    | PublishDeadLetter
    | Extend
    | CountQueues
    | AnnounceFull
)
Action = PartitionAction | Purge | DropIdleDevices


# ---------------------------------------------------------------- events


class WritersLiving(NamedTuple):
    """The names of all writers whose leases last.  Does not happen while Redis is away."""

    names: tuple[str, ...]


class StopRequested(NamedTuple):
    """Finish what was fetched, and give all partitions back."""


class Claimed(NamedTuple):
    """The lease is ours: its fencing token, and the position up to which the partition was written."""

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
    """For each position the data, or None when the log has no such message (any more)."""

    partition: int
    found: tuple[tuple[int, bytes | None], ...]


class BatchWritten(NamedTuple):
    """The transaction was committed."""

    partition: int
    written: Written


class FencedOff(NamedTuple):
    """Another writer has claimed the partition since; nothing was written."""

    partition: int


class PresenceRead(NamedTuple):
    """Users that `found` lacks have no entry in presence."""

    partition: int
    found: Mapping[int, UserPresence]


class WakeUpsSent(NamedTuple):
    """How many devices the wake-ups that were sent named, and how many wake-ups could not be sent."""

    partition: int
    devices: int
    lost: int


class Acknowledged(NamedTuple):
    partition: int


class DeadLetterPublished(NamedTuple):
    partition: int


class Extended(NamedTuple):
    partition: int


class QueuesCounted(NamedTuple):
    """Without those whose first row is still the same."""

    partition: int
    found: Mapping[QueueKey, QueueUsage]


class FullAnnounced(NamedTuple):
    partition: int


class Purged(NamedTuple):
    rows: int


class IdleDevicesDropped(NamedTuple):
    devices: int


class Failed(NamedTuple):
    """The backend of this action did not answer; the action may have taken effect."""

    action: Action


Event = (
    WritersLiving
    | StopRequested
    | Claimed
    | ClaimDenied
    | Released
    | LogEnsured
    | MessagesFetched
    | MessagesRead
    | BatchWritten
    | FencedOff
    | PresenceRead
    | WakeUpsSent
    | Acknowledged
    | DeadLetterPublished
    | Extended
    | QueuesCounted
    | FullAnnounced
    | Purged
    | IdleDevicesDropped
    | Failed
)
