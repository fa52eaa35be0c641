"""Outcomes inside the mesh: they report to the connector of the sender what became of the copies of a message.

A copy is (user, device).  Device 0 stands for all devices of the user: presence does not know them, and the writer
expands the copy.  Every outcome names all copies of its message, so that the connector knows when all of them are
accounted for; it tells its client with a `wire.client.Outcome`.
"""

import enum

import msgspec

from meshim.wire.bounds import U8, U31, U53, U63, Copies, Id, Positions, Sentence, Seq
from meshim.wire.envelope import Destination

Copy = tuple[int, int]
"""(user, device), or (user, 0) for all devices of the user."""


class OutcomeStatus(enum.IntEnum):
    """The fact that an outcome reports: of copies inside the mesh, of the message to the client."""

    DELIVERED = 1
    """The devices in `done` acknowledged the message; to the client: a device of the recipient did."""
    STORED = 2
    """The copies in `done` are fsynced in the log at `position` of the partition of their user; to the client: copies
    are stored or went to the sender's own devices, and no device of the recipient is known to have the message."""
    REJECTED = 3
    """The mesh refused the message, with `code`, and would refuse it again."""
    BUSY = 4
    """The mesh cannot take the message now; the client submits it again later."""


class CopyOutcome(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """One status for the messages `first` to `last` of the stream (`user`, `device`, `epoch`, `to`).

    It travels to the connector incarnation `origin`, where the device submitted the messages in this `session`.
    `position` is 0 except for STORED.  `after` is that of the stamp.
    """

    origin: U63
    session: U53
    user: Id
    device: Id
    epoch: U53
    to: Destination
    first: Seq
    last: Seq
    status: U8
    done: Copies = ()
    copies: Copies = ()
    position: U63 = 0
    after: Positions = ()
    code: U31 = 0
    sentence: Sentence = ""
