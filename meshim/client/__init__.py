"""The client library: `from meshim.client import Client`."""

from meshim.client.application.event_stream import Subscription
from meshim.client.application.message import Message, OrderFlag, Outgoing
from meshim.client.application.public_events import (
    Connected,
    DevicesChanged,
    DeviceTakenOver,
    Disconnected,
    Event,
    EventsLost,
    KeyChanged,
    MessagesDelayed,
    MessagesProgressed,
    MessageState,
    Presence,
    PresenceChanged,
    RelationChanged,
    RelationState,
    TypingStarted,
    TypingStopped,
)
from meshim.client.client import Client
from meshim.client.friends.relations import Friend

__all__ = [
    "Client",
    "Connected",
    "DeviceTakenOver",
    "DevicesChanged",
    "Disconnected",
    "Event",
    "EventsLost",
    "Friend",
    "KeyChanged",
    "Message",
    "MessageState",
    "MessagesDelayed",
    "MessagesProgressed",
    "OrderFlag",
    "Outgoing",
    "Presence",
    "PresenceChanged",
    "RelationChanged",
    "RelationState",
    "Subscription",
    "TypingStarted",
    "TypingStopped",
]
