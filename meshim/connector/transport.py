"""The interface between a connector and the ways in which clients reach it: ZeroMQ, WebSocket (adr/0029).

A frame is the same on every transport; the core does not know which one a peer came by.  The shell does: the first byte
of a peer's id is the `tag` of its transport, so that a transport is found by one look-up and two transports never give
the same id.  A transport never gives an id twice: a verdict on a token may come after its peer has gone.

A transport takes two callbacks when it is made:

    on_batch(batch)     frames arrived: (peer, frame) pairs in the order of arrival, all that were ready at once
    on_gone(peer)       a connection ended, after the frames that it brought.  Not called where the transport cannot
                        know: then the next `send` is answered with GONE, or the heartbeat of the link ends the session
"""

from collections.abc import Callable
from typing import Protocol

from meshim.runtime.send_result import SendResult

OnBatch = Callable[[list[tuple[bytes, bytes]]], None]
OnGone = Callable[[bytes], None]


class ClientTransport(Protocol):
    """Accepts connections of clients from its creation on."""

    tag: int
    """The first byte of the ids of its peers; no other transport of the connector has it."""
    endpoint: str
    """The address that it is bound to."""

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        """Queue one frame for a peer.  Never waits: a frame that finds no room is dropped, and the answer is FULL."""

    def close_peer(self, peer: bytes, *, was_authenticated: bool = False) -> None:
        """End the connection of a peer, soon enough to stop it and late enough that the last frame still leaves.

        One that was authenticated until now may have much under way, and still gets its last frame.  Nothing happens
        for a peer that is gone.
        """

    def close(self, linger_ms: int = 0) -> None:
        """Accept nothing any more and end every connection; queued frames have `linger_ms` to leave."""
