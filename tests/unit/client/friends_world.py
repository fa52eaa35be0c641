"""Friends of one device without a connection: the real contacts, relations and presence over the fake REST service."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import msgspec

from meshim.client.application.event_stream import Publisher, Subscription
from meshim.client.application.public_events import Event
from meshim.client.friends.contacts import Contacts
from meshim.client.friends.presence import PresencePoller
from meshim.client.friends.relations import Relations
from meshim.client.options import DEFAULTS
from meshim.client.rest import Api
from meshim.client.statistics import Statistics
from meshim.wire import rest
from meshim.wire.rest import Relation
from tests.unit.client.rest_service import PASSWORD, RestService

T = TypeVar("T")


class MemorySession:
    """A `Session` without a state file, so that virtual time waits for no thread."""

    def __init__(self, api: Api) -> None:
        self.name, self.user_id = "alice", 1
        self.on_relations: Callable[[Sequence[Relation]], None] | None = None
        self.persisted: list[Relation] = []
        self.delay_s = 0.0
        """How long each answer takes."""
        self._api = api

    async def authorized(self, request: Callable[[Api], Awaitable[T]]) -> T:
        answer = await request(self._api)
        await asyncio.sleep(self.delay_s)
        return answer

    async def relation(self, name: str) -> Relation:
        return await self.authorized(lambda api: api.relation(name))

    async def relations(self, user_id: int | None = None) -> Sequence[Relation]:
        return await self.authorized(lambda api: api.relations(user_id))

    async def persist_relations(self, relations: Sequence[Relation]) -> None:
        self.persisted += relations


class NoState:
    """An empty state file."""

    def peers(self) -> list[Any]:
        return []

    def content_keys(self) -> list[Any]:
        return []


class FriendsWorld:
    """Use it in `async with`; `names` are friends with the ids 2, 3, 4, …"""

    def __init__(self, *names: str, poll_s: float = 10.0, watched_max: int = 500) -> None:
        self.service = RestService()
        self.service.relations = tuple(
            rest.Relation(rest.User(2 + number, name), "friends", (rest.ContentKey(1, bytes(32)),))
            for number, name in enumerate(names)
        )
        self.statistics = Statistics()
        self.publisher = Publisher(100, self.statistics)
        self.online = asyncio.Event()
        self._readers: list[Subscription] = []
        self._options = msgspec.structs.replace(DEFAULTS, presence_poll_s=poll_s, watched_max=watched_max)

    async def __aenter__(self) -> Self:
        api = self.service.api()
        await api.login("alice", PASSWORD)
        self.session = MemorySession(api)
        session: Any = self.session
        state: Any = NoState()
        self.contacts = Contacts(session, state, self.publisher.publish)
        self.relations = Relations(session, self.contacts, self.publisher, self.statistics)
        self.presence = PresencePoller(
            session, self.contacts, self.publisher, self.online, self._options, self.statistics
        )
        await self.contacts.save(self.service.relations)
        self._tasks = [asyncio.create_task(each.run()) for each in (self.relations, self.presence)]
        self.service.requests.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        errors = [each for each in done if not isinstance(each, asyncio.CancelledError)]
        assert not errors, errors

    def connect(self) -> None:
        self.online.set()
        self.relations.welcomed()
        self.presence.welcomed()

    def subscribe(self) -> Subscription:
        """A reader, which lives as long as this world."""
        reader = self.publisher.subscribe()
        self._readers.append(reader)
        self.relations.wake()
        self.presence.wake()
        return reader

    def asked(self, path: str) -> int:
        """How many requests there were for this path."""
        return sum(request.partition("?")[0] == path for request in self.service.requests)


def waiting(reader: Subscription) -> list[Event]:
    """The events that wait for this reader, which takes them."""
    found = list(reader._waiting.values())
    reader._waiting.clear()
    return found
