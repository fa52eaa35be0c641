"""Every endpoint: method, path, bodies, status, and its entry in OpenAPI.  Other modules decide and store.

To add an endpoint:

1. `wire/rest.py`: a struct for the request body and one for the answer, unless one fits.
2. `friends.py` (relations) or `sessions.py` (all else): a method that takes and returns those structs.  A rule without
   I/O belongs in `core.py`; a new error code goes into `core.PROBLEMS`, and is raised with `core.refusal`.
3. Here: a handler in the section of its router, with `security=_TOKEN` and the parameter `me` when it needs a login,
   and its name in `ACCOUNTS`, `SESSIONS` or `FRIENDS`.  Litestar fills the parameters of a handler by *name*: `data`
   (the body), `request`, parts of the path, and the keys of `dependencies`.
4. `docs/rest.md`: a row in the table of endpoints, and one for each new code; `tests/unit/docs/test_rest_document.py`
   compares.
5. `client/rest.py`: a method of `Api`.
6. `tests/contract/rest/`: a test over every backend, the endpoint in the list of OpenAPI in `test_rest.py`, and its
   rows in `test_authorization_matrix.py`: who may call it.

An endpoint that needs a new query also adds a method to `Accounts` in `stores/ports/accounts.py`, to its adapters in
`stores/sql/accounts.py` and `stores/memory/accounts.py`, and a test of both in tests/contract/.
"""

from typing import Any

from litestar import HttpMethod, Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from meshim.addresses import is_loopback
from meshim.rest.core import FriendAction, refusal
from meshim.rest.friends import Friends
from meshim.rest.readiness import Readiness
from meshim.rest.sessions import Sessions, bearer_hash
from meshim.stores.ports import Login
from meshim.wire import rest
from meshim.wire.bounds import Id as UserId

BODY_BYTES_MAX = 16 * 1024
IMPORT_BYTES_MAX = 1024 * 1024
"""Room for 500 users with the longest names and passwords, JSON escapes included."""

Incoming = Request[Any, Any, State]
SessionsParameter = NamedDependency[Sessions]
FriendsParameter = NamedDependency[Friends]
ReadinessParameter = NamedDependency[Readiness]
Me = NamedDependency[Login]
"""The login of the request's token; a request without a valid one is answered with 401."""

_TOKEN: list[dict[str, list[str]]] = [{"token": []}]
_REFUSED = ResponseSpec(rest.Problem, generate_examples=False, media_type=rest.PROBLEM_JSON, description="Refused")


def _refusals(*statuses: int) -> dict[int, ResponseSpec]:
    """The statuses of an endpoint's refusals, for OpenAPI; 503 is added to each."""
    return dict.fromkeys((*statuses, 503), _REFUSED)


# ---------------------------------------------------------------- accounts


@post("/users", responses=_refusals(400, 409), summary="Register a user")
async def register(data: JSONBody[rest.Credentials], sessions: SessionsParameter) -> rest.User:
    return await sessions.register(data)


@post(
    "/import",
    status_code=200,
    request_max_body_size=IMPORT_BYTES_MAX,
    responses=_refusals(400, 403, 413),
    summary="Register many users at once; from the same machine only",
)
async def import_users(
    data: JSONBody[rest.Import], request: Incoming, sessions: SessionsParameter
) -> rest.ImportAnswer:
    _require_this_machine(request)
    return await sessions.import_users(data)


@get("/users/{name:str}", security=_TOKEN, responses=_refusals(400, 401, 404), summary="Look up a user")
async def user(name: FromPath[str], friends: FriendsParameter, me: Me) -> rest.User:
    found = await friends.user(name)
    return rest.User(found.user_id, found.name)


# ---------------------------------------------------------------- sessions


@post("/login", status_code=200, responses=_refusals(400, 401, 409, 429), summary="Log a device in")
async def login(data: JSONBody[rest.LoginRequest], request: Incoming, sessions: SessionsParameter) -> rest.LoginAnswer:
    return await sessions.login(data, _address(request))


@post(
    "/logout",
    status_code=204,
    security=_TOKEN,
    responses=_refusals(401),
    summary="Revoke the token and close its session",
)
async def logout(request: Incoming, sessions: SessionsParameter) -> None:
    await sessions.logout(bearer_hash(request.headers.get("authorization")))


@get("/connectors", security=_TOKEN, responses=_refusals(401), summary="Where to connect")
async def connectors(sessions: SessionsParameter, me: Me) -> rest.Connectors:
    return rest.Connectors(await sessions.connectors())


# ---------------------------------------------------------------- friends


@get("/relations", security=_TOKEN, responses=_refusals(400, 401), summary="All my relations, or the one to a user id")
async def relations(friends: FriendsParameter, me: Me, user_id: FromQuery[UserId | None] = None) -> rest.Relations:
    return rest.Relations(await friends.relations(me.user, user_id))


