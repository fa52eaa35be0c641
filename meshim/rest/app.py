"""The REST service as an ASGI application over any ports: `service` gives it real ones, tests what they like."""

import importlib.metadata
import math
import time
import traceback
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from meshim.errors import ApiError, BackendUnavailable
from meshim.rest import core
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.friends import Friends
from meshim.rest.passwords import Passwords
from meshim.rest.routes import BODY_BYTES_MAX, Incoming, routers
from meshim.rest.sessions import Sessions
from meshim.runtime.crypto import MasterKey
from meshim.runtime.log import Log
from meshim.stores.ports import Login
from meshim.topology import Topology
from meshim.wire.rest import PROBLEM_JSON, Problem

_RETRY_AFTER_S = 5

_HTTP_CODES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}
"""What the framework refuses by itself."""


def build(
    backends: Backends,
    passwords: Passwords,
    master: MasterKey,
    topology: Topology,
    log: Log,
    clock: Clock = time.time,
) -> Litestar:
    """Return the application.  It closes none of its arguments; `state.notifier` counts lost notifications."""
    notifier = ChangeNotifier(backends, clock, log)
    friends = Friends(backends, notifier, master, topology, clock, log)
    sessions = Sessions(backends, notifier, friends, passwords, topology, clock, log)

    async def me(request: Incoming) -> Login:
        return await sessions.authenticate(request.headers.get("authorization"))

    def is_away(request: Incoming, error: BackendUnavailable) -> Response[Problem]:
        log.warning("answered 503", path=request.url.path, reason=error)
        return _answer(core.refusal("backend_unavailable", error.sentence, _RETRY_AFTER_S))

    def fell_over(request: Incoming, error: Exception) -> Response[Problem]:
        log.error("request failed", path=request.url.path, trace="".join(traceback.format_exception(error)))
        return _answer(core.refusal("internal", "Something is wrong with the service: its log says what."))

    return Litestar(
        routers(),
        dependencies={
            "sessions": Provide(lambda: sessions, sync_to_thread=False),
            "friends": Provide(lambda: friends, sync_to_thread=False),
            "backends": Provide(lambda: backends, sync_to_thread=False),
            "me": Provide(me),
        },
        exception_handlers={
            ApiError: lambda _, error: _answer(error),
            BackendUnavailable: is_away,
            HTTPException: lambda _, error: _answer(_framework(error)),
            Exception: fell_over,
        },
        state=State({"notifier": notifier}),
        request_class=JsonRequest,
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=OpenAPIConfig(
            "meshim",
            importlib.metadata.version("meshim"),
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
        ),
        logging_config=None,
        debug=False,
    )


class JsonRequest(Request[Any, Any, State]):
    """Reads JSON bodies; whatever is not JSON is the client's fault, and said so."""

    async def json(self) -> Any:
        # A web page can make a browser on this machine send anything to us, but not with this type.
        if self.content_type[0] != "application/json":
            raise core.refusal("unsupported_media_type", "Send the body as `Content-Type: application/json`.")
        body = await self.body()
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise core.refusal("malformed", f"The body is not JSON: {error}.") from None


def _answer(error: ApiError) -> Response[Problem]:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(core.problem(error), status_code=error.status, headers=headers, media_type=PROBLEM_JSON)


def _framework(error: HTTPException) -> ApiError:
    code = _HTTP_CODES.get(error.status_code, "internal" if error.status_code >= 500 else "malformed")
    sentence = error.detail.rstrip(".")
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        # Litestar says there, and only there, what is wrong with which field.
        whole_body = "data"
        wrong = "; ".join(
            each["message"] if each.get("key", whole_body) == whole_body else f"{each['message']} - at `{each['key']}`"
            for each in error.extra
        )
        sentence = f"{sentence}: {' '.join(wrong.split())}"
    return core.refusal(code, f"{sentence}.")
