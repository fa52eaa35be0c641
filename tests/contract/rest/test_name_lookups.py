"""Names that a user may look up: whichever endpoint tells whether there is such a user."""

import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from meshim.client.rest import Api
from meshim.errors import ApiError
from tests.contract.rest.world import World, befriend, new_user, without_pause

LOOKUPS: dict[str, Callable[[Api, str], Awaitable[object]]] = {
    "user": Api.user,
    "relation": Api.relation,
    "request": Api.request,
    "accept": Api.accept,
    "refuse": Api.refuse,
    "remove": Api.remove,
    "block": Api.block,
    "unblock": Api.unblock,
}


def limited(world: World, lookups: int, now: float) -> None:
    limits = msgspec.structs.replace(world.topology.limits, name_lookups_per_minute=lookups)
    world.topology = msgspec.structs.replace(world.topology, limits=limits)
    world.app = world.build(clock=lambda: now)


@pytest.mark.parametrize("endpoint", LOOKUPS)
async def test_names_that_a_user_tries_are_limited(world: World, endpoint: str) -> None:
    now = time.time()
    limited(world, 3, now)
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        for name in ("nobody", "no-one", "none"):
            with pytest.raises(ApiError) as refused:
                await LOOKUPS[endpoint](alice, name)
            assert refused.value.code == "no_such_user"
        for name in ("bob", "nobody"):
            with pytest.raises(ApiError, match="looked up many names: try again in 20 s") as refused:
                await LOOKUPS[endpoint](alice, name)
            assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "slow_down", 20.0)
        assert (await bob.user("alice")).name == "alice", "another user"
        later = world.api(alice.token, world.build(clock=lambda: now + 21))
        assert (await later.user("bob")).name == "bob"
        assert world.app.state.statistics.refused["slow_down"] == 2


async def test_who_is_known_can_be_named_as_often_as_one_likes(world: World) -> None:
    limited(world, 3, time.time())
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await befriend(world, alice, bob)
        for _ in range(5):
            assert (await alice.relation("bob")).state == "friends"
            assert (await alice.request("bob")).state == "friends"
        await alice.block("bob")
        for _ in range(5):
            with pytest.raises(ApiError, match="unblock first"):
                await alice.request("bob")
        await alice.unblock("bob")


async def test_a_stranger_who_is_asked_and_withdrawn_costs_one_lookup_each_time(world: World) -> None:
    without_pause(world)
    limited(world, 3, time.time())
    async with await new_user(world, "alice") as alice, await new_user(world, "bob"):
        for _ in range(3):
            await alice.request("bob")
            await alice.remove("bob")
        with pytest.raises(ApiError, match="looked up many names"):
            await alice.request("bob")
