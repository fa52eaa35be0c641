"""Turns actions of the core into events for the application, and into questions to the REST service."""

from typing import cast

from meshim.client import events as e
from meshim.client.application.event_stream import Publisher
from meshim.client.application.public_events import (
    Connected,
    DevicesChanged,
    DeviceTakenOver,
    Disconnected,
    MessagesDelayed,
    MessagesProgressed,
    MessageState,
    TypingStarted,
    TypingStopped,
)
from meshim.client.friends.contacts import Contacts
from meshim.client.friends.presence import PresencePoller
from meshim.client.friends.relations import Relations
from meshim.client.identity import Identity
from meshim.errors import Code, MeshimError, Refused, as_sentence
from meshim.protocol.ranges import Range
from meshim.wire.client import Change
from meshim.wire.envelope import Stream


class EventTranslator:
    """Knows the names of users, whom the core knows by their ids."""

    def __init__(
        self,
        identity: Identity,
        contacts: Contacts,
        relations: Relations,
        presence: PresencePoller,
        publisher: Publisher,
    ) -> None:
        self._identity = identity
        self._contacts = contacts
        self._relations = relations
        self._presence = presence
        self._publisher = publisher
        self._connected = False
        """As the application was told."""

    def subscribed(self) -> None:
        """The application reads events."""
        self._relations.wake()
        self._presence.wake()

    def welcomed(self, connector: str) -> None:
        """A connector has welcomed this client."""
        self._connected = True
        self._publisher.publish(Connected(connector=connector))
        self._relations.welcomed()
        self._presence.welcomed()

    def disconnected(self, action: e.Disconnect) -> None:
        """A connection has ended.  One that was not welcomed is no event."""
        if self._connected:
            self._connected = False
            self._publisher.publish(Disconnected(code=action.code, sentence=action.sentence))

    def failed(self, error: MeshimError) -> None:
        """This error ends the client."""
        if isinstance(error, Refused) and error.code is Code.REPLACED:
            self._publisher.publish(DeviceTakenOver(sentence=error.sentence))
        self._publisher.fail(error)

    def status_changed(self, action: e.StatusChanged) -> None:
        """A message of this device has reached a state."""
        if self._publisher.subscribed and not action.hidden:  # most bots read no events: this is for every message
            stream, ranges = self._identity.stream(action.to), ((action.seq, action.seq),)
            self._progressed(stream, action.state, ranges, action.code, action.sentence)

    def stream_delayed(self, action: e.StreamDelayed) -> None:
        """The mesh takes no more messages to a user for a while."""
        peer = self._contacts.name_of(action.to.id)
        self._publisher.publish(MessagesDelayed(peer=peer, code=action.code, sentence=as_sentence(action.sentence)))

    def stream_progressed(self, action: e.StreamProgressed) -> None:
        """Messages of others, or of another device of this user, have reached a state."""
        self._progressed(action.stream, action.state, action.ranges)

    def _progressed(
        self, stream: Stream, state: str, ranges: tuple[Range, ...], code: int = 0, sentence: str = ""
    ) -> None:
        peer = stream.to.id if stream.user == self._identity.user else stream.user
        self._publisher.publish(
            MessagesProgressed(
                stream=stream,
                peer=self._contacts.name_of(peer),
                state=cast("MessageState", state),
                ranges=ranges,
                code=code,
                sentence=sentence,
            )
        )

    def typing_changed(self, action: e.TypingChanged) -> None:
        """A friend types, or does so no more."""
        changed = TypingStarted if action.typing else TypingStopped
        self._publisher.publish(changed(name=self._contacts.name_of(action.user)))

    def account_changed(self, action: e.AccountChanged) -> None:
        """The connector says that the account changed."""
        if action.what & (Change.RELATIONS | Change.KEYS):
            self._relations.changed()
        if action.what & Change.DEVICES:
            self._publisher.publish(DevicesChanged())
