"""The REST service as Python calls, for the client library and the command line.

Every method of `Api` that sends a request raises ApiError when the service refuses (`temporary` is true when a later
try may succeed), BackendUnavailable when the service does not answer or the URL is not one of meshim, and ClientClosed
after `close`.
"""

import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from meshim.addresses import is_loopback
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, UsageError, one_line
from meshim.wire import rest
from meshim.wire.rest import PREFIX, PROBLEM_JSON

DEFAULT_URL = "http://127.0.0.1:8100"

RETRY_AFTER_MAX_S = 300.0
"""A longer Retry-After counts as this: no answer may stop a client for good."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for an answer that is not JSON, not UTF-8, or nested without end."""

_T = TypeVar("_T")


class Api:
    """The client of one REST service.

    ::

        async with Api("http://127.0.0.1:8100") as api:
            await api.register("ann", password)
            await api.login("ann", password)
            relation = await api.request("ben")

    It keeps HTTP connections open: use it in `async with`, or `close` it.  `token` is that of the last login; set it
    to use an earlier one.  The answers are the structs of `meshim.wire.rest`.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        insecure: bool = False,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout_s` is for each request.  With a `transport`, requests go there instead of into the network.

        Raises UsageError when `base_url` is no http(s) URL, and for plain HTTP to another machine unless `insecure`:
        answers carry tokens and content keys.
        """
        local = _check_url(base_url, insecure)
        self.base_url = base_url.rstrip("/")
        self.token = token
        self._http = httpx.AsyncClient(
            timeout=timeout_s,
            transport=transport,
            verify=_certificates(base_url),
            trust_env=not local,  # requests to this machine must not go through a proxy of the environment
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the HTTP connections."""
        await self._http.aclose()

    # ---------------------------------------------------------------- accounts and sessions

    async def register(self, name: str, password: str) -> rest.User:
        """Make an account; returns its id, and its name in lower case."""
        return await self._call("POST", "/users", rest.User, rest.Credentials(name, password))

    async def import_users(self, users: Sequence[tuple[str, str]]) -> tuple[rest.ImportResult, ...]:
        """Make an account for each (name, password), 500 at most; returns the result of each, in the same order.

        The service accepts this only from its own machine.
        """
        body = rest.Import(tuple(rest.Credentials(name, password) for name, password in users))
        answer = await self._call("POST", "/import", rest.ImportAnswer, body, timeout_s=120.0)
        return answer.users

    async def login(
        self, name: str, password: str, device: str | None = None, epoch: int = 0, *, takeover: bool = False
    ) -> rest.LoginAnswer:
        """Log in, and use the token of the answer from now on.

        With a device name, the service registers the device or logs it in again; with `takeover` also a device that
        another state file has, which loses it for good.  Without a device name no device changes, and connectors do
        not accept the token.
        """
        body = rest.LoginRequest(name, password, device, epoch, takeover)
        answer = await self._call("POST", "/login", rest.LoginAnswer, body)
        self.token = answer.token
        return answer

    async def logout(self) -> None:
        """Revoke the token, and end the device's session on its connector."""
        await self._send("POST", "/logout")
        self.token = None

    async def connectors(self) -> tuple[rest.Connector, ...]:
        """Return the living connectors."""
        return (await self._call("GET", "/connectors", rest.Connectors)).connectors

    async def user(self, name: str) -> rest.User:
        """Look up a user by name."""
        return await self._call("GET", f"/users/{_segment(name)}", rest.User)

    # ---------------------------------------------------------------- friends

    async def relations(self, user_id: int | None = None) -> tuple[rest.Relation, ...]:
        """Return the relations to all users that this one has or had any with, with content keys, sorted by name.

        With `user_id` only the one to that user, or none.
        """
        query = "" if user_id is None else f"?user_id={user_id}"
        return (await self._call("GET", f"/relations{query}", rest.Relations)).relations

    async def relation(self, name: str) -> rest.Relation:
        """Return the relation to one user, with its content keys."""
        return await self._call("GET", f"/relations/{_segment(name)}", rest.Relation)

    async def request(self, name: str) -> rest.Relation:
        """Ask a user for friendship, or accept that user's request if there is one; returns the relation after it."""
        return await self._call("POST", f"/relations/{_segment(name)}", rest.Relation)

    async def accept(self, name: str) -> rest.Relation:
        """Accept a request for friendship; returns the relation after it."""
        return await self._call("POST", f"/relations/{_segment(name)}/accept", rest.Relation)

    async def refuse(self, name: str) -> None:
        """Refuse a request for friendship; the user may ask again."""
        await self._send("POST", f"/relations/{_segment(name)}/refuse")

    async def remove(self, name: str) -> None:
        """End a friendship, withdraw a request, or refuse one."""
        await self._send("DELETE", f"/relations/{_segment(name)}")

    async def block(self, name: str) -> rest.Relation:
        """Block a user, who does not learn of it: a friendship ends, requests are not shown; returns the relation."""
        return await self._call("POST", f"/relations/{_segment(name)}/block", rest.Relation)

    async def unblock(self, name: str) -> rest.Relation:
        """End a block; returns the relation after it: `removed`, or `asked` if a request of the user waits."""
        return await self._call("POST", f"/relations/{_segment(name)}/unblock", rest.Relation)

    async def presence(self, user_ids: Sequence[int] | None = None) -> tuple[rest.PeerPresence, ...]:
        """Return which friends are connected, by name.

        With `user_ids`, 100 at most, only of these: those that are no friends are left out.  The service limits how
        many friends a user may ask about in a second: the ApiError says how long to wait.
        """
        if user_ids is not None and not user_ids:
            return ()
        query = "&".join(f"user_id={user_id}" for user_id in user_ids or ())
        return (await self._call("GET", f"/presence?{query}" if query else "/presence", rest.PresenceAnswer)).friends

    # ---------------------------------------------------------------- one request

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[_T],
        body: msgspec.Struct | None = None,
        timeout_s: float | None = None,
    ) -> _T:
        response = await self._send(method, path, body, timeout_s)
        try:
            return msgspec.json.decode(response.content, type=answer)
        except _UNREADABLE as error:
            raise BackendUnavailable(
                f"{self.base_url} answered something that is not meshim: is the URL right? ({one_line(error)})"
            ) from None

    async def _send(
        self, method: str, path: str, body: msgspec.Struct | None = None, timeout_s: float | None = None
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._http.is_closed:
            raise ClientClosed("The client was closed.")
        try:
            response = await self._http.request(
                method,
                self.base_url + PREFIX + path,
                content=None if body is None else msgspec.json.encode(body),
                headers=headers,
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
        except httpx.TimeoutException:
            raise BackendUnavailable(f"{self.base_url} did not answer in time: try again later.") from None
        except httpx.RequestError as error:  # of the connection, or of a body that cannot be decompressed
            raise BackendUnavailable(
                f"Cannot reach meshim at {self.base_url} ({one_line(error)}): is it running, and is the URL right?"
            ) from error
        if not response.is_success:
            raise self._refusal(response)
        return response

    def _refusal(self, response: httpx.Response) -> ApiError | BackendUnavailable:
        """The error for an answer that is no success."""
        if not response.headers.get("content-type", "").startswith(PROBLEM_JSON):
            return BackendUnavailable(
                f"{self.base_url} answered {response.status_code} without saying why: is this the URL of meshim?"
            )
        try:
            problem = msgspec.json.decode(response.content, type=rest.Problem)
        except _UNREADABLE:
            return BackendUnavailable(f"{self.base_url} answered {response.status_code} with a reason that is cut off.")
        wait = response.headers.get("retry-after", "")
        wait_s = min(float(wait), RETRY_AFTER_MAX_S) if wait.isascii() and wait.isdigit() else None
        return ApiError(response.status_code, problem.code, problem.detail, wait_s)


def _check_url(url: str, insecure: bool) -> bool:
    """Whether the URL leads to this machine.  Raises UsageError when it must not be used."""
    try:
        parts = urlsplit(url)
        host, scheme, _ = parts.hostname or "", parts.scheme, parts.port
    except ValueError:
        host, scheme = "", ""
    if scheme not in ("http", "https") or not host:
        raise UsageError(f"{url!r} is not the URL of a REST service: write it like {DEFAULT_URL}.")
    local = is_loopback(host)
    if scheme == "http" and not local and not insecure:
        raise UsageError(
            f"{url} would carry passwords and keys in the clear to another machine: use https "
            "(or --insecure, in Python insecure=True, if that is meant)."
        )
    return local


def _certificates(url: str) -> ssl.SSLContext:
    """The root certificates.  Plain HTTP loads none: it would take longer than a login."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http:") else ssl.create_default_context()


def _segment(name: str) -> str:
    """A name, quoted as one segment of a path."""
    return quote(name, safe="")
