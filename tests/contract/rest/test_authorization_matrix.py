"""Who may call which endpoint: each one of the OpenAPI document, by token and by relation to the user that it names."""

import itertools
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import httpx

from meshim.rest.core import PROBLEMS
from meshim.runtime import crypto
from meshim.stores.ports import Login, RelationKey, User
from tests.contract.rest.world import PASSWORD, World
from tests.contract.sql.backends import LIMITS

Answer = int | str
"""A status, or the code of a problem."""

_numbers = itertools.count()

TOKENS = ("no token", "unknown", "revoked", "expired", "expired, and in the cache", "REST only", "device")


class Endpoint(NamedTuple):
    """`by_token` has an answer for each of `TOKENS`; `body` is JSON."""

    by_token: tuple[Answer, ...]
    body: object = None


def _with_token(answer: Answer, body: object = None) -> Endpoint:
    return Endpoint(("bad_token",) * 5 + (answer,) * 2, body)


def _open(answer: Answer, body: object = None) -> Endpoint:
    return Endpoint((answer,) * 7, body)


ENDPOINTS = {
    "POST /v1/users": _open(201, {"name": "dora", "password": PASSWORD}),
    "POST /v1/import": _open(200, {"users": []}),
    "POST /v1/login": _open("bad_credentials", {"name": "peer", "password": PASSWORD}),
    "POST /v1/logout": Endpoint(("bad_token",) + (204,) * 6),
    "GET /v1/connectors": _with_token(200),
    "GET /v1/users/{name}": _with_token(200),
    "GET /v1/relations": _with_token(200),
    "GET /v1/relations/{name}": _with_token("no_such_relation"),
    "POST /v1/relations/{name}": _with_token(200),
    "POST /v1/relations/{name}/accept": _with_token("not_asked"),
    "POST /v1/relations/{name}/refuse": _with_token("not_asked"),
    "POST /v1/relations/{name}/block": _with_token(200),
    "POST /v1/relations/{name}/unblock": _with_token("not_blocked"),
    "DELETE /v1/relations/{name}": _with_token("no_such_relation"),
    "GET /v1/presence": _with_token(200),
    "GET /healthz": _open(200),
    "GET /readyz": _open(200),
}
"""Those that name a user name a stranger here."""

RELATIONS = ("stranger", "blocked", "requested", "asked", "friends", "removed", "blocks", "oneself")
"""What the caller is to the user: `requested` has asked, `asked` was asked, `blocked` was blocked, `blocks` has."""

BY_RELATION: dict[str, tuple[Answer, ...]] = {
    "GET /v1/users/{name}": (200,) * 8,
    "GET /v1/relations/{name}": ("no_such_relation",) * 2 + (200,) * 5 + ("no_such_relation",),
    "POST /v1/relations/{name}": (200,) * 6 + ("blocked", "yourself"),
    "POST /v1/relations/{name}/accept": ("not_asked",) * 3 + (200, 200, "not_asked", "blocked", "yourself"),
    "POST /v1/relations/{name}/refuse": ("not_asked",) * 3 + (204, "not_asked", "not_asked", "blocked", "yourself"),
    "POST /v1/relations/{name}/block": (200,) * 7 + ("yourself",),
    "POST /v1/relations/{name}/unblock": ("not_blocked",) * 6 + (200, "yourself"),
    "DELETE /v1/relations/{name}": ("no_such_relation",) * 2 + (204,) * 3 + ("no_such_relation", "blocked", "yourself"),
}
"""An answer for each of `RELATIONS`, to a caller with a token."""


class Caller:
    """A user and the user that its requests name."""

    def __init__(self, world: World, me: User, peer: User) -> None:
        self.world = world
        self.me = me
        self.peer = peer
        self.app = world.app

    async def token(self, kind: str) -> str:
        """Return an `Authorization` header, or an empty string."""
        if kind == "no token":
            return ""
        token = secrets.token_bytes(32)
        now = time.time()
        expires_at = now - 60 if kind == "expired" else now + 3600
        device = "phone" if kind in {"device", "expired, and in the cache"} else None
        if kind != "unknown":
            hash_ = crypto.hash_token(token)
            found, _ = await self.world.accounts.log_in(self.me.user_id, device, 1, hash_, expires_at, now - 3600, 3)
            if kind == "expired, and in the cache":
                await self.world.cache.put_login(hash_, Login(self.me.user_id, found.device_id, 1, expires_at))
                self.app = self.world.build(clock=lambda: time.time() + 7200)  # the cache's clock is behind
            if kind == "revoked":
                await self.world.accounts.log_out(hash_)
        return f"Bearer {crypto.format_token(token)}"

    async def bring_about(self, relation: str) -> None:
        """Give the two this relation."""
        accounts, me, peer, now = self.world.accounts, self.me.user_id, self.peer.user_id, time.time()
        if relation == "blocked":
            await accounts.block(peer, me, now, 3)
        if relation == "blocks":
            await accounts.block(me, peer, now, 3)
        if relation in {"requested", "friends", "removed"}:
            await accounts.request(me, peer, now, LIMITS)
        if relation == "asked":
            await accounts.request(peer, me, now, LIMITS)
        if relation in {"friends", "removed"}:
            wrapped = self.world.master.wrap(bytes(32), crypto.relation_context(me, peer, 1))
            await accounts.accept(peer, me, RelationKey(1, wrapped), now, 3)
        if relation == "removed":
            await accounts.remove(peer, me, now)

    async def call(self, endpoint: str, header: str, name: str, body: object = None) -> httpx.Response:
        method, path = endpoint.split()
        headers = {"authorization": header} if header else {}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["content-type"] = "application/json"
        transport = self.world.transport(app=self.app)
        async with httpx.AsyncClient(base_url="http://localhost", transport=transport) as http:
            return await http.request(method, path.format(name=name), headers=headers, content=content)


