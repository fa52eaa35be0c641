"""What the judge keeps of each state file and each message."""

from meshim.wire.envelope import Envelope

Key = tuple[int, ...]
"""A message: sending user, device and epoch; destination type, id and device; seq."""


def key_of(envelope: Envelope) -> Key:
    to = envelope.to
    return envelope.user, envelope.device, envelope.epoch, to.type, to.id, to.device, envelope.seq


class File:
    """The record of the judge about one state file: the messages it has, has released and given to the application."""

    def __init__(self, user: int, device: int, epoch: int) -> None:
        self.user = user
        self.device = device
        self.epoch = epoch
        self.has: set[Key] = set()
        self.released: set[Key] = set()
        self.given: set[Key] = set()
        self.handled: set[Key] = set()
        self.last: dict[Key, int] = {}
        self.waiting: dict[Key, dict[int, float]] = {}
        """By stream: the `seq` of each message that is held back, and since when."""
        self.gaps: dict[Key, int] = {}
        """By stream: the gap below this `seq` was released."""
        self.registered_at = 0.0
        """When the first login of its device returned."""
        self.owns_queue = False
        """Whether a session of this epoch has claimed the queue: then all rows in it are for this file."""
        self.owned_since = 0.0
        """When that was; for the first file of a device when its login returned: the mesh stores for it since then."""


class Message:
    """The record of the judge about one message."""

    def __init__(self, file: File, envelope: Envelope, owed: set[int]) -> None:
        self.file = file
        self.body = envelope.body
        self.owed = owed
        """Devices that have to show it and have not yet."""
        self.state = "pending"
