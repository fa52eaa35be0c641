"""Who a device is: its login, kept in the state file, and where it may connect."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from meshim.client.core import Identity
from meshim.client.rest import Api
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, Code, PeerError, UsageError
from meshim.protocol.names import fold_name
from meshim.runtime.crypto import format_token, open_sealed, parse_token, seal
from meshim.wire.envelope import associated_data, decode_envelope, encode_envelope
from meshim.wire.rest import Connector, LoginAnswer, Relation

_ASK_S = 2.0
"""How long a reconnect waits for the list of connectors, before it makes do with the last one."""
_SOON_S = 60.0
"""A token that ends within this time is as good as ended."""

_T = TypeVar("_T")


class Credentials(NamedTuple):
    """`password` may be a function that asks for it: it is called when a login is needed."""

    name: str
    password: str | Callable[[], str]
    device: str

    async def reveal(self) -> str:
        return self.password if isinstance(self.password, str) else await asyncio.to_thread(self.password)


class _Login(msgspec.Struct):
    """What the state file keeps of a login."""

    api: str
    name: str
    device: str
    user_id: int
    device_id: int
    token: bytes
    expires_at: float
    connectors: tuple[Connector, ...]
    mesh: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Login).decode


class Session:
    """The login of one state file, and what only those ask who are logged in.

    `lock` is held while the file is written: so that nothing on the event loop has to wait for the disk.
    """

    def __init__(self, api: Api, state: StateFile, credentials: Credentials) -> None:
        self.lock = asyncio.Lock()
        self.on_relations: Callable[[Sequence[Relation]], None] | None = None
        """Gets what a login said of friends; it is in the state file already."""
        self._api = api
        self._state = state
        self._credentials = credentials
        self._login: _Login | None = None
        self._logging_in = asyncio.Lock()
        self._opened = False

    @property
    def name(self) -> str:
        """Our name, as the service writes it."""
        return self._known.name

    @property
    def user_id(self) -> int:
        return self._known.user_id

    @property
    def _known(self) -> _Login:
        assert self._login is not None, "open() comes first"
        return self._login

    async def open(self) -> Identity:
        """Go on with the login in the file, or log in.

        Raises UsageError when the file is another user's or device's, ApiError when the login is refused, and
        BackendUnavailable when there is no login to go on with and the service is away.
        """
        kept = self._state.get("login")
        if kept is not None:
            self._login = _decode(kept)
            self._api.token = format_token(self._login.token)
            name, _, device = self._credentials
            if (self._login.name, self._login.device) != (fold_name(name), device):
                raise UsageError(
                    f"this state file is of {self._login.name} on {self._login.device}, "
                    f"not of {name} on {device}: give each device a file of its own"
                )
        if self._login is None or self._login.expires_at <= time.time() + _SOON_S:
            try:
                await self._log_in(None if self._login is None else self._login.token)
            except (ApiError, BackendUnavailable) as error:
                if self._login is None or (isinstance(error, ApiError) and not error.temporary):
                    raise
                # The file says who we are: connectors will refuse the token, and that is when we log in.
        self._opened = True
        return Identity(self._known.user_id, self._known.device_id, self._state.epoch)

    async def _log_in(self, instead_of: bytes | None) -> None:
        """Get a token in place of this one, unless another task has by now."""
        async with self._logging_in:
            before = self._login
            if before is not None and before.token != instead_of:
                return
            name, _, device = self._credentials
            answer = await self._api.login(name, await self._credentials.reveal(), device, self._state.epoch)
            if before is not None and (before.user_id, before.mesh) != (answer.user_id, answer.mesh):
                raise UsageError(
                    f"{self._state.path} is of another mesh, or of this one before its data was deleted: "
                    "remove it, or use another state file"
                )
            self._login = self._login_of(answer)
            await self._keep()
            await self.keep_relations(answer.relations)
            if self.on_relations is not None:
                self.on_relations(answer.relations)
            if before is not None and before.device_id != answer.device_id and self._opened:
                raise ClientClosed("the server had forgotten this device and registered it anew: open the client again")

    def _login_of(self, answer: LoginAnswer) -> _Login:
        return _Login(
            self._api.base_url, answer.name, self._credentials.device, answer.user_id, answer.device_id,
            parse_token(answer.token), answer.expires_at, answer.connectors, answer.mesh,
        )  # fmt: skip

    async def _keep(self) -> None:
        async with self.lock:
            await asyncio.to_thread(self._state.put, "login", _encode(self._login))

    async def keep_relations(self, relations: Sequence[Relation]) -> None:
        """Put names and keys into the state file."""
        peers = [(relation.peer.user_id, relation.peer.name, relation.state) for relation in relations]
        keys = [(relation.peer.user_id, key.version, key.key) for relation in relations for key in relation.keys]
        async with self.lock:
            await asyncio.to_thread(self._state.put_peers, peers, keys)

    # ---- for the connection

    async def token(self, refused: bytes | None) -> bytes:  # the callback of Connection
        """What to greet with; after a new login if it is what a connector has refused."""
        if refused is not None:
            await self._log_in(refused)
        return self._known.token

    async def connectors(self, fresh: bool) -> Sequence[Connector]:  # the callback of Connection
        """Where to connect; asks the REST service if `fresh`, and makes do with the last answer when it is away.

        Raises PeerError when the service refuses our token.
        """
        if fresh:
            try:
                async with asyncio.timeout(_ASK_S):
                    found = await self._api.connectors()
            except (BackendUnavailable, TimeoutError):
                pass  # the list we have may still be right
            except ApiError as error:
                if error.status == 401:
                    # The same verdict as a connector's: who took this device over must not be ousted in turn.
                    raise PeerError(Code.BAD_TOKEN, error.sentence) from error
                if not error.temporary:
                    raise
            else:
                if found and found != self._known.connectors:  # none: the service has lost sight of them
                    self._known.connectors = found
                    await self._keep()
        return self._known.connectors

    # ---- for people

    async def relation(self, name: str) -> Relation:
        """Raises as `Api.relation`."""
        return await self._asked(lambda: self._api.relation(name))

    async def relations(self) -> Sequence[Relation]:
        """Raises as `Api.relations`."""
        return await self._asked(self._api.relations)

    async def _asked(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """The answer to a request; after a new login if our token has ended."""
        token = self._known.token
        try:
            return await ask()
        except ApiError as error:
            if error.status != 401:
                raise
        await self._log_in(token)
        return await ask()


def kept_login(path: Path) -> str | None:
    """The token that a state file keeps, as REST writes it; None when it keeps none that lasts.

    Raises UsageError when another process has the file, or it is no state file.
    """
    if not path.exists():
        return None
    state = StateFile(path)
    try:
        kept = state.get("login")
    finally:
        state.close()
    login = None if kept is None else _decode(kept)
    if login is None or login.expires_at <= time.time() + _SOON_S:
        return None
    return format_token(login.token)


def readdress(state: StateFile, identity: Identity) -> bool:
    """Whether messages of an earlier device were found in the outbox; they are this device's now.

    A device that was idle for too long is forgotten by the server, and a new one after its next login: connectors
    refuse what names the old one.
    """
    keys = {(user, version): key for user, version, key in state.content_keys()}
    changed = []
    for out in state.load().unsettled:
        old = decode_envelope(out.envelope)
        if old.device == identity.device:
            continue
        new = msgspec.structs.replace(old, device=identity.device)
        if old.key:
            key = keys[old.to.id, old.key]
            body = seal(key, open_sealed(key, old.body, associated_data(old)), associated_data(new))
            new = msgspec.structs.replace(new, body=body)
        changed.append((out.to, out.seq, encode_envelope(new)))
    if changed:
        state.readdress(changed)
    return bool(changed)
