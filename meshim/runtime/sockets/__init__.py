"""ZeroMQ (pyzmq) on the event loop: a socket reads all messages that are ready and hands them over as one batch.

The only import of zmq.  Not zmq.asyncio, which makes a future for each message and costs three times as much: the loop
watches the socket's descriptor and `Pump` reads the socket until it is empty.

A message has one part (ROUTER adds the routing id of the peer in front).  Messages of several parts, or with an empty
one, are dropped and counted.

Three things that libzmq allows a hostile client, and what limits them here:

* A client may choose its routing id.  `ROUTER_HANDOVER` is off, so a client cannot take the id of a connected peer; and
  frames from ids that ROUTER did not assign are dropped.  (Assigned ids start with a zero byte and are not given
  twice.)  So no session is ever bound to an id that another client can choose later.
* A client may send a frame of any size.  A frame larger than `MAXMSGSIZE` ends its connection before the frame is in
  memory.
* A client may stay connected, send and never read.  `guard.py` ends connections that do not authenticate.
"""

from meshim.runtime.send_result import SendResult
from meshim.runtime.sockets.context import Context
from meshim.runtime.sockets.dealer import Dealer
from meshim.runtime.sockets.guard import Guarding
from meshim.runtime.sockets.options import KeyPair
from meshim.runtime.sockets.router import Router
from meshim.runtime.sockets.statistics import DealerStatistics, RouterStatistics

__all__ = ["Context", "Dealer", "DealerStatistics", "Guarding", "KeyPair", "Router", "RouterStatistics", "SendResult"]
