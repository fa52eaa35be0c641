"""The REST service as an ASGI application over any ports: `service` passes real ones, tests pass others."""

import importlib.metadata
import math
import time
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ExceptionHandlersMap

from meshim.errors import ApiError, BackendUnavailable, one_line
from meshim.rest import core
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.friends import Friends
from meshim.rest.passwords import Passwords
from meshim.rest.readiness import Readiness
from meshim.rest.routes import BODY_BYTES_MAX, Incoming, dependencies, routers
from meshim.rest.sessions import Sessions
from meshim.runtime.crypto import MasterKey
from meshim.runtime.log import Log
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
"""HTTP status to code, for what Litestar refuses by itself."""


def build(
    *,
    backends: Backends,
    passwords: Passwords,
    master: MasterKey,
    topology: Topology,
    log: Log,
    clock: Clock = time.time,
) -> Litestar:
    """Return the application.  It closes none of its arguments; `state.statistics` holds its counters."""
    notifier = ChangeNotifier(backends, clock, log)
    friends = Friends(backends=backends, notifier=notifier, master=master, topology=topology, clock=clock, log=log)
    sessions = Sessions(
        backends=backends,
        notifier=notifier,
        friends=friends,
        passwords=passwords,
        topology=topology,
        clock=clock,
        log=log,
    )
    return Litestar(
        routers(),
        dependencies=dependencies(sessions, friends, Readiness(backends)),
        exception_handlers=_exception_handlers(log),
        state=State({"statistics": notifier.statistics}),
        request_class=JsonRequest,
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=OpenAPIConfig(
            "meshim",
            importlib.metadata.version("meshim"),
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
        ),
        cors_config=_cors(topology.security.origins),
        logging_config=None,
        debug=False,
    )


def _cors(origins: Sequence[str]) -> CORSConfig | None:
    """What web pages of these origins may ask and read; None when there is none."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["DELETE", "GET", "POST"],
        allow_headers=["authorization", "content-type"],
        expose_headers=["retry-after"],
    )


def _exception_handlers(log: Log) -> ExceptionHandlersMap:
    """The answer for each kind of exception: always a problem (RFC 9457)."""

    def api_error(request: Incoming, error: ApiError) -> Response[Problem]:
        return _answer(error)

    def backend_unavailable(request: Incoming, error: BackendUnavailable) -> Response[Problem]:
        log.warning("answered 503", path=request.url.path, reason=error)
        return _answer(core.refusal("backend_unavailable", error.sentence, _RETRY_AFTER_S))

    def framework_error(request: Incoming, error: HTTPException) -> Response[Problem]:
        return _answer(_from_framework(error))

    def unexpected(request: Incoming, error: Exception) -> Response[Problem]:
        log.error("request failed", path=request.url.path, trace="".join(traceback.format_exception(error)))
        return _answer(core.refusal("internal", "Something is wrong with the service: its log says what."))

    return {
        ApiError: api_error,
        BackendUnavailable: backend_unavailable,
        HTTPException: framework_error,
        Exception: unexpected,
    }


class JsonRequest(Request[Any, Any, State]):
    """Reads JSON bodies, and refuses every other body with a problem."""

    async def json(self) -> Any:
        """Return the decoded body.  Raises ApiError when it is not JSON."""
        # A foreign web page can make a browser on this machine send requests here, but none with this content type.
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


def _from_framework(error: HTTPException) -> ApiError:
    code = _HTTP_CODES.get(error.status_code, "internal" if error.status_code >= 500 else "malformed")
    sentence = error.detail.rstrip(".")
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        # Only here Litestar says which field is wrong, and how.
        whole_body = "data"  # its name for the body itself
        wrong = "; ".join(
            each["message"] if each.get("key", whole_body) == whole_body else f"{each['message']} - at `{each['key']}`"
            for each in error.extra
        )
        sentence = f"{sentence}: {one_line(wrong)}"
    return core.refusal(code, f"{sentence}.")