@get("/relations/{name:str}", security=_TOKEN, responses=_refusals(400, 401, 404), summary="My relation to a user")
async def relation(name: FromPath[str], friends: FriendsParameter, me: Me) -> rest.Relation:
    return await friends.relation(me.user, name)


def _relation_change(method: HttpMethod, path: str, status: int, summary: str) -> HTTPRouteHandler:
    """Decorates a handler that changes the relation to the user in the path."""
    return HTTPRouteHandler(
        f"/relations/{{name:str}}{path}",
        http_method=method,
        status_code=status,
        security=_TOKEN,
        responses=_refusals(400, 401, 404, 409),
        summary=summary,
    )


@_relation_change(HttpMethod.POST, "", 200, "Ask a user for friendship, or accept that user's request")
async def request_friendship(name: FromPath[str], friends: FriendsParameter, me: Me) -> rest.Relation:
    return await friends.apply(me.user, name, FriendAction.REQUEST)


@_relation_change(HttpMethod.POST, "/accept", 200, "Accept a request")
async def accept(name: FromPath[str], friends: FriendsParameter, me: Me) -> rest.Relation:
    return await friends.apply(me.user, name, FriendAction.ACCEPT)


@_relation_change(HttpMethod.POST, "/refuse", 204, "Refuse a request")
async def refuse(name: FromPath[str], friends: FriendsParameter, me: Me) -> None:
    await friends.apply(me.user, name, FriendAction.REFUSE)


@_relation_change(HttpMethod.DELETE, "", 204, "End a friendship, or withdraw a request")
async def remove(name: FromPath[str], friends: FriendsParameter, me: Me) -> None:
    await friends.apply(me.user, name, FriendAction.REMOVE)


@_relation_change(HttpMethod.POST, "/block", 200, "Block a user, who does not learn of it")
async def block(name: FromPath[str], friends: FriendsParameter, me: Me) -> rest.Relation:
    return await friends.apply(me.user, name, FriendAction.BLOCK)


@_relation_change(HttpMethod.POST, "/unblock", 200, "End a block")
async def unblock(name: FromPath[str], friends: FriendsParameter, me: Me) -> rest.Relation:
    return await friends.apply(me.user, name, FriendAction.UNBLOCK)


@get("/presence", security=_TOKEN, responses=_refusals(400, 401, 429), summary="Which of my friends are connected")
async def presence(
    friends: FriendsParameter, me: Me, user_id: FromQuery[list[UserId] | None] = None
) -> rest.PresenceAnswer:
    return rest.PresenceAnswer(await friends.presence(me.user, user_id))


# ---------------------------------------------------------------- probes


@get("/healthz", summary="Whether this process runs")
async def healthz() -> rest.Probe:
    return rest.Probe(ok=True)


@get("/readyz", responses={503: ResponseSpec(rest.Readiness)}, summary="Whether every backend answers, and stores")
async def readyz(readiness: ReadinessParameter) -> Response[rest.Readiness]:
    found = await readiness.ask()
    return Response(found, status_code=200 if found.ready else 503)


ACCOUNTS: list[HTTPRouteHandler] = [register, import_users, user]
SESSIONS: list[HTTPRouteHandler] = [login, logout, connectors]
FRIENDS: list[HTTPRouteHandler] = [
    relations,
    relation,
    request_friendship,
    accept,
    refuse,
    remove,
    block,
    unblock,
    presence,
]


def dependencies(sessions: Sessions, friends: Friends, readiness: Readiness) -> dict[str, Provide]:
    """Return what Litestar passes to the handlers, by name of their parameters."""

    async def me(request: Incoming) -> Login:
        return await sessions.authenticate(request.headers.get("authorization"))

    return {
        "sessions": Provide(lambda: sessions, sync_to_thread=False),
        "friends": Provide(lambda: friends, sync_to_thread=False),
        "readiness": Provide(lambda: readiness, sync_to_thread=False),
        "me": Provide(me),
    }


def routers() -> list[Router | HTTPRouteHandler]:
    """Return every endpoint; the probes have no prefix."""
    return [
        Router(rest.PREFIX, route_handlers=ACCOUNTS, tags=["Accounts"]),
        Router(rest.PREFIX, route_handlers=SESSIONS, tags=["Sessions"]),
        Router(rest.PREFIX, route_handlers=FRIENDS, tags=["Friends"]),
        healthz,
        readyz,
    ]


def _address(request: Incoming) -> str:
    return request.client.host if request.client else ""


def _require_this_machine(request: Incoming) -> None:
    """Refuse a request from another machine: an import allows no more than registering, but costs seconds of all cores.

    A request through a proxy on this machine has a loopback address too; the proxy's headers tell it apart.
    """
    forwarded = any(header in request.headers for header in ("forwarded", "x-forwarded-for", "x-real-ip"))
    if forwarded or not is_loopback(_address(request)):
        raise refusal("forbidden", "Imports are taken from the machine that the service runs on: call it there.")
