"""The client library: `from meshim.client import Client`."""

from meshim.client.client import Client
from meshim.client.message import Message, Outgoing, Place

__all__ = ["Client", "Message", "Outgoing", "Place"]
