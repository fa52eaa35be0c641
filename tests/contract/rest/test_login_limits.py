"""Guesses at passwords: how many count, and that a device which logged in before is not locked out by them."""

import asyncio
import itertools

import httpx
import msgspec
import pytest

from meshim.client.rest import Api
from meshim.errors import ApiError
from meshim.wire import rest
from tests.contract.rest.world import PASSWORD, World

_names = itertools.count()


def limited(world: World, **limits: int) -> None:
    """Rebuild the service with these limits."""
    changed = msgspec.structs.replace(world.topology.limits, **limits)
    world.topology = msgspec.structs.replace(world.topology, limits=changed)
    world.app = world.build()


async def guess(world: World, name: str, address: str, **fields: object) -> httpx.Response:
    """Try a wrong password."""
    async with world.raw(address) as http:
        return await http.post("/v1/login", json={"name": name, "password": "guess", **fields})


async def lock_out(world: World, name: str) -> None:
    """Guess from many addresses until no more guesses are taken from any."""
    for number in itertools.count():
        if (await guess(world, name, f"10.0.{number}.1")).status_code == 429:
            return


async def phone(world: World, name: str = "alice") -> tuple[Api, rest.LoginAnswer]:
    """Register a user whose phone has logged in."""
    api = world.api()
    await api.register(name, PASSWORD)
    return api, await api.login(name, PASSWORD, "phone", 1)


async def test_a_device_that_logged_in_before_is_not_locked_out_by_guesses_of_others(world: World) -> None:
    limited(world, login_failures_per_account=6)
    api, first = await phone(world)
    await lock_out(world, "alice")
    with pytest.raises(ApiError) as refused:
        await api.login("alice", PASSWORD, "phone", 1)
    assert (refused.value.status, refused.value.code) == (429, "slow_down")
    for _ in range(2):
        again = await api.login("alice", PASSWORD, "phone", 1, proof=first.proof)
        assert (again.device_id, again.proof) == (first.device_id, first.proof)


async def test_a_proof_is_of_one_user_one_device_and_one_state_file(world: World) -> None:
    limited(world, login_failures_per_account=6)
    _, alices = await phone(world)
    _, bobs = await phone(world, "bob")
    await lock_out(world, "alice")
    right = {"name": "alice", "password": PASSWORD, "device": "phone", "epoch": 1}
    async with world.raw("10.9.9.9") as http:
        for wrong in (
            {"proof": bobs.proof},
            {"proof": ""},
            {"proof": None},
            {"proof": alices.proof[:-1]},
            {"proof": "ü"},
            {"proof": alices.proof, "epoch": 2},
            {"proof": alices.proof, "device": "laptop"},
            {"proof": alices.proof, "device": None},
        ):
            assert (await http.post("/v1/login", json=right | wrong)).status_code == 429, wrong
        assert (await http.post("/v1/login", json=right | {"proof": alices.proof})).status_code == 200


async def test_guesses_from_a_known_device_are_limited_too(world: World) -> None:
    """Whoever has stolen a state file guesses no faster than others, and locks nobody else out."""
    api, first = await phone(world)
    known = {"device": "phone", "epoch": 1, "proof": first.proof}
    answers = [(await guess(world, "alice", f"10.0.{number}.1", **known)).status_code for number in range(11)]
    assert answers == [401] * 10 + [429]
    assert (await api.login("alice", PASSWORD, "laptop", 2)).proof not in {"", first.proof}


async def test_guesses_at_one_account_are_limited_over_all_addresses(world: World) -> None:
    limited(world, login_failures_per_account=6)
    await phone(world)
    answers = [await guess(world, "alice", f"10.0.{number}.1") for number in range(8)]
    assert [answer.status_code for answer in answers] == [401] * 6 + [429] * 2
    assert 60 < int(answers[-1].headers["retry-after"]) <= 600
    assert "try again in 10 minutes" in answers[-1].json()["detail"]
    assert (await guess(world, "nobody", "10.0.0.1")).status_code == 401, "another account"


async def test_guesses_from_one_address_are_limited_over_all_accounts(world: World) -> None:
    """One password for many accounts."""
    limited(world, login_failures_per_address=6)
    answers = [(await guess(world, f"user{number}", "10.0.0.1")).status_code for number in range(8)]
    assert answers == [401] * 6 + [429] * 2
    assert (await guess(world, "user0", "10.0.0.2")).status_code == 401, "another address"


async def test_a_success_forgives_no_guesses_of_others(world: World) -> None:
    """Nor does a login with an account of one's own make room for more guesses at those of others."""
    limited(world, login_failures_per_account=6, login_failures_per_address=4)
    api, _ = await phone(world)
    answers = []
    for number in range(8):
        answers.append((await guess(world, "alice", f"10.0.{number}.1")).status_code)
        if number < 4:
            await api.login("alice", PASSWORD)
    assert answers == [401] * 6 + [429] * 2
    await world.api().register("mallory", PASSWORD)
    async with world.raw("10.0.0.7") as http:
        statuses = []
        for _ in range(6):
            statuses.append((await guess(world, f"user{next(_names)}", "10.0.0.7")).status_code)
            await http.post("/v1/login", json={"name": "mallory", "password": PASSWORD})
    assert statuses == [401] * 4 + [429] * 2


async def test_all_processes_count_together(world: World) -> None:
    await phone(world)
    answers = []
    for number in range(12):
        world.app = world.build()
        answers.append((await guess(world, "alice", "10.0.0.1")).status_code)
        assert number < 10 or answers[-1] == 429
    assert answers == [401] * 10 + [429] * 2


async def test_while_redis_is_away_each_process_counts_for_itself(world: World) -> None:
    await phone(world)
    world.turn(redis=False)
    for _ in range(2):
        world.app = world.build()
        answers = [(await guess(world, "alice", "10.0.0.1")).status_code for _ in range(11)]
        assert answers == [401] * 10 + [429]
    assert world.app.state.statistics.throttled_locally == 11
    assert world.app.state.statistics.counters()["refused_slow_down"] == 1
    world.turn()
    assert (await guess(world, "alice", "10.0.0.1")).status_code == 401


async def test_logins_that_nobody_decides_do_not_count(world: World) -> None:
    await phone(world)
    world.turn(sql=False)
    assert [(await guess(world, "alice", "10.0.0.1")).status_code for _ in range(12)] == [503] * 12
    world.turn()
    assert [(await guess(world, "alice", "10.0.0.1")).status_code for _ in range(2)] == [401] * 2


async def test_many_right_logins_at_once_do_not_count(world: World) -> None:
    api, _ = await phone(world)
    for _ in range(3):
        await asyncio.gather(*(api.login("alice", PASSWORD) for _ in range(8)))
