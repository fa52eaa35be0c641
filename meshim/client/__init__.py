"""The client library: `from meshim.client import Client`."""

from meshim.client.client import Client
from meshim.client.message import Message, OrderFlag, Outgoing
from meshim.client.progress import Progress

__all__ = ["Client", "Message", "OrderFlag", "Outgoing", "Progress"]
