"""Who a device is: its login, kept in the state file, and where it may connect."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from meshim.client.core import Identity
from meshim.client.rest import Api
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, UsageError
from meshim.runtime.crypto import format_token, parse_token
from meshim.wire.rest import Connector, LoginAnswer


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


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Login).decode


class Session:
    """The login of one state file.  `lock` is held while the file is in use."""

    def __init__(self, api: Api, state: StateFile, credentials: Credentials) -> None:
        self.lock = asyncio.Lock()
        self._api = api
        self._state = state
        self._credentials = credentials
        self._login: _Login | None = None

    @property
    def name(self) -> str:
        """Our name, as the service writes it."""
        assert self._login is not None
        return self._login.name

    async def open(self) -> Identity:
        """Go on with the login in the file, or log in.

        Raises UsageError when the file is another user's or device's, ApiError and BackendUnavailable from the login.
        """
        kept = self._state.get("login")
        if kept is not None:
            self._login = _decode(kept)
            name, _, device = self._credentials
            if (self._login.name, self._login.device) != (name.lower(), device):
                raise UsageError(
                    f"this state file is of {self._login.name} on {self._login.device}, "
                    f"not of {name} on {device}: give each device a file of its own"
                )
        if self._login is None or self._login.expires_at <= time.time() + 60:
            await self._log_in()
        assert self._login is not None
        self._api.token = format_token(self._login.token)
        return Identity(self._login.user_id, self._login.device_id, self._state.epoch)

    async def _log_in(self) -> LoginAnswer:
        name, _, device = self._credentials
        answer = await self._api.login(name, await self._credentials.reveal(), device, self._state.epoch)
        before = self._login
        if before is not None and before.user_id != answer.user_id:
            raise UsageError(f"{name} is another user here than in this state file: use a new file for this server")
        self._login = _Login(
            self._api.base_url, answer.name, device, answer.user_id, answer.device_id, parse_token(answer.token),
            answer.expires_at, answer.connectors,
        )  # fmt: skip
        await self._keep()
        return answer

    async def _keep(self) -> None:
        async with self.lock:
            self._state.put("login", _encode(self._login))

    async def token(self, fresh: bool) -> bytes:  # the callback of Connection
        """What to greet with; after a new login if `fresh`."""
        if fresh:
            await self._log_in()
        assert self._login is not None
        return self._login.token

    async def connectors(self, fresh: bool) -> Sequence[Connector]:  # the callback of Connection
        """Where to connect; asks the REST service if `fresh`, and makes do with the last answer when it is away."""
        assert self._login is not None
        if fresh:
            try:
                self._login.connectors = await self._api.connectors()
                await self._keep()
            except BackendUnavailable:
                pass  # the list we have may still be right
            except ApiError as error:
                if error.status == 401:
                    self._login.connectors = (await self._log_in()).connectors
                elif not error.temporary:
                    raise
        return self._login.connectors
