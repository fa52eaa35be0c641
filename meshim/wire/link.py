"""The frames of every link, between client and connector and between connector and transfer.

A frame is one message of the transport (over ZeroMQ: of one part): a msgpack array whose first element is the type.
`link` is the epoch of the link, a number chosen by the end that connected: a client makes random bits, a connector
counts up from its incarnation.  An end answers a frame with an unknown epoch with `Reset`.

Data frames are numbered 1, 2, 3, ... in each direction.  `ack` is the last number that was processed; every frame up to
it was.  The rules of numbers and acknowledgements are in `meshim/protocol/window.py`.
"""

from typing import Annotated, Generic, TypeVar

import msgspec

from meshim.wire.bounds import ITEMS_MAX, U31, U53, FrameNumber, Sentence

Item = TypeVar("Item")


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The base of all frames."""


class Data(Frame, Generic[Item], array_like=True, frozen=True, gc=False, tag=3):
    """Items, delivered in order and once, and an acknowledgement of the other direction."""

    link: U53
    number: FrameNumber
    ack: U53
    items: Annotated[tuple[Item, ...], msgspec.Meta(max_length=ITEMS_MAX)]


class Ack(Frame, array_like=True, frozen=True, gc=False, tag=4):
    """An acknowledgement that no data frame carries."""

    link: U53
    ack: U53


class Ping(Frame, array_like=True, frozen=True, gc=False, tag=5):
    """Asks for a Pong.  Either end may."""

    link: U53


class Pong(Frame, array_like=True, frozen=True, gc=False, tag=6):
    """Answers a Ping."""

    link: U53


class Close(Frame, array_like=True, frozen=True, gc=False, tag=7):
    """Ends the link, with the reason.  The receiver ignores later frames of this epoch.

    `wait_ms` is how long a client should wait before it greets again; 0 leaves that to its back-off.
    """

    link: U53
    code: U31
    sentence: Sentence = ""
    wait_ms: U31 = 0


class Reset(Frame, array_like=True, frozen=True, gc=False, tag=8):
    """Answers a frame of an unknown epoch: greet again."""

    link: U53
