"""The REST service behind a proxy: limits see the client, and what is for this machine alone stays so."""

import httpx
import msgspec
import pytest

from tests.contract.rest.world import PASSWORD, World

RIGHT = {"name": "alice", "password": PASSWORD}
WRONG = {"name": "alice", "password": "guess"}
PROXY, CLIENT, OTHER = "127.0.0.1", "203.0.113.7", "203.0.113.8"


async def log_in(http: httpx.AsyncClient, body: dict[str, str], forwarded: str) -> int:
    return (await http.post("/v1/login", json=body, headers={"x-forwarded-for": forwarded})).status_code


async def test_behind_a_proxy_one_client_locks_no_other_one_out(world: World) -> None:
    await world.api().register("alice", PASSWORD)
    async with world.raw(PROXY) as http:
        guesses = [await log_in(http, WRONG, f"192.0.2.{number}, {CLIENT}") for number in range(11)]
        assert guesses == [401] * 10 + [429], "whatever the client writes in front of its address"
        assert await log_in(http, RIGHT, CLIENT) == 429
        assert await log_in(http, RIGHT, OTHER) == 200


async def test_the_header_of_a_client_that_is_no_trusted_proxy_is_ignored(world: World) -> None:
    await world.api().register("alice", PASSWORD)
    async with world.raw(CLIENT) as http:
        assert [await log_in(http, WRONG, f"192.0.2.{number}") for number in range(11)] == [401] * 10 + [429]
    security = msgspec.structs.replace(world.topology.security, trusted_proxies=())
    world.topology = msgspec.structs.replace(world.topology, security=security)
    world.app = world.build()
    async with world.raw(PROXY) as http:
        assert [await log_in(http, WRONG, f"192.0.2.{number}") for number in range(11)] == [401] * 10 + [429]


async def test_of_ipv6_the_network_of_a_customer_counts_as_one_address(world: World) -> None:
    await world.api().register("alice", PASSWORD)
    async with world.raw(PROXY) as http:
        guesses = [await log_in(http, WRONG, f"2001:db8::{number:x}") for number in range(1, 12)]
        assert guesses == [401] * 10 + [429]
        assert await log_in(http, RIGHT, "2001:db8:0:1::1") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": PROXY},
        {"x-forwarded-for": ""},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": PROXY},
        {"via": "1.1 proxy"},
        {"x-forwarded-proto": "https"},
        {"x-forwarded-host": "localhost"},
        {"host": "chat.example"},
        {"host": "[::1"},
        {"host": ""},
    ],
)
async def test_an_import_through_a_proxy_is_refused_whatever_it_says(world: World, headers: dict[str, str]) -> None:
    async with world.raw() as http:
        response = await http.post("/v1/import", json={"users": []}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        for host in ("127.0.0.1:8100", "localhost", "[::1]:8100"):
            assert (await http.post("/v1/import", json={"users": []}, headers={"host": host})).status_code == 200
