"""The client library: `from meshim.client import Client`."""

from meshim.client.client import Client
from meshim.client.message import Message, OrderFlag, Outgoing

__all__ = ["Client", "Message", "OrderFlag", "Outgoing"]
