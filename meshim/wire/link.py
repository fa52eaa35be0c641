"""Frames that every link speaks, between client and connector and between connector and transfer.

A frame is one ZeroMQ message of one part: a msgpack array whose first element is the
type.  `link` is the epoch of the link, 64 random bits chosen by the end that connected;
a frame with an epoch that is not known here is answered with `Reset`.

Data frames are numbered from 1 in each direction.  `ack` says that everything up to it was
processed, `stash` lists later numbers that arrived early and are kept.
"""

from typing import Annotated, Generic, TypeVar

import msgspec

from meshim.wire.bounds import ITEMS_MAX, LIST_MAX, U31, U63, U64, FrameNumber, Sentence

Item = TypeVar("Item")

Stash = Annotated[tuple[FrameNumber, ...], msgspec.Meta(max_length=LIST_MAX)]


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One ZeroMQ message on a link."""


class Data(Frame, Generic[Item], array_like=True, frozen=True, gc=False, tag=3):
    """Numbered items, delivered in order and once; carries an acknowledgement of the other direction."""

    link: U64
    number: FrameNumber
    ack: U63
    stash: Stash
    items: Annotated[tuple[Item, ...], msgspec.Meta(max_length=ITEMS_MAX)]


class Ack(Frame, array_like=True, frozen=True, gc=False, tag=4):
    """An acknowledgement for which no data was at hand to carry it."""

    link: U64
    ack: U63
    stash: Stash = ()


class Ping(Frame, array_like=True, frozen=True, gc=False, tag=5):
    """Are you there?  Answered by `Pong`."""

    link: U64


class Pong(Frame, array_like=True, frozen=True, gc=False, tag=6):
    link: U64


class Close(Frame, array_like=True, frozen=True, gc=False, tag=7):
    """The link ends, for this reason.  Nothing that comes after it on this epoch is read."""

    link: U64
    code: U31
    sentence: Sentence = ""


class Reset(Frame, array_like=True, frozen=True, gc=False, tag=8):
    """This link epoch is not known here: greet again."""

    link: U64
