"""Clients over ZeroMQ: a ROUTER with a guard (runtime/sockets/guard.py)."""

from collections.abc import Callable

from meshim.connector.transport import OnBatch, OnGone
from meshim.runtime.service import descriptors_for_connections
from meshim.runtime.sockets import Context, Guarding, KeyPair, RouterStatistics
from meshim.runtime.sockets.options import HANDSHAKE_S
from meshim.topology import Limits

ROUTER_TAG = 0
"""ROUTER starts the ids that it assigns with a zero byte, and frames of other ids are dropped."""
FRAMES_PER_WINDOW = 4
"""Frames that may wait in the socket for one client, or from one: a window, acknowledgements of another one, pings, and
some room.  A client for which that is not enough does not read."""
UNAUTHENTICATED_MAX = 4_096
"""Connections without a session, beyond the sessions: a storm of honest clients has as many for a moment."""
UNAUTHENTICATED_FRAMES = 128
"""A greeting takes one; an ended session still has a window or two under way."""
UNAUTHENTICATED_BYTES = 4 << 20
"""Of an ended session."""
GREETING_BYTES = 16_384
"""Of a connection that never had one: its handshake and a greeting take some hundred."""
UNFINISHED_BYTES = 64 << 20
"""Of all connections without a session: unfinished messages, and what was not read yet."""


class RouterTransport:
    """A ClientTransport.

    `on_gone` comes from the events of the connection, so an idle peer that died is noticed without a frame to it.
    Where its host vanished, or a load balancer keeps the connection, none comes: then GONE is the answer of `send`, or
    the heartbeat of the link decides.
    """

    def __init__(
        self,
        context: Context,
        bind: str,
        *,
        keys: KeyPair | None,
        limits: Limits,
        is_authenticated: Callable[[bytes], bool],
        on_batch: OnBatch,
        on_gone: OnGone,
        transports: int = 1,
    ) -> None:
        """Bind.  `is_authenticated` says whether a peer has a session, or its token is being verified.

        `transports` is their number in this process, which share its descriptors.

        Raises UsageError when the address is malformed, in use or not an address of this machine.
        """
        self.tag = ROUTER_TAG
        self._router = context.router(
            bind,
            keys=keys,
            frame_bytes=2 * limits.frame_bytes,  # the core answers a larger frame with a code; libzmq cuts beyond twice
            heartbeat_s=None,
            hwm=FRAMES_PER_WINDOW * limits.client_window,
            guarding=guarding(limits, is_authenticated, transports)._replace(on_gone=on_gone),
            on_batch=on_batch,
        )
        self.endpoint = self._router.endpoint
        # The methods of the ROUTER themselves: a method around `send` would cost each frame 0.1 us.
        self.send = self._router.send
        self.close_peer = self._router.close_peer
        self.close = self._router.close

    @property
    def statistics(self) -> RouterStatistics:
        return self._router.statistics


def guarding(limits: Limits, is_authenticated: Callable[[bytes], bool], transports: int) -> Guarding:
    """The limits of connections without a session, for one of so many transports."""
    descriptors = descriptors_for_connections()  # at the limit libzmq stops accepting, and spins
    most = limits.sessions + UNAUTHENTICATED_MAX
    return Guarding(
        is_authenticated=is_authenticated,
        connections=most if descriptors is None else min(most, descriptors // transports),
        unauthenticated_s=2 * HANDSHAKE_S,
        unauthenticated_frames=UNAUTHENTICATED_FRAMES,
        unauthenticated_bytes=UNAUTHENTICATED_BYTES,
        greeting_bytes=GREETING_BYTES,
        unfinished_bytes=UNFINISHED_BYTES,
        unread_bytes=2 * limits.client_window * limits.frame_bytes,
    )
