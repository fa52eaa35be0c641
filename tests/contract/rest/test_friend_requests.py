"""Requests for friendship on the REST service: how many, how often, and who is told."""

import time

import msgspec
import pytest

from meshim.client.rest import Api
from meshim.errors import ApiError
from meshim.wire.client import Change
from meshim.wire.notification import AccountChanged
from tests.contract.rest.world import World, new_user

DAY_S = 86400.0


def limited(world: World, **limits: int) -> None:
    """Rebuild the service with these limits."""
    changed = msgspec.structs.replace(world.topology.limits, **limits)
    world.topology = msgspec.structs.replace(world.topology, limits=changed)
    world.app = world.build()


async def refused(api: Api, name: str) -> ApiError:
    with pytest.raises(ApiError) as error:
        await api.request(name)
    return error.value


def refusals(world: World) -> dict[str, int]:
    found: dict[str, int] = world.app.state.statistics.refused
    return found


async def test_the_oldest_request_goes_for_a_new_one_and_both_are_told(world: World) -> None:
    limited(world, friend_requests_incoming=2)
    async with await new_user(world, "alice") as alice:
        ids = {}
        for name in ("bob", "carol", "dora"):
            api = await new_user(world, name)
            ids[name] = (await alice.user(name)).user_id
            await api.request("alice")
        assert sorted(each.peer.name for each in await alice.relations()) == ["carol", "dora"]
        mine = (await api.user("alice")).user_id
    told = [each for _, each in world.recorded.notifications if isinstance(each, AccountChanged)]
    assert [set(each.users) for each in told[-2:]] == [{ids["dora"], mine}, {ids["bob"]}]
    assert {each.what for each in told} == {Change.RELATIONS}
    assert world.app.state.statistics.friend_requests_dropped == 1


async def test_who_was_refused_asks_again_after_the_pause(world: World) -> None:
    """And no answer tells a refusal from a withdrawal, or a peer who blocks the user meanwhile from another one."""
    now = time.time()
    world.app = world.build(clock=lambda: now)
    sentences = set()
    async with await new_user(world, "alice") as alice:
        for name in ("bob", "carol", "dora"):
            async with await new_user(world, name) as api:
                await api.request("alice")
                if name == "bob":
                    await alice.refuse("bob")
                else:
                    await api.remove("alice")
                if name == "dora":
                    await alice.block("dora")
                error = await refused(api, "alice")
                assert (error.status, error.code, error.retry_after_s) == (429, "asked_lately", 300.0)
                sentences.add(error.sentence)
                now += DAY_S
                assert (await api.request("alice")).state == "requested"
    assert sentences == {"Your last request to alice has ended: ask again in 24 hours."}
    assert refusals(world) == {"asked_lately": 3}


async def test_a_peer_is_told_of_one_request_and_its_end_in_a_day(world: World) -> None:
    """Asking and withdrawing each second keeps no device of the peer busy."""
    async with await new_user(world, "alice") as alice, await new_user(world, "bob"):
        bobs = (await alice.user("bob")).user_id
        await alice.request("bob")
        await alice.remove("bob")
        for _ in range(20):
            assert (await refused(alice, "bob")).code == "asked_lately"
    told = [each for _, each in world.recorded.notifications if isinstance(each, AccountChanged)]
    assert sum(bobs in each.users for each in told) == 2


async def test_requests_that_wait_are_limited(world: World) -> None:
    limited(world, friend_requests_outgoing=2)
    async with await new_user(world, "alice") as alice:
        await alice.import_users([(f"user{number}", "x") for number in range(3)])
        for number in range(2):
            await alice.request(f"user{number}")
        error = await refused(alice, "user2")
        assert (error.status, error.code) == (409, "too_many_requests")
        assert "2 people have not answered you yet" in error.sentence
        await alice.remove("user0")
        assert (await alice.request("user2")).state == "requested"


async def test_requests_of_a_user_have_a_rate(world: World) -> None:
    now = time.time()
    limited(world, friend_requests_per_hour=3)
    world.app = world.build(clock=lambda: now)
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await alice.import_users([(f"user{number}", "x") for number in range(4)])
        for number in range(3):
            await alice.request(f"user{number}")
        assert (await alice.request("user0")).state == "requested", "it is there already, and costs nothing"
        error = await refused(alice, "user3")
        assert (error.status, error.code, error.retry_after_s) == (429, "slow_down", 300.0)
        assert "in 20 minutes" in error.sentence
        assert (await bob.request("user3")).state == "requested", "another user"
        now += 1200
        assert (await alice.request("user3")).state == "requested"


async def test_relations_are_counted_for_both_when_a_request_is_accepted(world: World) -> None:
    limited(world, relations_per_user=1)
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        carol, dora = await new_user(world, "carol"), await new_user(world, "dora")
        await carol.request("alice")
        await alice.request("dora")
        await bob.request("alice")
        await alice.accept("bob")
        for call in (alice.accept("carol"), dora.accept("alice")):
            with pytest.raises(ApiError, match="One of you knows too many people") as full:
                await call
            assert (full.value.status, full.value.code) == (409, "too_many_relations")
        error = await refused(bob, "dora")
        assert (error.code, error.sentence) == ("too_many_relations", "You know too many people already.")
