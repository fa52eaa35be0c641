"""WebSocket (RFC 6455): the only package that imports the library of that name (adr/0035).

One binary message is one frame of the protocol, and `meshim.1` is the subprotocol.  `WebSocketServer` serves many
peers, as a ROUTER does; `WebSocketClient` is one connection, as a DEALER is.
"""

from meshim.runtime.websocket.client import WebSocketClient
from meshim.runtime.websocket.listening import Listening, listen
from meshim.runtime.websocket.server import APPLICATION_CODE, ServerOptions, WebSocketServer
from meshim.runtime.websocket.statistics import WebSocketStatistics

__all__ = [
    "APPLICATION_CODE",
    "Listening",
    "ServerOptions",
    "WebSocketClient",
    "WebSocketServer",
    "WebSocketStatistics",
    "listen",
]
