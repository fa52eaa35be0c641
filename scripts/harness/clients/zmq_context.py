"""The ZeroMQ context of the clients in this folder."""

import zmq

Socket = zmq.Socket[bytes]
ZmqContext = zmq.Context[Socket]


def context() -> ZmqContext:
    """Return a ZeroMQ context for up to 65,535 sockets."""
    made: ZmqContext = zmq.Context()
    made.set(zmq.MAX_SOCKETS, 65_535)
    return made
