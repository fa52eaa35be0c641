"""Presence of the friends whom the application looks at: asked for at REST from time to time, never broadcast.

REST is asked while three things are true: friends are watched, the application reads events, and there is a connection.
A request names 100 friends at most.  A value holds until the next request; where that fails, or cannot be made because
there is no connection, presence is `unknown`, which is better than what was true once.

    every `presence_poll_s`, times 0.8 to 1.2        also sooner after `watch`, and after a Welcome within `JITTER_S`
    `slow_down` (429)                                after Retry-After, if that is later
    any two requests                                 `SPACING_S` apart at least
"""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress

from meshim.chunks import chunks
from meshim.client.application.event_stream import Publisher
from meshim.client.application.public_events import Presence, PresenceChanged
from meshim.client.friends.contacts import Contacts
from meshim.client.options import ClientOptions
from meshim.client.session import Session
from meshim.client.statistics import Statistics
from meshim.errors import ApiError, BackendUnavailable, UsageError
from meshim.protocol.names import fold_name

SPACING_S = 1.0
JITTER_S = 1.0
IDS_MAX = 100
"""User ids in one request."""

_PRESENCE: dict[bool | None, Presence] = {True: "online", False: "offline", None: "unknown"}

_random = secrets.SystemRandom()


class PresencePoller:
    """The presence of the friends who are watched."""

    def __init__(
        self,
        session: Session,
        contacts: Contacts,
        publisher: Publisher,
        online: asyncio.Event,
        options: ClientOptions,
        statistics: Statistics,
    ) -> None:
        """`online` is set while there is a connection."""
        self._session = session
        self._contacts = contacts
        self._publisher = publisher
        self._online = online
        self._poll_s = options.presence_poll_s
        self._watched_max = options.watched_max
        self._statistics = statistics
        self._watched: dict[str, Presence] = {}
        """Name to presence."""
        self._wake_up = asyncio.Event()
        self._not_before = 0.0

    # ---------------------------------------------------------------- what the application does

    def watch(self, names: Iterable[str]) -> None:
        """As `Client.watch`."""
        new = [name for name in dict.fromkeys(map(_folded, names)) if name not in self._watched]
        if len(self._watched) + len(new) > self._watched_max:
            raise UsageError(f"At most {self._watched_max} friends can be watched at once: unwatch some.")
        for name in new:
            self._watched[name] = "unknown"
        if new:
            self.wake()

    def unwatch(self, names: Iterable[str]) -> None:
        """As `Client.unwatch`."""
        for name in map(_folded, names):
            self._watched.pop(name, None)

    def presence(self, name: str) -> Presence:
        """As `Client.presence`."""
        return self._watched.get(_folded(name), "unknown")

    # ---------------------------------------------------------------- asking

    def wake(self) -> None:
        """Something changed that allows or needs a request."""
        self._wake_up.set()

    def welcomed(self) -> None:
        """There is a connection again."""
        later = asyncio.get_running_loop().time() + _random.uniform(0.0, JITTER_S)
        self._not_before = max(self._not_before, later)
        self.wake()

    async def run(self) -> None:
        """Ask as long as the client lives.  Raises the errors of a login that end the client, as Refused."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake_up.clear()
            if self._can_ask():
                await self._poll()
                self._not_before = max(self._not_before, loop.time() + SPACING_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s * _random.uniform(0.8, 1.2)):
                        await self._wake_up.wait()
            else:
                self._forget()
                await self._wake_up.wait()
            await asyncio.sleep(max(0.0, self._not_before - loop.time()))

    def _can_ask(self) -> bool:
        return bool(self._watched) and self._publisher.subscribed and self._online.is_set()

    async def _poll(self) -> None:
        """Ask for all who are watched."""
        ids = {name: self._contacts.friend_id(name) for name in self._watched}
        for name in (name for name, user in ids.items() if user is None):
            self._set(name, "unknown")
        friends = [(name, user) for name, user in ids.items() if user is not None]
        for number, some in enumerate(chunks(friends, IDS_MAX)):
            if number:
                await asyncio.sleep(SPACING_S)  # the service lets a user ask for 100 friends a second
            online = await self._ask([user for _, user in some])
            if online is None:
                self._forget()
                return
            for name, user in some:
                self._set(name, _PRESENCE[online.get(user)])

    async def _ask(self, users: Sequence[int]) -> dict[int, bool] | None:
        """Whether these friends are online, by id; None when that is not to be had now."""
        while True:
            try:
                answer = await self._session.authorized(lambda api: api.presence(users))
            except (ApiError, BackendUnavailable) as error:
                self._statistics.presence_requests_failed += 1
                if not isinstance(error, ApiError) or error.status != 429:
                    return None
                wait_s = max(SPACING_S, error.retry_after_s or 0.0)
            else:
                return {each.peer.user_id: each.online for each in answer}
            if wait_s > self._poll_s:
                self._forget()
            await asyncio.sleep(wait_s)
            if not self._can_ask():
                return None

    def _forget(self) -> None:
        for name in self._watched:
            self._set(name, "unknown")

    def _set(self, name: str, new: Presence) -> None:
        old = self._watched.get(name, new)
        if new != old:
            self._watched[name] = new
            self._publisher.publish(PresenceChanged(name=name, old=old, new=new))


def _folded(name: str) -> str:
    folded = fold_name(name)
    if folded is None:
        raise UsageError(f"{name!r} cannot be the name of a user")
    return folded
