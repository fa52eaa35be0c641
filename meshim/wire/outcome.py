"""Outcomes: they report to the sending device what became of the copies of a message.

A copy is (user, device).  Device 0 stands for all devices of the user: presence does not know them, and the writer
expands the copy.  Every outcome names all copies of its message, so that its receiver knows when all of them are
accounted for.
"""

import enum

import msgspec

from meshim.wire.bounds import U8, U31, U53, U63, Copies, Id, Sentence, Seq
from meshim.wire.envelope import Destination

Copy = tuple[int, int]
"""(user, device), or (user, 0) for all devices of the user."""


class OutcomeStatus(enum.IntEnum):
    """The fact that an outcome reports."""

    DELIVERED = 1
    """The devices in `done` acknowledged the message."""
    STORED = 2
    """The copies in `done` are fsynced in the log at `position` of the partition of their user."""
    REJECTED = 3
    """The mesh refused the message, with `code`, and would refuse it again."""
    BUSY = 4
    """The mesh cannot take the message now; the client submits it again later."""


class Outcome(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """One status for the messages `first` to `last` of the stream (`user`, `device`, `epoch`, `to`).

    It travels to the connector incarnation `origin`, where the device submitted the messages, and on to the device.
    `position` is 0 except for STORED.
    """

    origin: U63
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
    code: U31 = 0
    sentence: Sentence = ""
