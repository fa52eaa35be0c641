"""How a committed change reaches the rest of the mesh.

The database is the truth.  What follows a commit only makes others see it sooner, so it
is done in an order that a crash at any point leaves to the lifetimes of caches: first the
cache (a connector that is told looks there), then presence, then the notification.  A backend that
is away is logged and counted, and does not undo what is committed.
"""

from collections.abc import Awaitable, Sequence

from meshim.errors import BackendUnavailable
from meshim.rest.backends import Backends, Clock
from meshim.runtime.log import Log
from meshim.stores.ports import Account, Login
from meshim.wire.notification import AccountChanged, Kick


class ChangeNotifier:
    """Tells the mesh what was committed.  `failures` counts what did not get through."""

    def __init__(self, backends: Backends, clock: Clock, log: Log) -> None:
        self._accounts = backends.accounts
        self._cache = backends.cache
        self._presence = backends.presence
        self._notifications = backends.notifications
        self._clock = clock
        self._log = log
        self.failures = 0

    async def logged_in(self, token_hash: bytes, login: Login, revoked: Sequence[bytes]) -> None:
        """A device got a new token, and perhaps is new itself."""
        if revoked:
            await self._try("revoked tokens", self._cache.drop_logins(revoked))
        await self._try("token", self._cache.put_login(token_hash, login))
        await self._try("devices", self._devices_of(login.user))

    async def friends_changed(self, users: tuple[int, int]) -> None:
        """These two became friends, or ended it."""
        for user in users:
            await self._try("friends", self._put_account(user))
        await self._try("notification", self._notifications.tell_all(AccountChanged(users)))

    async def kick(self, login: Login, code: int, sentence: str) -> None:
        """Close the session of a device, wherever it is."""
        await self._try("kick", self._kick(login, code, sentence))

    async def _devices_of(self, user: int) -> None:
        (cached,) = await self._cache.accounts([user])
        account = await self._put_account(user)
        if account is None or (cached is not None and cached.devices == account.devices):
            return  # nearly every login is of a device that all know
        await self._presence.set_devices(user, account.devices)
        await self._notifications.tell_all(AccountChanged((user,)))

    async def _put_account(self, user: int) -> Account | None:
        account = (await self._accounts.accounts([user], self._clock())).get(user)
        if account is not None:
            await self._cache.put_accounts([account])
        return account

    async def _kick(self, login: Login, code: int, sentence: str) -> None:
        entry = (await self._presence.lookup([login.user])).get(login.user)
        for binding in entry.bindings if entry else ():
            if binding.device == login.device:
                notification = Kick(login.user, login.device, binding.session, code, sentence)
                await self._notifications.tell(binding.incarnation, notification)

    async def _try(self, what: str, call: Awaitable[object]) -> None:
        try:
            await call
        except BackendUnavailable as error:
            self.failures += 1
            self._log.warning("not spread", what=what, reason=error)
