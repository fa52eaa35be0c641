"""Every option of ZeroMQ sockets that matters, and why it is not left as it is."""

from typing import NamedTuple

import zmq

Socket = zmq.Socket[bytes]

HANDSHAKE_S = 10.0
"""For connections that do not speak.  A storm of 10,000 honest clients needs 4 s of CPU for its handshakes."""

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
    """What both kinds of sockets need."""
    assert frame_bytes >= 1_024, "handshakes count as frames"
    # Closing forgets what was not sent, unless `close` says otherwise: the windows above keep it.
    socket.set(zmq.LINGER, 0)
    # In messages and for each peer.  The windows above allow far fewer, so that this is the last line.
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, hwm)
    # Unlimited by default.  It counts bytes on the wire; a peer that sends more is cut before they are in memory.
    socket.set(zmq.MAXMSGSIZE, frame_bytes + (_CURVE_OVERHEAD_BYTES if curve else 0))
    # 30 s by default, in which a connection that says nothing holds a descriptor.
    socket.set(zmq.HANDSHAKE_IVL, _ms(HANDSHAKE_S))
    if heartbeat_s is not None:
        # By the I/O thread, so that they cost Python nothing and find hosts, networks and stopped processes.
        socket.set(zmq.HEARTBEAT_IVL, _ms(heartbeat_s))
        socket.set(zmq.HEARTBEAT_TIMEOUT, _ms(2 * heartbeat_s))
    # By the kernel, which wakes nobody for it; its default is two hours.
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
    # Only where it is asked for: with it `localhost` may become ::1, where nobody listens.
    socket.set(zmq.IPV6, int("[" in endpoint))


def set_router(socket: Socket) -> None:
    # Without it ROUTER drops silently what it cannot deliver; with it, and NOBLOCK, it says so.
    socket.set(zmq.ROUTER_MANDATORY, 1)
    # A second peer that claims a routing id in use is not listened to.
    socket.set(zmq.ROUTER_HANDOVER, 0)
    # After a crash everybody connects at once, and the default is 100.
    socket.set(zmq.BACKLOG, _BACKLOG)


def set_dealer(socket: Socket, *, heartbeat_s: float | None) -> None:
    # Whoever owns the socket decides where to go next, and when.
    #
    # IMMEDIATE=1 and RECONNECT_IVL=-1 would say what is meant: no frames for a peer that is not there, no second
    # connection.  But with either of them libzmq throws away, when the connection ends, what had arrived and was
    # not read yet, and the last frame says why it ends.  So Dealer refuses frames by what the monitor tells, and
    # the second connection is put off for longer than any socket lives once its connection was lost.
    socket.set(zmq.IMMEDIATE, 0)
    socket.set(zmq.RECONNECT_IVL, _NEVER_MS)
    # The kernel tries for two minutes.
    socket.set(zmq.CONNECT_TIMEOUT, _ms(HANDSHAKE_S))
    if heartbeat_s is not None:
        # The other end drops us when we are silent for so long, also if it sends no heartbeats itself.
        socket.set(zmq.HEARTBEAT_TTL, _ms(2 * heartbeat_s))
    # A host or network that is gone is missed after ten seconds, whether we have something to say or not: before the
    # first Ping of a client that has nothing to say, and long before the silence that follows it.
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 4)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.set(zmq.TCP_MAXRT, _ms(10.0))


def set_curve_server(socket: Socket, *, secret: bytes, domain: str) -> None:
    """Without a domain every key is admitted."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    # With a domain and a handler that runs: with one of the three missing libzmq admits every key.  Without a domain
    # it keeps libzmq from asking the handler of another socket.
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    if domain:
        socket.set(zmq.ZAP_DOMAIN, domain.encode())


def set_curve_client(socket: Socket, *, server: bytes, public: bytes, secret: bytes) -> None:
    socket.set(zmq.CURVE_SERVERKEY, server)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
