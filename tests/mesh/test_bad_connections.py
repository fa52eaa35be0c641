"""Hostile connections, to every port of a mesh: who has no business there is cut off; and all of it is counted.

Two who behave talk with each other during every test here, as in test_bad_input.
"""

import itertools
import socket
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest

from tests.mesh.hostile import (
    REFUSED_KEY,
    WRONG_KEY,
    Cast,
    answers,
    dealer,
    doing,
    leases,
)
from tests.mesh.real_mesh import RealMesh, until
from tests.mesh.stranger import (
    CLOSE,
    GREET,
    PING,
    RESET,
    TEXT,
    USER,
    WINDOW,
    Stranger,
    pack,
)

pytestmark = pytest.mark.usefixtures("bystanders")


async def test_whoever_does_not_know_the_servers_key_does_not_get_in(mallory: Stranger) -> None:
    for connector in mallory.connectors:
        for server_key in (WRONG_KEY, None):
            with dealer(connector["endpoint"], server_key) as (_, ends):
                assert await doing(ends)


async def test_a_chosen_routing_id_is_not_listened_to(mallory: Stranger) -> None:
    """Nobody can choose one that somebody else had, or will have."""
    connector = mallory.connectors[0]
    for chosen in (b"mallory", b"\x01\x02\x03\x04\x05"):
        with dealer(connector["endpoint"], connector["key"].encode(), routing_id=chosen) as (speaking, _):
            speaking.send(pack([GREET, 1, mallory.token, mallory.epoch, 7, WINDOW]))
            speaking.send(b"garbage")
            assert not await doing(speaking.poll, 300)
    await answers(mallory)


async def test_what_is_not_zeromq_is_cut_off(mesh: RealMesh, mallory: Stranger) -> None:
    noise = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f\x03" + bytes(53),
        bytes(200),
        b"\x16\x03\x01",
    ]
    endpoints = [mesh.role(name).endpoint or "" for name in ("c1", "c2", "t1", "t2")]

    def attack() -> None:
        for endpoint, data in itertools.product(endpoints, noise):
            where = urlsplit(endpoint)
            with socket.create_connection((where.hostname or "", where.port or 0), 5) as raw_socket:
                raw_socket.sendall(data)

    await doing(attack)


async def test_a_stranger_is_not_let_into_a_transfer(mesh: RealMesh, mallory: Stranger) -> None:
    """Although she knows its address and its public key."""
    for lease in await leases(mesh, "transfer"):
        with dealer(lease.endpoint, lease.key.encode()) as (_, ends):
            assert await doing(ends) == REFUSED_KEY


# ---------------------------------------------------------------- REST


async def test_rest_survives_what_is_not_http(mesh: RealMesh, mallory: Stranger) -> None:
    where = urlsplit(mesh.api)
    noise = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{",
        b"POST /v1/users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        bytes(1_000),
    ]

    def attack() -> None:
        for data in noise:
            with socket.create_connection((where.hostname or "", where.port or 0), 5) as raw_socket:
                raw_socket.sendall(data)

    await doing(attack)
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_rest_refuses_hostile_paths_and_bodies_with_a_problem(mesh: RealMesh, mallory: Stranger) -> None:
    deep = b'{"name":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    requests = [
        ("GET", "/v1/users/..%2f..%2fetc%2fpasswd", None),
        ("GET", "/v1/users/%00", None),
        ("GET", "/v1/users/%ff%fe", None),
        ("GET", "/v1/users/" + "a" * 5_000, None),
        ("GET", "/v1/../../etc/passwd", None),
        ("POST", "/v1/users", deep),
        ("POST", "/v1/users", b'{"name": "\\ud800", "password": "x"}'),
        ("POST", "/v1/users", b'{"name": 1e999, "password": "x"}'),
        ("POST", "/v1/login", b'{"name": "x", "password": "' + b"y" * 10_000 + b'"}'),
        ("POST", "/v1/login", b'{"name": "x", "password": "y", "device": "z", "epoch": "-0000000000000001"}'),
        ("POST", "/v1/login", b'{"name": "\'; DROP TABLE im_user; --", "password": "y"}'),
        ("DELETE", "/v1/users", None),
        ("POST", "/v1/relations/%F0%9F%92%A9", None),
    ]
    async with httpx.AsyncClient(base_url=mesh.api, headers={"Content-Type": "application/json"}) as http:
        for method, path, body in requests:
            answer = await http.request(method, path, content=body)
            assert 400 <= answer.status_code < 500, (method, path, answer.status_code)
            assert answer.headers["content-type"].startswith("application/problem+json"), (method, path)
            assert answer.json()["detail"], (method, path)


# ---------------------------------------------------------------- counted


async def test_each_of_it_is_counted(mesh: RealMesh, mallory: Stranger, cast: Cast) -> None:
    expected = (
        "malformed", "unknown_links", "refused", "rejected", "cut", "replaced", "greeted", "submitted",
        "socket_accepted", "socket_malformed", "socket_foreign", "socket_failed_handshakes", "socket_lost",
    )  # fmt: skip
    before = {name: mesh.counted(name) for name in expected}

    def missing() -> list[str]:
        return [name for name in expected if mesh.counted(name) <= before[name]]

    connector = mallory.connectors[0]

    def attack() -> None:
        mallory.make((USER, 1 << 40, 0), TEXT, b"?")
        mallory.send(PING, 1)
        mallory.socket.send_multipart([b"a", b"b"])
        mallory.until(lambda: mallory.came(RESET) and mallory.codes)
        first = mallory.socket
        with closing(first):
            mallory.connect()  # replaces
        mallory.socket.send(b"garbage")
        mallory.until(lambda: mallory.came(CLOSE))
        mallory.socket.close(0)
        mallory.connect(token=b"", wait=False)
        mallory.until(lambda: mallory.came(CLOSE))

    await doing(attack)
    with dealer(connector["endpoint"], connector["key"].encode(), routing_id=b"mine") as (speaking, _):
        speaking.send(b"garbage")
        with dealer(connector["endpoint"], None) as (_, ends):
            await doing(ends)
        await until(lambda: not missing(), "not everything is counted")
    shown = {role["name"]: role["counters"] for role in mesh.status()["roles"]}
    assert shown["c1"]["malformed"] + shown["c2"]["malformed"] > 0
    assert shown["t1"]["routed"] + shown["t2"]["routed"] > 0
    assert shown["w1"]["records"] >= 0
