"""Clients over WebSocket: browsers, and whoever has no ZeroMQ (adr/0036)."""

from collections.abc import Callable, Sequence
from typing import Final

from meshim.connector.router_transport import UNAUTHENTICATED_MAX, guarding
from meshim.connector.transport import OnBatch, OnGone
from meshim.runtime.send_result import SendResult
from meshim.runtime.websocket import APPLICATION_CODE, Listening, ServerOptions, WebSocketServer, WebSocketStatistics
from meshim.topology import Limits
from meshim.wire import codec
from meshim.wire.link import Close
from meshim.wire.sizes import FRAME_OVERHEAD_BYTES

WEBSOCKET_TAG = 1
CONTROL_BYTES = 65_536
"""Room for the frames that no window counts: acknowledgements, pongs, and the last Close."""
UNAUTHENTICATED_FRAMES = 8
"""A greeting takes one.  Here a connection ends with its session, so that no window of it is under way."""
UNAUTHENTICATED_BYTES = 16_384
"""A greeting takes less than a hundred."""
HANDSHAKES = 3_000
"""A second (adr/0040).  One takes 0.1 to 0.2 ms of a core: half of it is left for sessions.  Honest clients come no
faster, because their greetings take as much again."""
HANDSHAKES_AT_ONCE = 300
"""They keep the others waiting for 0.05 s."""
WAITING_MAX = 3 * HANDSHAKES
"""Clients give up after 3 s."""

_CLOSE: Final = 7
"""The type of a Close frame: the second byte of each, after the byte of a short array (wire/link.py)."""
_decode_close = codec.decoder(Close)


class WebSocketTransport:
    """A ClientTransport."""

    def __init__(
        self,
        listening: Listening,
        *,
        origins: Sequence[str],
        limits: Limits,
        is_authenticated: Callable[[bytes], bool],
        on_batch: OnBatch,
        on_gone: OnGone,
        transports: int = 1,
    ) -> None:
        """Take a bound socket; it accepts from `start` on.

        `is_authenticated` says whether a peer has a session, or its token is being verified; `transports` is as of
        RouterTransport.
        """
        self.tag = WEBSOCKET_TAG
        self.endpoint = listening.url
        guard = guarding(limits, is_authenticated, transports)
        self._server = WebSocketServer(
            listening,
            ServerOptions(
                tag=WEBSOCKET_TAG,
                origins=origins,
                is_authenticated=is_authenticated,
                connections=guard.connections,
                unauthenticated=min(UNAUTHENTICATED_MAX, guard.connections),
                unauthenticated_s=guard.unauthenticated_s,
                unauthenticated_frames=UNAUTHENTICATED_FRAMES,
                unauthenticated_bytes=UNAUTHENTICATED_BYTES,
                handshakes=HANDSHAKES,
                handshakes_at_once=HANDSHAKES_AT_ONCE,
                waiting=WAITING_MAX,
                message_bytes=limits.frame_bytes,
                write_bytes=write_bytes(limits),
                handshake_s=guard.handshake_s,
                linger_s=guard.linger_s,
            ),
            on_batch,
            on_gone,
        )
        self._send = self._server.send
        self.start = self._server.start
        self.close = self._server.close
        self.wait_closed = self._server.wait_closed

    @property
    def statistics(self) -> WebSocketStatistics:
        return self._server.statistics

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        """Queue one frame for a peer.  After a Close, `close_peer` closes with its code plus 4000."""
        if frame[1] == _CLOSE:
            close = _decode_close(frame)
            self._server.set_close(peer, APPLICATION_CODE + close.code, close.sentence)
        return self._send(peer, frame)

    def close_peer(self, peer: bytes, *, was_authenticated: bool = False) -> None:
        """As of ClientTransport: whatever is under way, the last frame and the Close leave in their turn."""
        self._server.close_peer(peer)


def write_bytes(limits: Limits) -> int:
    """What may wait for one peer: a window of the largest frames, which an honest client may be slow to read.

    A frame of the connector holds one body of the largest size, or many smaller ones.
    """
    frame = min(limits.frame_bytes, limits.body_bytes + FRAME_OVERHEAD_BYTES)
    return limits.client_window * frame + CONTROL_BYTES
