"""Accounts, logins, tokens, and the list of connectors."""

import math

import msgspec

from meshim.errors import BackendUnavailable, Code, DeviceInUse, PeerError, StoreConflict
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.core import (
    ImportPlan,
    LoginThrottle,
    check_device,
    check_password,
    checked_name,
    connector_entries,
    name_taken,
    refusal,
)
from meshim.rest.friends import Friends
from meshim.rest.passwords import Passwords
from meshim.rest.tokens import Tokens
from meshim.runtime import crypto
from meshim.runtime.log import Log
from meshim.stores.ports import Login, User
from meshim.topology import Topology
from meshim.wire import rest


class Sessions:
    """Registers users, logs devices in and out, and authenticates requests by token."""

    def __init__(
        self,
        *,
        backends: Backends,
        notifier: ChangeNotifier,
        friends: Friends,
        passwords: Passwords,
        topology: Topology,
        clock: Clock,
        log: Log,
    ) -> None:
        self._accounts = backends.accounts
        self._cache = backends.cache
        self._leases = backends.leases
        self._notifier = notifier
        self._tokens = Tokens(backends, notifier, topology.limits.devices_per_user)
        self._friends = friends
        self._passwords = passwords
        self._token_ttl_s = topology.timers.token_ttl_s
        self._devices_max = topology.limits.devices_per_user
        self._clock = clock
        self._log = log
        self._throttle = LoginThrottle()
        self._last_connectors: tuple[rest.Connector, ...] = ()

    async def register(self, request: rest.Credentials) -> rest.User:
        """Make an account.  Raises ApiError when the name is invalid or taken, or the password invalid."""
        name = checked_name(request.name)
        check_password(request.password)
        password_hash = await self._passwords.hash(request.password)
        try:
            return _to_wire(await self._accounts.register(name, password_hash))
        except StoreConflict:
            raise name_taken(name) from None

    async def import_users(self, request: rest.Import) -> rest.ImportAnswer:
        """Make many accounts; the answer has a result for each.  Raises ApiError when there are too many in it."""
        plan = ImportPlan(request.users)
        hashes = await self._passwords.hash_all([user.password for user in plan.accepted])
        pairs = [(user.name, password_hash) for user, password_hash in zip(plan.accepted, hashes, strict=True)]
        registered = await self._accounts.register_many(pairs) if pairs else []
        return plan.answer(_to_wire(user) if user else None for user in registered)

    async def login(self, request: rest.LoginRequest, address: str) -> rest.LoginAnswer:
        """Check the password and issue a token.  `address` is the client's: failures are counted by name and address.

        Raises ApiError when the login is refused, and BackendUnavailable as `Tokens.issue`.
        """
        name = checked_name(request.name)
        if request.device is not None:
            check_device(request.device)
        user = await self._authenticated(name, request.password, address)
        # Before the token is committed: if a content key does not open, the device keeps the token that it has.
        relations = await self._friends.relations(user.user_id) if request.device is not None else ()
        token = crypto.new_token()
        now = self._clock()
        expires_at = now + self._token_ttl_s
        epoch = request.epoch if request.device is not None else 0
        try:
            login = await self._tokens.issue(
                user.user_id, request.device, epoch, crypto.hash_token(token), expires_at, now, request.takeover
            )
        except DeviceInUse:
            raise refusal(
                "device_in_use",
                f"{name} uses the device {request.device} with another state file, or took it over with that: use that "
                "file, or log in as another device. A first login may take the device over for good, with `takeover`.",
            ) from None
        except StoreConflict:
            raise refusal(
                "too_many_devices", f"{name} has {self._devices_max} devices already: use one of them."
            ) from None
        answer = rest.LoginAnswer(
            token=crypto.format_token(token),
            expires_at=expires_at,
            user_id=user.user_id,
            name=user.name,
            device_id=login.device,
            epoch=login.epoch,
            mesh=self._friends.mesh,
        )
        if request.device is None:
            return answer
        return msgspec.structs.replace(answer, connectors=await self.connectors(), relations=relations)

    async def _authenticated(self, name: str, password: str, address: str) -> User:
        key = (name, address)
        wait_s = self._throttle.begin(key, self._clock())
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise refusal("slow_down", f"Too many logins as {name}: try again in {seconds} s.", seconds)
        try:
            found = await self._accounts.user(name)
            user, password_hash = found or (None, None)
            if not await self._passwords.verify(password, password_hash) or user is None:
                self._throttle.failed(key, self._clock())
                raise refusal("bad_credentials", "The name or the password is wrong.")
            self._throttle.succeeded(key)
            return user
        finally:
            self._throttle.end(key)

    async def logout(self, token_hash: bytes) -> None:
        """Revoke a token and end its session.  An unknown token is no error (RFC 7009, 2.2).

        Raises BackendUnavailable when the token is still valid, or a cache may accept it: the client must repeat the
        logout.
        """
        (cached,) = await self._cache.logins([token_hash])
        if cached is not None:
            # First: the cache is trusted without the database, so a logout that is interrupted from here on leaves a
            # token that the database decides about.
            await self._cache.drop_logins([token_hash])
        login = await self._accounts.log_out(token_hash) or (cached and cached.login)
        if login is None:
            return  # unknown tokens leave nothing in Redis, however many are tried
        try:
            # Again: if Redis came back with an old dump meanwhile, a connector may have verified the entry there just
            # before the database revoked the token.
            await self._cache.drop_logins([token_hash])
        finally:
            # After the cache has dropped the token, or the device could reconnect with it.
            if login.device:
                await self._notifier.kick(login, Code.LOGGED_OUT, "This device was logged out.")

    async def authenticate(self, authorization: str | None) -> Login:
        """Return the login of an `Authorization` header.  Raises ApiError without a token, or for an invalid one."""
        token_hash = bearer_hash(authorization)
        now = self._clock()
        login = await self._login(token_hash, now)
        if login is None or login.expires_at <= now:
            raise refusal("bad_token", "The token is unknown or has ended: log in again.")
        return login

    async def _login(self, token_hash: bytes, now: float) -> Login | None:
        """The login in the cache, if it was verified there; else the one in the database."""
        try:
            (cached,) = await self._cache.logins([token_hash])
        except BackendUnavailable as error:
            self._log.warning("token cache away", reason=error)
            cached = None
        if cached is not None and cached.verified:
            return cached.login
        return await self._accounts.login(token_hash, now)

    async def connectors(self) -> tuple[rest.Connector, ...]:
        """Return the living connectors; while Redis is unavailable the last list, as clients try one after another."""
        try:
            living = await self._leases.living("connector")
        except BackendUnavailable as error:
            self._log.warning("leases away", reason=error)
        else:
            self._last_connectors = connector_entries(living)
        return self._last_connectors


def bearer_hash(authorization: str | None) -> bytes:
    """Return the hash of the token in an `Authorization` header.  Raises ApiError when it holds none."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise refusal("bad_token", "Log in first: this needs the header `Authorization: Bearer TOKEN`.")
    try:
        return crypto.hash_token(crypto.parse_token(token.strip()))
    except PeerError as error:
        raise refusal("bad_token", error.sentence) from None


def _to_wire(user: User) -> rest.User:
    return rest.User(user.user_id, user.name)
