"""How a committed change reaches the rest of the mesh.

The database is the truth; the steps after a commit only shorten the time until others see it.  First the cache, where
a connector looks when it is notified; then presence; then the notification.  After a crash between two steps, stale
cache entries end with their TTL.  A step whose backend is unavailable is logged and counted, and undoes nothing.

One step must not fail: messages get a copy for each device that presence lists, so a login is not answered before
presence lists its device (adr/0049).
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
    """Updates cache and presence after a commit, and notifies the connectors.  Only `logged_in` raises."""

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

        Raises BackendUnavailable when presence may not list the device: the login has to be repeated.
        """
        if revoked:
            await self._try("revoked tokens", self._cache.drop_logins(revoked))
        await self.kick(login, Code.REPLACED, "the device has logged in again since this connection began")
        await self._try("token", self._cache.put_login(token_hash, login))
        try:
            is_new = await self._list_device(login)
        except BackendUnavailable as error:
            self._failed("devices", error)
            # Connectors that hear of the device write it to presence as soon as they reach it.
            await self._tell((login.user,), Change.DEVICES)
            raise BackendUnavailable(
                "Redis is away, and until it is back messages are not copied for this device: log in again later."
            ) from error
        if is_new:
            await self._tell((login.user,), Change.DEVICES)

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

    async def _list_device(self, login: Login) -> bool:
        """Have presence and the cache list the devices of a user; return whether either did not.

        Raises BackendUnavailable.
        """
        user = login.user
        # Before the database is read: a device that presence lists now and the database does not have was deleted.  The
        # other way round, another process may have registered it meanwhile.
        entry = (await self._presence.lookup([user])).get(user)
        (cached,) = await self._cache.accounts([user])
        # A connector whose clock is ahead may have cached what it had read before: its `as_of` must not win.
        account = await self._put_account(user, cached.as_of if cached is not None else 0.0)
        if account is None:
            return False
        listed = set(entry.devices) if entry is not None and entry.bindings else set(account.devices)
        if listed == set(account.devices) and cached is not None and cached.devices == account.devices:
            return False  # nearly every login is from a device that is in the lists already
        await self._presence.update_devices(user, account.devices, tuple(listed.difference(account.devices)))
        return True

    async def _put_account(self, user: int, not_before: float = 0.0) -> Account | None:
        as_of = max(self._clock(), not_before)
        account = (await self._accounts.accounts([user], as_of)).get(user)
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
            self._failed(what, error)

    def _failed(self, what: str, error: BackendUnavailable) -> None:
        self.statistics.notify_failures += 1
        self._log.warning("change not notified", what=what, reason=error)
