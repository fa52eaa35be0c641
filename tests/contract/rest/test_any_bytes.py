"""Whatever a stranger or a user sends to any route: a problem with a sentence, and no exception in the log."""

import asyncio
from collections.abc import Callable, Iterator
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contract.rest.world import new_user, world_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=9), each, max_size=3),
    max_leaves=8,
)
names = st.text(max_size=20) | st.sampled_from(["alice", "ALICE", "..", "", "a" * 5_000, "\0", "a/b", "\uff41lice"])
fields = st.fixed_dictionaries(
    {"name": names | json_values, "password": st.text(max_size=9) | json_values},
    optional={
        "device": names | json_values,
        "epoch": st.integers() | json_values,
        "takeover": st.booleans() | json_values,
        "users": st.lists(json_values, max_size=3),
    },
)
bodies = st.binary(max_size=60) | (fields | json_values).map(msgspec.json.encode)
DEEP = b"[" * 12_000

tokens = st.text(alphabet="AZaz09-_=+/ ", max_size=50).map(lambda text: f"Bearer {text}".encode())


def _is_header(value: bytes) -> bool:
    """Whether HTTP can carry it: httptools refuses others before they get here."""
    return not set(value) & {0, 10, 13} and value == value.strip()


POSTED = ["/v1/users", "/v1/import", "/v1/login", "/v1/logout"]
ASKED = ["/v1/users/{}", "/v1/relations/{}", "/v1/relations?user_id={}", "/v1/presence?user_id={}", "/v1/connectors"]
CHANGED = ["/v1/relations/{}", *(f"/v1/relations/{{}}/{what}" for what in ("accept", "refuse", "block", "unblock"))]


Send = Callable[..., None]


@pytest.fixture
def send() -> Iterator[Send]:
    """Sends (method, path, body, authorization) to one service; each answer is right, or a problem."""
    with asyncio.Runner() as loop:
        running = world_of("memory", str, str, "any")
        world = loop.run(running.__aenter__())
        http, token = world.raw(), loop.run(new_user(world, "alice")).token

        async def send(method: str, path: str, body: bytes | None = None, authorization: bytes | None = None) -> None:
            own = f"Bearer {token}".encode()
            headers = [(b"authorization", authorization or own), (b"content-type", b"application/json")]
            answer = await http.request(method, path, content=body, headers=headers)
            if answer.status_code >= 400:
                assert answer.status_code < 500, answer.text
                assert answer.headers["content-type"].startswith("application/problem+json")
                assert answer.json()["detail"].endswith("."), answer.text

        yield lambda *request: loop.run(send(*request))
        assert "Traceback" not in world.log.getvalue()
        loop.run(http.aclose())
        loop.run(running.__aexit__(None, None, None))


one_service = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@one_service
@given(st.sampled_from(POSTED), bodies)
@example("/v1/users", DEEP)
@example("/v1/login", b'{"name":"\xff"}')
@example("/v1/login", b'{"epoch":' + b"9" * 5_000 + b"}")
def test_of_bodies(send: Send, path: str, body: bytes) -> None:
    send("POST", path, body, b"Bearer none" if path == "/v1/logout" else None)


@one_service
@given(st.sampled_from(ASKED + CHANGED), names | st.integers().map(str))
def test_of_names_and_ids(send: Send, where: str, name: str) -> None:
    send("GET" if where in ASKED else "POST", where.format(quote(name, safe="")))


@one_service
@given(st.binary(max_size=60).filter(_is_header) | tokens)
def test_of_authorizations(send: Send, value: bytes) -> None:
    send("GET", "/v1/connectors", None, value)
