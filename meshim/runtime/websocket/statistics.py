"""The counters of a WebSocket server, since it was made."""

import msgspec


class WebSocketStatistics(msgspec.Struct):
    """Counters of one WebSocket server."""

    accepted: int = 0
    """Connections that TCP accepted, and TLS where it is on."""
    delayed: int = 0
    """Of `accepted`: waited to be served, because many came at once."""
    opened: int = 0
    """Of `accepted`: the handshake of WebSocket was complete."""
    lost: int = 0
    """Connections that ended for any reason."""
    refused_origin: int = 0
    """Handshakes of web pages that are not in `origins` (403)."""
    refused_subprotocol: int = 0
    """Handshakes without the subprotocol of meshim (400)."""
    refused_request: int = 0
    """Other handshakes: not HTTP, not WebSocket, too many or too long headers."""
    refused_late: int = 0
    """Handshakes that were not complete in time (408)."""
    malformed: int = 0
    """Connections closed for a WebSocket frame against RFC 6455 (1002 or 1007)."""
    text: int = 0
    """Connections closed for a text message (1003)."""
    too_large: int = 0
    """Connections closed for a message above the limit, or in too many fragments (1009)."""
    full: int = 0
    """Frames that were not sent because the peer reads too slowly."""
    gone: int = 0
    """Frames that were not sent because the peer was not connected."""
    cut: int = 0
    """Connections closed because they were not authenticated in time, within the limits, or made room for newer ones;
    or asked for pongs that they did not read."""
