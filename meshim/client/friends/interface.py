"""The methods of `Client` for friends, their presence, and typing."""

from meshim.client import events as e
from meshim.client.friends.contacts import Contacts
from meshim.client.friends.presence import PresencePoller
from meshim.client.friends.relations import Friend, Relations
from meshim.client.public_events import Presence
from meshim.runtime.driver import Driver
from meshim.wire.envelope import Destination, DestinationType


class FriendsInterface:
    """Friends of one user.

    Where a method asks the REST service, it raises ApiError when the service refuses (`code` says why, as
    docs/rest.md lists them), BackendUnavailable when it does not answer, or the error that ended the client.
    """

    _contacts: Contacts
    _relations: Relations
    _presence: PresencePoller
    _driver: Driver[e.Event, e.Action]

    def _check(self) -> None:
        """Raise the error that ended the client."""
        raise NotImplementedError

    # ---------------------------------------------------------------- relations

    async def friends(self) -> list[Friend]:
        """Ask the REST service for all relations, and return those that have not ended, sorted by name.

        `state` is `friends`; `asked` by the other user, which `accept` or `refuse` answers; `requested` by this user;
        or `blocked` by this user.  Raises as above.
        """
        self._check()
        return await self._relations.friends()

    async def add(self, name: str) -> Friend:
        """Ask a user for friendship, or accept that user's request if there is one.  Raises as above."""
        self._check()
        return await self._relations.change(lambda api: api.request(name))

    async def accept(self, name: str) -> Friend:
        """Accept a request for friendship; ApiError `not_asked` where there is none.  Raises as above."""
        self._check()
        return await self._relations.change(lambda api: api.accept(name))

    async def refuse(self, name: str) -> None:
        """Refuse a request for friendship; the user may ask again.  Raises as above."""
        self._check()
        await self._relations.end(name, lambda api: api.refuse(name))

    async def remove(self, name: str) -> None:
        """End a friendship, or withdraw a request.  Raises as above."""
        self._check()
        await self._relations.end(name, lambda api: api.remove(name))

    async def block(self, name: str) -> Friend:
        """End any relation to this user, who cannot ask again until `unblock`.  Raises as above."""
        self._check()
        return await self._relations.change(lambda api: api.block(name))

    async def unblock(self, name: str) -> Friend:
        """Let this user ask for friendship again; the two are not friends then.  Raises as above."""
        self._check()
        return await self._relations.change(lambda api: api.unblock(name))

    async def check_friend(self, name: str) -> None:
        """Return if this user is a friend, to whom messages can be sent.

        Raises Refused when the user is no friend, is oneself or does not exist, BackendUnavailable when that must be
        fetched and the REST service is unavailable, or the error that ended the client.
        """
        self._check()
        await self._contacts.key_for(name)

    # ---------------------------------------------------------------- presence and typing

    def watch(self, *names: str) -> None:
        """Have PresenceChanged come for these friends while there is a reader of `events` and a connection.

        Watch those whom the user looks at, not all: the REST service is asked for them every 10 s
        (`ClientOptions.presence_poll_s`).  Raises UsageError for what cannot be a name, and beyond 500 friends.
        """
        self._check()
        self._presence.watch(names)

    def unwatch(self, *names: str) -> None:
        """Ask for these friends no more; `presence` of them is `unknown` from now on.

        Raises UsageError for what cannot be a name.
        """
        self._check()
        self._presence.unwatch(names)

    def presence(self, name: str) -> Presence:
        """Return what the latest PresenceChanged of this friend said: `online`, `offline`, or `unknown`.

        Raises UsageError for what cannot be a name.
        """
        return self._presence.presence(name)

    async def typing(self, name: str) -> None:
        """Tell the devices of a friend that this user types a message now; call it with each keystroke.

        It is sent at most once in 3 s (`ClientOptions.typing_every_s`), and dropped without a connection: typing is
        not kept or sent again, and none is received by friends who are away.  Raises as `check_friend`.
        """
        self._check()
        user, _, _ = await self._contacts.key_for(name)
        self._driver.receive(e.UserTyped(Destination(DestinationType.USER, user)))
