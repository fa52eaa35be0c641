"""Accounts, logins and tokens."""

import hmac

import msgspec

from meshim.errors import ApiError, Code, DeviceInUse, NoSuchInvite, PeerError, StoreConflict
from meshim.rest.admission.password_queue import Lane, Place
from meshim.rest.admission.passwords import KnownAddresses, Passwords
from meshim.rest.admission.throttle import SharedThrottle, login_buckets, registration_buckets
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.connectors import ConnectorDirectory
from meshim.rest.core import (
    ImportPlan,
    bad_token,
    check_device,
    check_password,
    checked_name,
    in_words,
    name_taken,
    refusal,
)
from meshim.rest.friends import Friends
from meshim.rest.tokens import Tokens
from meshim.runtime import crypto
from meshim.runtime.crypto import MasterKey
from meshim.runtime.log import Log
from meshim.runtime.websocket.admission import network_of
from meshim.stores.ports import Login, Outcome, User
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
        directory: ConnectorDirectory,
        passwords: Passwords,
        master: MasterKey,
        topology: Topology,
        clock: Clock,
        log: Log,
    ) -> None:
        self._accounts = backends.accounts
        self._cache = backends.cache
        self._notifier = notifier
        self._tokens = Tokens(backends, notifier, topology.limits.devices_per_user)
        self._friends = friends
        self._directory = directory
        self._passwords = passwords
        self._master = master
        self._topology = topology
        self._token_ttl_s = topology.timers.token_ttl_s
        self._devices_max = topology.limits.devices_per_user
        self._clock = clock
        self._log = log
        self._throttle = SharedThrottle(backends.throttle, clock, log, notifier.statistics)
        self._known_addresses = KnownAddresses()

    async def register(self, request: rest.Registration, address: str | None) -> rest.User:
        """Make an account.  `address` is the client's, None for this machine, from where no limit counts.

        Raises ApiError when the name is invalid or taken, the password invalid, or this client may not register.
        """
        if self._topology.registration == "closed":
            raise refusal(
                "registration_closed", "Registration is closed: ask the operator of this mesh for an account."
            )
        name = checked_name(request.name)
        check_password(request.password)
        if address is None:
            return await self._register(name, request, "")
        network = network_of(address).hex()
        buckets = registration_buckets(network, self._topology)
        async with self._throttle.attempt(buckets) as attempt:
            if attempt.wait_s > 0:
                sentence = f"Too many people register here: try again in {in_words(attempt.wait_s)}."
                raise refusal("slow_down", sentence, attempt.wait_s)
            attempt.outcome = Outcome.FAILED  # each counts: one that is refused has told which name is taken
            return await self._register(name, request, network)

    async def _register(self, name: str, request: rest.Registration, network: str) -> rest.User:
        invite = crypto.hash_invite(request.invite or "") if self._topology.registration == "invite" else None
        if invite is not None and not await self._accounts.invited(invite, self._clock()):
            raise _bad_invite(request)  # before the hash of the password is computed
        password_hash = await self._passwords.hash(request.password, Place(Lane.STRANGER, network))
        try:
            if invite is None:
                return _to_wire(await self._accounts.register(name, password_hash))
            return _to_wire(await self._accounts.register_invited(name, password_hash, invite, self._clock()))
        except NoSuchInvite:
            raise _bad_invite(request) from None
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
        """Check the password and issue a token.  `address` is the client's: failures are counted (`login_buckets`).

        Raises ApiError when the login is refused, and BackendUnavailable as `Tokens.issue`.
        """
        name = checked_name(request.name)
        if request.device is not None:
            check_device(request.device)
        user = await self._authenticated(name, request, address)
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
        proof = self._master.device_proof(name, request.device, login.epoch)
        connectors = await self._directory.entries()
        return msgspec.structs.replace(answer, connectors=connectors, relations=relations, proof=proof)

    async def _authenticated(self, name: str, request: rest.LoginRequest, address: str) -> User:
        network, proof, now = network_of(address).hex(), self._proof(name, request), self._clock()
        place = Place(Lane.DEVICE, network) if proof else self._known_addresses.place(network, now)
        buckets = login_buckets(name, network, proof, self._topology)
        async with self._throttle.attempt(buckets) as attempt:
            if attempt.wait_s > 0:
                sentence = f"Too many logins as {name}, or from this address: try again in {in_words(attempt.wait_s)}."
                raise refusal("slow_down", sentence, attempt.wait_s)
            async with self._passwords.turn(place):  # before the database is asked: a flood must not wait there instead
                found = await self._accounts.user(name)
                user, password_hash = found or (None, None)
                right = await self._passwords.verify(request.password, password_hash)
            if not right or user is None:
                attempt.outcome = Outcome.FAILED
                raise refusal("bad_credentials", "The name or the password is wrong.")
            attempt.outcome = Outcome.SUCCEEDED
            self._known_addresses.add(network, now)
            return user

    def _proof(self, name: str, request: rest.LoginRequest) -> str | None:
        """The proof in a request, if it is the one that this device got at an earlier login."""
        if not request.proof or request.device is None:
            return None
        right = self._master.device_proof(name, request.device, request.epoch)
        return right if hmac.compare_digest(right.encode(), request.proof.encode()) else None

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
        """Return the login of an `Authorization` header.  Raises ApiError without a token, or for an invalid one.

        Raises BackendUnavailable when the database is away and no cache knows the token.
        """
        token_hash = bearer_hash(authorization)
        now = self._clock()
        logins, away = await self._directory.logins([token_hash], now)
        login = logins.get(token_hash)
        if login is None and away is not None:
            raise away
        if login is None or login.expires_at <= now:
            raise bad_token()
        return login


def bearer_hash(authorization: str | None) -> bytes:
    """Return the hash of the token in an `Authorization` header.  Raises ApiError when it holds none."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise refusal("bad_token", "Log in first: this needs the header `Authorization: Bearer TOKEN`.")
    try:
        return crypto.hash_token(crypto.parse_token(token.strip()))
    except PeerError as error:
        raise refusal("bad_token", error.sentence) from None


def _bad_invite(request: rest.Registration) -> ApiError:
    if request.invite is None:
        return refusal("bad_invite", "Registration needs an invite: ask the operator of this mesh for a code.")
    return refusal("bad_invite", "This invite is unknown, used or over: ask the operator of this mesh for another one.")


def _to_wire(user: User) -> rest.User:
    return rest.User(user.user_id, user.name)
