"""The login of a device: made with REST, kept in the state file, renewed when it ends; and requests that need it."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from meshim.client.identity import Identity
from meshim.client.rest import Api
from meshim.client.state import StateFile
from meshim.client.state_lock import check_folder
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, Code, PeerError, Refused, UsageError, one_line
from meshim.protocol.names import fold_name
from meshim.runtime.crypto import format_token, parse_token
from meshim.wire.codec import decoder, encode
from meshim.wire.rest import Connector, LoginAnswer, Relation

_CONNECTORS_TIMEOUT_S = 2.0
"""For the list of connectors; a reconnect uses the last list when REST takes longer."""
_EXPIRY_MARGIN_S = 60.0
"""A token that expires within this time counts as expired."""

_T = TypeVar("_T")
_random = secrets.SystemRandom()


class Credentials(NamedTuple):
    """`password` may be a function that returns it; it is called, in a thread, when a login is needed."""

    name: str
    password: str | Callable[[], str]
    device: str

    async def reveal(self) -> str:
        """Return the password."""
        return self.password if isinstance(self.password, str) else await asyncio.to_thread(self.password)


class _Login(msgspec.Struct):
    """The entry `login` of the state file."""

    api: str
    name: str
    device: str
    user_id: int
    device_id: int
    token: bytes
    expires_at: float
    connectors: tuple[Connector, ...]
    mesh: str = ""


_decode: Callable[[bytes], _Login] = decoder(_Login)


def _decoded(login: bytes, path: Path) -> _Login:
    try:
        return _decode(login)
    except msgspec.DecodeError as error:
        raise UsageError(f"The login in the state file {path} is damaged: {one_line(error)}.") from error


class Session:
    """The login of one state file, and the REST requests that need its token.

    `lock` is held while a thread uses the file, so that the event loop never waits for the disk.
    """

    def __init__(self, api: Api, state: StateFile, credentials: Credentials) -> None:
        self.lock = asyncio.Lock()
        self.on_relations: Callable[[Sequence[Relation]], None] | None = None
        """Called with the relations in the answer of a login, once they are in the state file."""
        self._api = api
        self._state = state
        self._credentials = credentials
        self._login: _Login | None = None
        self._logging_in = asyncio.Lock()
        self._opened = False
        self._ask_not_before = 0.0
        """When the service may be asked for connectors again, by the clock of the loop."""

    @property
    def name(self) -> str:
        """The name of the user, as the service spells it."""
        return self._current.name

    @property
    def user_id(self) -> int:
        """The id of the user."""
        return self._current.user_id

    @property
    def _current(self) -> _Login:
        assert self._login is not None, "open() comes first"
        return self._login

    async def open(self) -> Identity:
        """Use the login in the file, or log in; returns the ids of the device.

        Raises UsageError when the file belongs to another user or device, ApiError when the login is refused, Refused
        when another state file took the device over, and BackendUnavailable when the file holds no login and the
        service is unavailable.
        """
        stored = self._state.get("login")
        if stored is not None:
            self._login = _decoded(stored, self._state.path)
            self._api.token = format_token(self._login.token)
            name, _, device = self._credentials
            if (self._login.name, self._login.device) != (fold_name(name), device):
                raise UsageError(
                    f"This state file is of {self._login.name} on {self._login.device}, "
                    f"not of {name} on {device}: give each device a file of its own."
                )
        if self._login is None or self._login.expires_at <= time.time() + _EXPIRY_MARGIN_S:
            try:
                await self._log_in(None if self._login is None else self._login.token)
            except (ApiError, BackendUnavailable) as error:
                if self._login is None or (isinstance(error, ApiError) and not error.temporary):
                    raise
                # The ids in the file still hold.  A connector will refuse the token: that is when to log in again.
        self._opened = True
        return Identity(self._current.user_id, self._current.device_id, self._state.epoch)

    async def _log_in(self, instead_of: bytes | None) -> None:
        """Get a token in place of this one, unless another task already has."""
        async with self._logging_in:
            before = self._login
            if before is not None and before.token != instead_of:
                return
            answer = await self._answer(takeover=before is None)
            if before is not None and (before.user_id, before.mesh) != (answer.user_id, answer.mesh):
                raise UsageError(
                    f"{self._state.path} is of another mesh, or of this one before its data was deleted: "
                    "remove it, or use another state file."
                )
            self._login = self._login_of(answer)
            await self._persist()
            await self.persist_relations(answer.relations)
            if self.on_relations is not None:
                self.on_relations(answer.relations)
            if before is not None and before.device_id != answer.device_id and self._opened:
                raise ClientClosed("The server had forgotten this device and registered it anew: open a new client.")

    async def _answer(self, *, takeover: bool) -> LoginAnswer:
        """The answer to a login.  Only a file without a login may take the device over, and so never takes it back."""
        name, _, device = self._credentials
        try:
            return await self._api.login(
                name, await self._credentials.reveal(), device, self._state.epoch, takeover=takeover
            )
        except ApiError as error:
            if error.code != "device_in_use":
                raise
            raise Refused(
                Code.REPLACED,
                f"The device {device} of {name} was taken over with another state file: use that one, or be another "
                f"device with a new file.  What {self._state.path} holds stays as it is.",
            ) from error

    def _login_of(self, answer: LoginAnswer) -> _Login:
        return _Login(
            api=self._api.base_url,
            name=answer.name,
            device=self._credentials.device,
            user_id=answer.user_id,
            device_id=answer.device_id,
            token=parse_token(answer.token),
            expires_at=answer.expires_at,
            connectors=answer.connectors,
            mesh=answer.mesh,
        )

    async def _persist(self) -> None:
        async with self.lock:
            await asyncio.to_thread(self._state.put, "login", encode(self._login))

    async def persist_relations(self, relations: Sequence[Relation]) -> None:
        """Write the names, relations and keys into the state file."""
        peers = [(relation.peer.user_id, relation.peer.name, relation.state) for relation in relations]
        keys = [(relation.peer.user_id, key.version, key.key) for relation in relations for key in relation.keys]
        async with self.lock:
            await asyncio.to_thread(self._state.put_peers, peers, keys)

    # ---------------------------------------------------------------- for the connection

    async def token(self, refused: bytes | None) -> bytes:
        """Return the token to greet with; log in first when the current token is the one a connector refused."""
        if refused is not None:
            await self._log_in(refused)
        return self._current.token

    async def connectors(self, fresh: bool) -> Sequence[Connector]:
        """Return the connectors to choose from: the last list, or with `fresh` a new one, if REST answers in time.

        While REST has told this client to wait (Retry-After), it is not asked: the last list may do.

        Raises PeerError when the service refuses our token.
        """
        loop = asyncio.get_running_loop()
        if fresh and loop.time() >= self._ask_not_before:
            try:
                async with asyncio.timeout(_CONNECTORS_TIMEOUT_S):
                    found = await self._api.connectors()
            except (BackendUnavailable, TimeoutError):
                pass  # the last list may still be right
            except ApiError as error:
                if error.status == 401:
                    # Report it as a connector does, so that what follows is decided in one place.
                    raise PeerError(Code.BAD_TOKEN, error.sentence) from error
                if not error.temporary:
                    raise
                wait_s = (error.retry_after_s or 0.0) * _random.uniform(1.0, 1.5)  # others were told the same
                self._ask_not_before = loop.time() + wait_s
            else:
                if found and found != self._current.connectors:  # empty: Redis has lost the leases
                    self._current.connectors = found
                    await self._persist()
        return self._current.connectors

    # ---------------------------------------------------------------- for the contacts

    async def relation(self, name: str) -> Relation:
        """As `Api.relation`."""
        return await self.authorized(lambda api: api.relation(name))

    async def relations(self, user_id: int | None = None) -> Sequence[Relation]:
        """As `Api.relations`."""
        return await self.authorized(lambda api: api.relations(user_id))

    async def authorized(self, request: Callable[[Api], Awaitable[_T]]) -> _T:
        """Return the answer to a request, repeated after a new login when the service refuses the token."""
        token = self._current.token
        try:
            return await request(self._api)
        except ApiError as error:
            if error.status != 401:
                raise
        await self._log_in(token)
        return await request(self._api)


async def opened(path: Path) -> StateFile:
    """Open the state file in a thread.  A thread cannot be cancelled: a file opened too late is closed again."""
    opening = asyncio.ensure_future(asyncio.to_thread(StateFile, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: asyncio.Future[StateFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def stored_token(path: Path) -> str | None:
    """Return the token in a state file, as REST writes it; None when it has none, or only an expired one.

    Raises UsageError when another process uses the file, it is no state file, or there is no folder for it.
    """
    check_folder(path)
    if not path.exists():
        return None
    state = StateFile(path)
    try:
        stored = state.get("login")
    finally:
        state.close()
    login = None if stored is None else _decoded(stored, path)
    if login is None or login.expires_at <= time.time() + _EXPIRY_MARGIN_S:
        return None
    return format_token(login.token)
