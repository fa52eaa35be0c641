"""The events that an application reads with `Client.events()`.

They are frozen and named in the past tense.  A class that this version does not have may come with a later one: end a
`match` over events with `case _`.
"""

from typing import Literal, TypeAlias, cast, get_args

import msgspec

from meshim.client.application.message import Message, Outgoing
from meshim.errors import Code
from meshim.protocol.ranges import Range
from meshim.wire.envelope import Stream

RelationState: TypeAlias = Literal["none", "requested", "asked", "friends", "removed", "blocked"]
"""`requested` by this user, `asked` by the peer, `friends`, `removed` (ended, withdrawn or refused), `blocked` by this
user; `none` where there never was a relation, or one in a state that this version does not know."""

Presence: TypeAlias = Literal["online", "offline", "unknown"]
"""Whether a device of a friend is connected.  `unknown`: no friend, not asked yet, or the REST service is away."""

MessageState: TypeAlias = Literal["sent", "delivered", "read", "rejected"]


class Connected(msgspec.Struct, frozen=True, kw_only=True):
    """A connector has welcomed this client."""

    connector: str
    """Its endpoint or URL."""


class Disconnected(msgspec.Struct, frozen=True, kw_only=True):
    """The connection has ended.  The client connects again by itself, unless an error ends it."""

    code: Code | None
    """The connector's; None where it gave none."""
    sentence: str


class MessagesProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of one stream have reached a state.

    ::

        async for event in client.events():
            match event:
                case MessagesProgressed():
                    for message in shown:
                        if event.covers(message):
                            print(message.id, event.state)

    Of messages that this user sent, from any device: `sent`, `delivered` and `read`, as the mesh and the recipient
    said; `sent` and `rejected` of this device alone.  Of messages of others: this user has `read` them elsewhere.
    """

    stream: Stream
    peer: str
    """The name of the other user."""
    state: MessageState
    ranges: tuple[Range, ...]
    """Each (first `seq`, last `seq`)."""
    code: int = 0
    """Why they were rejected: a `meshim.errors.Code`, or one of a later version."""
    sentence: str = ""

    def covers(self, message: Message | Outgoing) -> bool:
        """Return whether this is about the message."""
        return message.stream == self.stream and any(first <= message.seq <= last for first, last in self.ranges)


class MessagesDelayed(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh takes no more messages to this user for a while.

    They are kept, and sent by themselves: `MessagesProgressed` says when.  Connected devices of the user get them
    meanwhile.  Told once for each connection, and again when messages were taken since.
    """

    peer: str
    """The name of the user."""
    code: int
    """A `meshim.errors.Code`, or one of a later version: QUEUE_FULL, too much waits for a device."""
    sentence: str


class RelationChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A request came, was accepted, refused or withdrawn, or a friendship ended; also by this user, on any device."""

    user_id: int
    name: str
    old: RelationState
    """As this device knew it."""
    new: RelationState


class KeyChanged(msgspec.Struct, frozen=True, kw_only=True):
    """There is a new content key for messages with this user."""

    user_id: int
    name: str
    version: int


class DevicesChanged(msgspec.Struct, frozen=True):
    """A device of this user was registered, or dropped."""


class PresenceChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A friend who is watched (`Client.watch`) has come or gone, or that is not known any more."""

    name: str
    old: Presence
    new: Presence


class TypingStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A friend types a message to this user."""

    name: str


class TypingStopped(msgspec.Struct, frozen=True, kw_only=True):
    """A friend has sent a message, or has not said for 6 s (`ClientOptions.typing_shown_s`) that the typing goes on."""

    name: str


class DeviceTakenOver(msgspec.Struct, frozen=True, kw_only=True):
    """Another state file has this device now.  It is the last event: then comes the error that ended the client."""

    sentence: str


class EventsLost(msgspec.Struct, frozen=True, kw_only=True):
    """This reader was too slow, and so many events found no room.

    Ask `friends()`, `presence` and `state_of` anew, and show nobody as typing.
    """

    count: int


Event: TypeAlias = (
    Connected
    | Disconnected
    | MessagesProgressed
    | MessagesDelayed
    | RelationChanged
    | KeyChanged
    | DevicesChanged
    | PresenceChanged
    | TypingStarted
    | TypingStopped
    | DeviceTakenOver
    | EventsLost
)


def relation_state(state: str) -> RelationState:
    """Return the state as REST writes it; `none` when this version does not know it."""
    return cast("RelationState", state) if state in get_args(RelationState) else "none"
