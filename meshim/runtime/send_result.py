"""The result of sending a frame."""

import enum


class SendResult(enum.Enum):
    """Whether one frame is queued for one peer."""

    OK = enum.auto()
    """The frame is queued for the peer."""
    FULL = enum.auto()
    """The queue for the peer has no room; the frame was dropped."""
    GONE = enum.auto()
    """The peer is not connected; the frame was dropped."""
