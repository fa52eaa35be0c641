"""Issues tokens.  A device that gets one loses its earlier ones, in an order that no outage or crash makes unsafe.

A device belongs to the state file that logged in last, by its epoch.  Another state file gets the device only when it
asks to take it over, which it does once, at its first login: so the loser of a takeover does not take the device back
by itself, whether it was connected or not (H11, adr/0034).

Connectors and this service trust the cache.  A token that is revoked in the database and still in the cache would let
the application with the old state file in again, and take binding and messages from the new one (R14).  So earlier
tokens leave the cache first.  Until the login is committed they are still valid: a token that is not in the cache is
looked up in the database.
"""

from meshim.errors import BackendUnavailable, DeviceInUse
from meshim.rest.backends import Backends
from meshim.rest.change_notifier import ChangeNotifier
from meshim.stores.ports import Login


class Tokens:
    """Issues tokens for devices, and tokens for REST alone."""

    def __init__(self, backends: Backends, notifier: ChangeNotifier, devices_max: int) -> None:
        """`devices_max` is per user: so many devices, and so many tokens for REST alone."""
        self._accounts = backends.accounts
        self._cache = backends.cache
        self._notifier = notifier
        self._devices_max = devices_max

    async def issue(
        self,
        user_id: int,
        device: str | None,
        epoch: int,
        token_hash: bytes,
        expires_at: float,
        now: float,
        takeover: bool = False,
    ) -> Login:
        """Register the device, or log it in again; with `takeover` also one that has the epoch of another state file.

        Returns the login that the token stands for; the earlier session of the device ends.  Raises DeviceInUse and
        StoreConflict as `Accounts.log_in`, and BackendUnavailable when the database is unavailable, or, for a device,
        when Redis is: a later try may succeed.
        """
        if device is not None:
            tokens = await self._accounts.tokens(user_id, device)
            if not takeover and any(each != epoch for each in tokens.values()):
                # Before anything is evicted: this login must cost the state file that has the device nothing.
                raise DeviceInUse(f"{device} has logged in with another state file.")
            await self._evict(tuple(tokens))
        found, revoked = await self._accounts.log_in(
            user_id, device, epoch, token_hash, expires_at, now, self._devices_max, takeover
        )
        login = Login(user_id, found.device_id, found.epoch, expires_at)
        if device is not None:  # connectors never see a token for REST alone, so the cache need not hold it
            # All that were revoked: another login of the device may have been committed after `_evict`.
            await self._notifier.logged_in(token_hash, login, revoked)
        return login

    async def _evict(self, token_hashes: tuple[bytes, ...]) -> None:
        if not token_hashes:
            return
        try:
            await self._cache.drop_logins(token_hashes)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                "Redis is away, and until it is back the last login of this device cannot be ended: try again later."
            ) from error
