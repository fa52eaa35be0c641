"""ZeroMQ sockets on the event loop: everything that is ready is read at once and handed over as one batch.

The only import of zmq.  Not zmq.asyncio, which costs three times as
much per message (a future for each): the loop watches the socket's descriptor and `Pump` drains it.

A message has one part (a ROUTER adds the routing id of the peer in front).  What a peer
sends otherwise, in several parts or none, is dropped and counted.

Three things libzmq lets a hostile client do, and what is made of them:

* It may choose its routing id.  `ROUTER_HANDOVER` is off, so it cannot take the id of a peer that is
  connected; and nothing is read from ids that ROUTER did not assign itself (those start with a zero
  byte and are not given twice), so no session is ever bound to an id that somebody else can choose later.
* A frame larger than `MAXMSGSIZE` cuts its connection, before it is in memory.
* It may stay for ever, say anything and read nothing.  `guard.py` ends connections that are nobody's.
"""

from meshim.runtime.sockets.context import Context
from meshim.runtime.sockets.dealer import Dealer
from meshim.runtime.sockets.guard import Guarding
from meshim.runtime.sockets.options import KeyPair
from meshim.runtime.sockets.router import Router, RouterStatistics, Sent

__all__ = ["Context", "Dealer", "Guarding", "KeyPair", "Router", "RouterStatistics", "Sent"]
