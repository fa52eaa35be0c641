"""Relations: what the application does to them, and what becomes of them elsewhere.

A connector sends Changed when relations of the user changed, and may lose it; so REST is asked for all relations after
each Changed and after each Welcome, while the application reads events.  `Contacts` compares the answer with what this
device knew, and publishes the difference.

One such request is under way at a time, and one follows another after `SPACING_S` at the earliest: Changed frames in
between become one request.  After a Welcome it waits up to `JITTER_S`, because a connector that ends sends thousands of
clients to others.  While REST does not answer it is asked again, with back-off.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from meshim.client.application.event_stream import Publisher
from meshim.client.application.public_events import RelationState, relation_state
from meshim.client.friends.contacts import Contacts
from meshim.client.rest import Api
from meshim.client.session import Session
from meshim.client.statistics import Statistics
from meshim.errors import ApiError, BackendUnavailable
from meshim.protocol.names import fold_name
from meshim.wire import rest

SPACING_S = 1.0
JITTER_S = 1.0
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 30.0

_random = secrets.SystemRandom()


class Friend(msgspec.Struct, frozen=True):
    """A user whom this user has a relation with."""

    user_id: int
    name: str
    state: RelationState


class Relations:
    """The relations of one user."""

    def __init__(self, session: Session, contacts: Contacts, publisher: Publisher, statistics: Statistics) -> None:
        self._session = session
        self._contacts = contacts
        self._publisher = publisher
        self._statistics = statistics
        self._stale = False
        self._wake_up = asyncio.Event()
        self._not_before = 0.0
        self._asking = asyncio.Lock()
        self._acted = 0
        """How many changes this device has made: an answer to an earlier question is out of date."""

    # ---------------------------------------------------------------- what the application does

    async def friends(self) -> list[Friend]:
        """As `Client.friends`."""
        friends = [_friend(relation) for relation in await self._refresh()]
        return [friend for friend in friends if friend.state not in ("none", "removed")]

    async def change(self, request: Callable[[Api], Awaitable[rest.Relation]]) -> Friend:
        """Make a change whose answer is the relation after it."""
        relation = await self._session.authorized(request)
        self._acted += 1
        await self._contacts.save([relation])
        return _friend(relation)

    async def end(self, name: str, request: Callable[[Api], Awaitable[None]]) -> None:
        """Make a change after which the relation to this user is `removed`."""
        await self._session.authorized(request)
        self._acted += 1
        folded = fold_name(name)
        known = None if folded is None else self._contacts.user_of(folded)
        if folded is not None and known is not None:
            await self._contacts.save([rest.Relation(rest.User(known, folded), "removed")])

    # ---------------------------------------------------------------- what happens elsewhere

    def changed(self) -> None:
        """The mesh says that relations changed."""
        self._stale = True
        self._wake_up.set()

    def welcomed(self) -> None:
        """This client was away, and may have missed changes."""
        self._not_before = asyncio.get_running_loop().time() + _random.uniform(0.0, JITTER_S)
        self.changed()

    def wake(self) -> None:
        """The application reads events now."""
        self._wake_up.set()

    async def run(self) -> None:
        """Ask whenever something changed.  Raises the errors of a login that end the client, as Refused."""
        backoff_s = BACKOFF_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            while not (self._stale and self._publisher.subscribed):
                self._wake_up.clear()
                await self._wake_up.wait()
            await asyncio.sleep(max(0.0, self._not_before - loop.time()))
            self._stale = False
            wait_s = SPACING_S
            try:
                await self._refresh()
                backoff_s = BACKOFF_MIN_S
            except (ApiError, BackendUnavailable) as error:
                self._statistics.relation_requests_failed += 1
                self._stale = self._stale or isinstance(error, BackendUnavailable) or error.temporary
                asked_s = (error.retry_after_s or 0.0) if isinstance(error, ApiError) else 0.0
                wait_s = max(asked_s, backoff_s * _random.uniform(0.5, 1.5))
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            await asyncio.sleep(wait_s)

    async def _refresh(self) -> Sequence[rest.Relation]:
        """Fetch all relations, and publish what changed."""
        async with self._asking:
            while True:
                acted = self._acted
                found = await self._session.relations()
                if acted == self._acted:
                    break
            await self._contacts.save_all(found)
        return found


def _friend(relation: rest.Relation) -> Friend:
    return Friend(relation.peer.user_id, relation.peer.name, relation_state(relation.state))
