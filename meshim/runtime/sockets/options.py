"""The options of ZeroMQ sockets that meshim sets, and why it does not keep the defaults."""

from typing import NamedTuple

import zmq

Socket = zmq.Socket[bytes]

HANDSHAKE_S = 10.0
"""Limit of a handshake.  A storm of 10,000 honest clients needs 4 s of CPU for its handshakes."""

_BACKLOG = 4_096
_NEVER_MS = 1_000_000_000
_CURVE_OVERHEAD_BYTES = 33
"""Added to a frame by CURVE: "\\7MESSAGE", counter, flags and authenticator (RFC 26)."""


class KeyPair(NamedTuple):
    """A CURVE key pair in Z85, 40 characters each."""

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> "KeyPair":
        return cls(*zmq.curve_keypair())


def set_common(
    socket: Socket, endpoint: str, *, frame_bytes: int, curve: bool, hwm: int, heartbeat_s: float | None
) -> None:
    """The options of ROUTER and DEALER."""
    assert frame_bytes >= 1_024, "handshakes count as frames"
    # A closed socket drops unsent frames, unless `close` is given a linger: the windows above keep their content.
    socket.set(zmq.LINGER, 0)
    # In messages and for each peer: the last limit, since the windows above allow far fewer.
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, hwm)
    # Unlimited by default.  It counts bytes on the wire; libzmq ends the connection of a larger frame before the frame
    # is in memory.
    socket.set(zmq.MAXMSGSIZE, frame_bytes + (_CURVE_OVERHEAD_BYTES if curve else 0))
    # 30 s by default, in which a silent connection holds a descriptor.
    socket.set(zmq.HANDSHAKE_IVL, _ms(HANDSHAKE_S))
    if heartbeat_s is not None:
        # The I/O thread sends them, so they cost Python nothing; they find dead hosts, dead networks and stopped
        # processes.
        socket.set(zmq.HEARTBEAT_IVL, _ms(heartbeat_s))
        socket.set(zmq.HEARTBEAT_TIMEOUT, _ms(2 * heartbeat_s))
    # The kernel sends them and wakes no process for it; its default is two hours.
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
    # Only for a literal IPv6 address: with it `localhost` may become ::1, on which no role listens.
    socket.set(zmq.IPV6, int("[" in endpoint))


def set_router(socket: Socket) -> None:
    # Without it ROUTER drops silently a frame that it cannot deliver; with it, and NOBLOCK, the send fails.
    socket.set(zmq.ROUTER_MANDATORY, 1)
    # A second peer that claims a routing id in use is ignored.
    socket.set(zmq.ROUTER_HANDOVER, 0)
    # After a crash all peers connect at once, and the default is 100.
    socket.set(zmq.BACKLOG, _BACKLOG)


def set_dealer(socket: Socket, *, heartbeat_s: float | None) -> None:
    # The owner of the socket decides where to connect next, and when.
    #
    # IMMEDIATE=1 (no frames for a peer that is not connected) and RECONNECT_IVL=-1 (no second connection) are what is
    # wanted.  But with either of them libzmq drops, when the connection ends, frames that had arrived and were not read
    # yet, and the last of them is the Close that says why it ends.  So Dealer itself refuses frames while the monitor
    # reports no connection, and the second connection is put off for longer than any socket lives.
    socket.set(zmq.IMMEDIATE, 0)
    socket.set(zmq.RECONNECT_IVL, _NEVER_MS)
    # By default the kernel tries for two minutes.
    socket.set(zmq.CONNECT_TIMEOUT, _ms(HANDSHAKE_S))
    if heartbeat_s is not None:
        # The other end ends the connection when we are silent for so long, also if it sends no heartbeats itself.
        socket.set(zmq.HEARTBEAT_TTL, _ms(2 * heartbeat_s))
    # The kernel finds a dead host or network after ten seconds, with frames under way or without: before the first Ping
    # of an idle client, and long before the link counts the connector as silent.
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 4)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.set(zmq.TCP_MAXRT, _ms(10.0))


def set_curve_server(socket: Socket, *, secret: bytes, domain: str) -> None:
    """Without a domain libzmq admits every key."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    # Keys are checked with all three: this option, a domain, and a running ZAP handler.  With one of them missing
    # libzmq admits every key.  Without a domain this option keeps libzmq from asking the handler of another socket.
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    if domain:
        socket.set(zmq.ZAP_DOMAIN, domain.encode())


def set_curve_client(socket: Socket, *, server: bytes, public: bytes, secret: bytes) -> None:
    socket.set(zmq.CURVE_SERVERKEY, server)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
