"""Who may register, and how many."""

import asyncio
import time

import httpx
import msgspec
import pytest

from meshim.errors import ApiError
from meshim.runtime import crypto
from meshim.topology import Topology
from tests.contract.rest.world import PASSWORD, World


def changed(world: World, **fields: object) -> None:
    """Rebuild the service with these fields of the topology or of its limits."""
    limits = {name: fields.pop(name) for name in [*fields] if name in world.topology.limits.__struct_fields__}
    topology: Topology = msgspec.structs.replace(world.topology, **fields)
    world.topology = msgspec.structs.replace(topology, limits=msgspec.structs.replace(topology.limits, **limits))
    world.app = world.build()


async def register(world: World, name: str, address: str = "203.0.113.7", **fields: object) -> httpx.Response:
    async with world.raw(address) as http:
        return await http.post("/v1/users", json={"name": name, "password": PASSWORD, **fields})


async def test_closed_registration_is_refused_and_the_operator_imports(world: World) -> None:
    changed(world, registration="closed")
    for address in ("203.0.113.7", "127.0.0.1"):
        answer = await register(world, "alice", address, invite="anything")
        assert (answer.status_code, answer.json()["code"]) == (403, "registration_closed")
    assert answer.json()["detail"] == "Registration is closed: ask the operator of this mesh for an account."
    async with world.api() as api:
        [imported] = await api.import_users([("alice", PASSWORD)])
        assert imported.user is not None
        assert (await api.login("alice", PASSWORD)).name == "alice"


async def test_an_invite_registers_one_user(world: World) -> None:
    changed(world, registration="invite")
    code = crypto.new_invite()
    now = time.time()
    await world.accounts.add_invites([crypto.hash_invite(code)], now + 3600, now)
    for invite, sentence in ((None, "needs an invite"), ("", "unknown"), ("wrong", "unknown"), ("ü", "unknown")):
        answer = await register(world, "alice", invite=invite)
        assert (answer.status_code, answer.json()["code"]) == (403, "bad_invite")
        assert sentence in answer.json()["detail"]
    async with world.api() as api:
        assert (await api.register("alice", PASSWORD, invite=f" {code.upper()} ")).name == "alice"
        with pytest.raises(ApiError, match="unknown, used or over: ask the operator") as refused:
            await api.register("bob", PASSWORD, invite=code)
        assert (refused.value.status, refused.value.code) == (403, "bad_invite")
        assert world.app.state.statistics.refused == {"bad_invite": 5}


async def test_a_taken_name_does_not_use_an_invite_up_and_time_does(world: World) -> None:
    changed(world, registration="invite")
    code, now = crypto.new_invite(), time.time()
    await world.accounts.register("alice", "x")
    await world.accounts.add_invites([crypto.hash_invite(code)], now + 3600, now)
    assert (await register(world, "alice", invite=code)).json()["code"] == "name_taken"
    world.app = world.build(clock=lambda: now + 3601)
    assert (await register(world, "bob", invite=code)).json()["code"] == "bad_invite"
    world.app = world.build()
    answers = await asyncio.gather(*(register(world, f"user{number}", invite=code) for number in range(3)))
    assert sorted(answer.status_code for answer in answers) == [201, 403, 403]


async def test_registrations_of_an_address_are_limited_and_count_when_they_are_refused(world: World) -> None:
    """One that is refused has told that a name is taken."""
    changed(world, registrations_per_address=4)
    names = ("alice", "alice", "bob", "alice", "carol", "dora")
    answers = [await register(world, name) for name in names]
    assert [answer.status_code for answer in answers] == [201, 409, 201, 409, 429, 429]
    assert (answers[-1].json()["code"], answers[-1].json()["detail"]) == (
        "slow_down",
        "Too many people register here: try again in 60 minutes.",
    )
    assert 3500 < int(answers[-1].headers["retry-after"]) <= 3600
    assert (await register(world, "carol", "203.0.113.8")).status_code == 201, "another address"
    async with world.raw("127.0.0.1") as http:  # behind the proxy, the same client
        forwarded = {"x-forwarded-for": "203.0.113.7"}
        answer = await http.post("/v1/users", json={"name": "dora", "password": PASSWORD}, headers=forwarded)
    assert answer.status_code == 429


async def test_registrations_at_once_are_counted_before_they_are_made(world: World) -> None:
    changed(world, registrations_per_address=4)
    answers = await asyncio.gather(*(register(world, f"user{number}") for number in range(12)))
    assert sorted(answer.status_code for answer in answers) == [201] * 4 + [429] * 8


async def test_registrations_of_all_addresses_are_limited_where_registration_is_open(world: World) -> None:
    changed(world, registrations_per_minute=3)
    answers = [await register(world, f"user{number}", f"203.0.113.{number}") for number in range(5)]
    assert [answer.status_code for answer in answers] == [201] * 3 + [429] * 2
    now = time.time()
    codes = [crypto.new_invite() for _ in range(2)]
    await world.accounts.add_invites([crypto.hash_invite(code) for code in codes], now + 60, now)
    changed(world, registration="invite")
    for number, code in enumerate(codes):
        assert (await register(world, f"guest{number}", f"203.0.113.{number}", invite=code)).status_code == 201


async def test_this_machine_registers_without_a_limit(world: World) -> None:
    """It may import."""
    changed(world, registrations_per_address=1, registrations_per_minute=1)
    assert [(await register(world, f"user{number}", "127.0.0.1")).status_code for number in range(3)] == [201] * 3