async def new_caller(world: World) -> Caller:
    """Return two new users.  No password fits the hash "x": `test_rest.py` has the logins that succeed."""
    me, peer = [await world.accounts.register(f"{name}{next(_numbers)}", "x") for name in ("me", "peer")]
    return Caller(world, me, peer)


def _cells(rows: Mapping[str, Sequence[Answer]], columns: Sequence[str]) -> dict[tuple[str, str], Answer]:
    return {(row, column): cell for row, cells in rows.items() for column, cell in zip(columns, cells, strict=True)}


def _answer(response: httpx.Response) -> Answer:
    """The status of a success; of a problem the code, whose status must be the right one."""
    if response.is_success:
        return response.status_code
    code = str(response.json()["code"])
    assert PROBLEMS[code].status == response.status_code
    return code


async def test_every_endpoint_has_a_row(world: World) -> None:
    async with world.raw() as http:
        paths = (await http.get("/schema/openapi.json")).json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert served == ENDPOINTS.keys()
    assert BY_RELATION.keys() == {endpoint for endpoint in served if "{name}" in endpoint}
    needs_token = {
        f"{m.upper()} {path}" for path, methods in paths.items() for m in methods if "security" in methods[m]
    }
    assert needs_token == {endpoint for endpoint, row in ENDPOINTS.items() if row.by_token[0] == "bad_token"}


def test_a_blocked_user_is_answered_as_a_stranger() -> None:
    stranger, blocked = RELATIONS.index("stranger"), RELATIONS.index("blocked")
    for endpoint, answers in BY_RELATION.items():
        assert answers[stranger] == answers[blocked] == ENDPOINTS[endpoint].by_token[-1], endpoint


async def test_answers_by_token(world: World) -> None:
    found = {}
    for endpoint, row in ENDPOINTS.items():
        for kind in TOKENS:
            caller = await new_caller(world)
            body = {"name": f"new{next(_numbers)}", "password": PASSWORD} if endpoint == "POST /v1/users" else row.body
            response = await caller.call(endpoint, await caller.token(kind), caller.peer.name, body)
            found[endpoint, kind] = _answer(response)
            assert ("www-authenticate" in response.headers) == (response.status_code == 401)
    rows = {endpoint: row.by_token for endpoint, row in ENDPOINTS.items()}
    assert found == _cells(rows, TOKENS)


async def test_answers_by_relation(world: World) -> None:
    found = {}
    for endpoint in BY_RELATION:
        for relation in RELATIONS:
            caller = await new_caller(world)
            await caller.bring_about(relation)
            name = caller.me.name if relation == "oneself" else caller.peer.name
            found[endpoint, relation] = _answer(await caller.call(endpoint, await caller.token("REST only"), name))
    assert found == _cells(BY_RELATION, RELATIONS)


async def test_by_id_a_user_finds_the_own_relations_and_the_presence_of_friends(world: World) -> None:
    for relation in RELATIONS:
        caller = await new_caller(world)
        await caller.bring_about(relation)
        token = await caller.token("REST only")
        user = caller.me if relation == "oneself" else caller.peer
        relations = await caller.call(f"GET /v1/relations?user_id={user.user_id}", token, "")
        presence = await caller.call(f"GET /v1/presence?user_id={user.user_id}", token, "")
        assert (relations.status_code, presence.status_code) == (200, 200)
        found = [each["state"] for each in relations.json()["relations"]]
        unseen = {"stranger", "blocked", "oneself"}
        assert found == ([] if relation in unseen else ["blocked" if relation == "blocks" else relation])
        assert len(presence.json()["friends"]) == (1 if relation == "friends" else 0)
