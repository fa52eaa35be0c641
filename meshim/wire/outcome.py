"""Outcomes: what became of the copies of a message, told to the device that sent it.

A copy is (user, device); device 0 stands for all devices of that user, when nobody in the
mesh could say which they are and the writer expands them.  Every outcome names all copies
of its message, so that whoever collects outcomes knows when all are accounted for.
"""

import enum

import msgspec

from meshim.wire.bounds import U8, U31, U63, U64, Copies, Id, Sentence, Seq
from meshim.wire.envelope import Destination

Copy = tuple[int, int]
"""(user, device), or (user, 0) for all devices of the user."""


class OutcomeStatus(enum.IntEnum):
    DELIVERED = 1
    """The devices in `done` acknowledged it."""
    STORED = 2
    """The copies in `done` are fsynced in the log at `position` of the partition of their user."""
    REJECTED = 3
    """This attempt was refused, with `code`; it will be refused again."""
    BUSY = 4
    """It could not be taken now; send it again later."""


class Outcome(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """What became of messages `first` to `last` of the stream (sending device, `epoch`, `to`).

    `origin` is the incarnation of the connector the device submitted them to, `user` and `device`
    the sending device: the way back.  `position` is 0 except for STORED.
    """

    origin: U63
    user: Id
    device: Id
    epoch: U64
    to: Destination
    first: Seq
    last: Seq
    status: U8
    done: Copies = ()
    copies: Copies = ()
    position: U63 = 0
    code: U31 = 0
    sentence: Sentence = ""
