"""A device gets a token, and loses those it had, in an order that an outage or a crash at any point leaves harmless.

Connectors and this service believe the cache.  A token that the database has revoked and the cache still knows would
let the application on the old state file in again, and take binding and messages from the new one (R14).  So the cache
forgets first: a token that is hidden there is asked for in the database, where it is good until the login is committed.
"""

from meshim.errors import BackendUnavailable
from meshim.rest.backends import Backends
from meshim.rest.change_notifier import ChangeNotifier
from meshim.stores.ports import Login


class Tokens:
    """Gives out tokens."""

    def __init__(self, backends: Backends, notifier: ChangeNotifier, most_devices: int) -> None:
        """A user has `most_devices` at most, and as many tokens for REST alone."""
        self._accounts = backends.accounts
        self._cache = backends.cache
        self._notifier = notifier
        self._most_devices = most_devices

    async def give(
        self, user_id: int, device: str | None, epoch: int, token_hash: bytes, expires_at: float, now: float
    ) -> Login:
        """Register the device, or take it over with this epoch; returns what the token stands for.

        Raises StoreConflict as `Accounts.log_in`, and BackendUnavailable when the database is away, or Redis is and the
        device has tokens: try again then.
        """
        if device is not None:
            await self._hide(await self._accounts.tokens(user_id, device))
        found, revoked = await self._accounts.log_in(
            user_id, device, epoch, token_hash, expires_at, now, self._most_devices
        )
        login = Login(user_id, found.device_id, found.epoch, expires_at)
        if device is not None:  # no connector will ever ask for another token, so no cache has to know it
            # All that were revoked, as another login of the device may have come between.
            await self._notifier.logged_in(token_hash, login, revoked)
        return login

    async def _hide(self, token_hashes: tuple[bytes, ...]) -> None:
        if not token_hashes:
            return  # a new device needs no Redis
        try:
            await self._cache.drop_logins(token_hashes)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                "Redis is away, and until it is back the last login of this device cannot be ended: try again later."
            ) from error
