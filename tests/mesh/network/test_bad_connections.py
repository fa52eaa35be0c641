"""Hostile connections to every port of a mesh: each is cut or refused, and counted.

Two well-behaved users talk during every test, as in test_bad_input.
"""

import itertools
import socket
from contextlib import closing, suppress
from urllib.parse import urlsplit

import httpx
import pytest
import zmq

from meshim.errors import Code
from meshim.stores.ports import Lease
from tests.mesh.harness.background_chat import Users
from tests.mesh.harness.independent_client import (
    CLOSE,
    GREET,
    PING,
    RESET,
    TEXT,
    USER,
    WINDOW,
    IndependentClient,
    pack,
    unpack,
)
from tests.mesh.harness.inspection import CounterRise
from tests.mesh.harness.raw_sockets import REFUSED_KEY, WRONG_KEY, dealer, expect_alive, leased, leases
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, in_thread, until

HELLO, HELLO_OK = 1, 2

pytestmark = pytest.mark.usefixtures("chat_in_background")


async def test_a_connection_without_the_key_of_the_server_is_refused(mallory: IndependentClient) -> None:
    for connector in mallory.connectors:
        for server_key in (WRONG_KEY, None):
            with dealer(connector["endpoint"], server_key) as (_, wait_ended):
                assert await in_thread(wait_ended)


async def test_a_connection_with_a_chosen_routing_id_gets_no_answer(mallory: IndependentClient) -> None:
    """So a client cannot take the routing id of an earlier or a later connection."""
    connector = mallory.connectors[0]
    for chosen in (b"mallory", b"\x01\x02\x03\x04\x05"):
        with dealer(connector["endpoint"], connector["key"].encode(), routing_id=chosen) as (socket_of_ours, _):
            socket_of_ours.send(pack([GREET, 1, mallory.token, mallory.epoch, 7, WINDOW]))
            socket_of_ours.send(b"garbage")
            assert not await in_thread(socket_of_ours.poll, 300)
    await expect_alive(mallory)


async def test_bytes_that_are_not_zmtp_are_cut_off(mesh: RealMesh, mallory: IndependentClient) -> None:
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

    await in_thread(attack)


async def test_a_client_is_refused_by_a_transfer(mesh: RealMesh, mallory: IndependentClient) -> None:
    """Although the client knows the address and the public key of the transfer: its own key is not in the allowlist."""
    for lease in await leases(mesh, "transfer"):
        with dealer(lease.endpoint, lease.key.encode()) as (_, wait_ended):
            assert await in_thread(wait_ended) == REFUSED_KEY


async def test_a_connector_that_claims_to_be_another_is_refused(
    mesh: RealMesh, mallory: IndependentClient, users: Users
) -> None:  # fmt: skip
    """H8: it has a lease and a key of its own.  The links of the others stay; a Hello as itself is answered."""
    keys, own = zmq.curve_keypair(), 2**61 + 7
    (honest, _), (transfer, *_) = await leases(mesh, "connector"), await leases(mesh, "transfer")
    refused, lost = CounterRise(mesh, "impersonations", (transfer.name,)), CounterRise(mesh, "outcomes_lost")
    frames: list[list[object]] = []

    def say_hello(link: int, incarnation: int) -> list[object]:
        socket_of_ours.send(pack([HELLO, 1, link, incarnation, honest.name, 64]))
        while True:
            frames.append(unpack(socket_of_ours.recv()))
            if frames[-1][0] != PING:
                return frames[-1]

    lease = Lease("connector", "mallory", own, mesh_key=keys[0].decode())
    async with leased(mesh, lease):
        with dealer(transfer.endpoint, transfer.key.encode(), keys=keys) as (socket_of_ours, _):
            socket_of_ours.set(zmq.RCVTIMEO, int(DEADLINE_S * 1_000))
            kind, link, code, sentence, *_ = await in_thread(say_hello, 7, honest.incarnation)
            assert (kind, link, code) == (CLOSE, 7, Code.IMPERSONATION), sentence
            await refused.wait()
            assert "hello-of-a-foreign-incarnation-refused" in mesh.log("transfer", transfer.name)
            assert (await in_thread(say_hello, 8, own))[:4] == [HELLO_OK, 1, 8, transfer.incarnation]
    assert lost.rise == 0
    await expect_alive(mallory)


# ---------------------------------------------------------------- REST


async def test_rest_survives_bytes_that_are_not_http(mesh: RealMesh, mallory: IndependentClient) -> None:
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

    await in_thread(attack)
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_rest_refuses_hostile_paths_and_bodies_with_a_problem(mesh: RealMesh, mallory: IndependentClient) -> None:
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
        ("POST", "/v1/login", b'{"name": "x", "password": "y", "device": "z", "epoch": -1}'),
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


# ---------------------------------------------------------------- counters


async def test_every_kind_of_misbehaviour_is_counted(mesh: RealMesh, mallory: IndependentClient, users: Users) -> None:
    expected = (
        "malformed", "unknown_links", "refused", "rejected", "cut", "replaced", "greeted", "submitted",
        "socket_accepted", "socket_malformed", "socket_foreign", "socket_failed_handshakes", "socket_lost",
    )  # fmt: skip
    before = {name: mesh.counter_sum(name) for name in expected}

    def missing() -> list[str]:
        return [name for name in expected if mesh.counter_sum(name) <= before[name]]

    connector = mallory.connectors[0]

    def attack() -> None:
        mallory.send_envelope((USER, 1 << 40, 0), TEXT, b"?")
        mallory.send(PING, 1)
        mallory.until(lambda: mallory.frames_of(RESET) and mallory.codes)
        mallory.connect()  # replaces
        mallory.socket.send(b"garbage")
        mallory.until(lambda: mallory.frames_of(CLOSE))
        mallory.socket.close(0)
        mallory.connect(token=b"", wait=False)
        mallory.until(lambda: mallory.frames_of(CLOSE))
        mallory.socket.close(0)
        mallory.connect()
        mallory.socket.send_multipart([b"a", b"b"])  # last: it ends the connection, and with that the session at once

    with (
        closing(mallory.socket),  # stays open: a session whose connection has ended is not replaced
        dealer(connector["endpoint"], connector["key"].encode(), routing_id=b"mine") as (socket_of_ours, _),
    ):
        await in_thread(attack)
        socket_of_ours.send(b"garbage")
        with dealer(connector["endpoint"], None) as (_, wait_ended):
            await in_thread(wait_ended)
        with suppress(AssertionError):
            await until(lambda: not missing(), "")
        assert not missing()
    shown = {role["name"]: role["counters"] for role in mesh.status()["roles"]}
    assert shown["c1"]["malformed"] + shown["c2"]["malformed"] > 0
    assert shown["t1"]["routed"] + shown["t2"]["routed"] > 0
    assert shown["w1"]["records"] >= 0
