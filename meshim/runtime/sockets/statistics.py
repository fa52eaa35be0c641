"""The counters of a socket, since it was made.  Not in a compiled module: see `meshim/compiled.py`."""

import msgspec


class RouterStatistics(msgspec.Struct):
    """Counters of one ROUTER."""

    accepted: int = 0
    """Connections that TCP accepted."""
    lost: int = 0
    """Connections that ended for any reason: also those that libzmq cut for a frame that was too large, which its
    events do not tell apart."""
    failed_handshakes: int = 0
    """Of `lost`: no ZMTP, an unknown key, or no complete handshake in time."""
    malformed: int = 0
    """Messages that had several parts or none, dropped."""
    foreign: int = 0
    """Messages from peers that chose their own routing id, dropped."""
    full: int = 0
    """Frames that were not sent because the peer's queue had no room."""
    gone: int = 0
    """Frames that were not sent because the peer was not connected."""
    cut: int = 0
    """Connections that the guard shut down."""


class DealerStatistics(msgspec.Struct):
    """Counters of one DEALER."""

    malformed: int = 0
    """Messages that had several parts or none, dropped."""
