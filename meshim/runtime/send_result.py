"""What a transport answers to a frame that it was given to send."""

import enum


class SendResult(enum.Enum):
    """The result of one send to one peer."""

    OK = enum.auto()
    """The frame is queued for the peer."""
    FULL = enum.auto()
    """The queue for the peer has no room; the frame was dropped."""
    GONE = enum.auto()
    """The peer is not connected; the frame was dropped."""
