"""How a committed change reaches the rest of the mesh.

The database is the truth; the steps after a commit only shorten the time until others see it.  First the cache, where
a connector looks when it is notified; then presence; then the notification.  After a crash between two steps, stale
cache entries end with their TTL.  A step whose backend is unavailable is logged and counted, and undoes nothing.
"""

from collections.abc import Awaitable, Sequence

from meshim.errors import BackendUnavailable, Code
from meshim.rest.backends import Backends, Clock
from meshim.rest.statistics import Statistics
from meshim.runtime.log import Log
from meshim.stores.ports import Account, Login
from meshim.wire.client import Change
from meshim.wire.notification import AccountChanged, Kick


class ChangeNotifier:
    """Updates cache and presence after a commit, and notifies the connectors.  Its methods never raise."""

    def __init__(self, backends: Backends, clock: Clock, log: Log) -> None:
        self._accounts = backends.accounts
        self._cache = backends.cache
        self._presence = backends.presence
        self._notifications = backends.notifications
        self._clock = clock
        self._log = log
        self.statistics = Statistics()

    async def logged_in(self, token_hash: bytes, login: Login, revoked: Sequence[bytes]) -> None:
        """A device got a new token in place of the revoked ones, and may be new itself.

        Its earlier session ends now, not when the new one greets: what it acknowledged until then would be marked read,
        and the state file that has just logged in would never get it.
        """
        if revoked:
            await self._try("revoked tokens", self._cache.drop_logins(revoked))
        await self.kick(login, Code.REPLACED, "the device has logged in again since this connection began")
        await self._try("token", self._cache.put_login(token_hash, login))
        await self._try("devices", self._update_devices(login.user))

    async def friends_changed(self, users: tuple[int, int]) -> None:
        """These two users became friends, or ended their friendship."""
        for user in users:
            await self._try("friends", self._put_account(user))
        await self._tell(users, Change.RELATIONS | Change.KEYS)

    async def request_changed(self, users: tuple[int, ...]) -> None:
        """These users see another state of a request, or of a block of theirs: no account changed."""
        await self._tell(users, Change.RELATIONS)

    async def _tell(self, users: tuple[int, ...], what: Change) -> None:
        await self._try("notification", self._notifications.tell_all(AccountChanged(users, int(what))))

    async def kick(self, login: Login, code: int, sentence: str) -> None:
        """End the session of a device, on whichever connector it is."""
        await self._try("kick", self._kick(login, code, sentence))

    async def _update_devices(self, user: int) -> None:
        # Before the database is read: a device that presence lists now and the database does not have was deleted.  The
        # other way round, another process may have registered it meanwhile.
        entry = (await self._presence.lookup([user])).get(user)
        (cached,) = await self._cache.accounts([user])
        account = await self._put_account(user)
        if account is None:
            return
        listed = set(entry.devices) if entry is not None and entry.bindings else set(account.devices)
        if listed == set(account.devices) and cached is not None and cached.devices == account.devices:
            return  # nearly every login is from a device that is in the lists already
        await self._presence.update_devices(user, account.devices, tuple(listed.difference(account.devices)))
        await self._notifications.tell_all(AccountChanged((user,), int(Change.DEVICES)))

    async def _put_account(self, user: int) -> Account | None:
        account = (await self._accounts.accounts([user], self._clock())).get(user)
        if account is not None:
            await self._cache.put_accounts([account])
        return account

    async def _kick(self, login: Login, code: int, sentence: str) -> None:
        entry = (await self._presence.lookup([login.user])).get(login.user)
        for binding in entry.bindings if entry else ():
            if binding.device == login.device:
                notification = Kick(
                    user=login.user, device=login.device, session=binding.session, code=code, sentence=sentence
                )
                await self._notifications.tell(binding.incarnation, notification)

    async def _try(self, what: str, call: Awaitable[object]) -> None:
        try:
            await call
        except BackendUnavailable as error:
            self.statistics.notify_failures += 1
            self._log.warning("change not notified", what=what, reason=error)
