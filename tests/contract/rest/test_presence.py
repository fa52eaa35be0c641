"""Presence on the REST service: who is looked at, and how often."""

import time

import msgspec
import pytest

from meshim.errors import ApiError
from meshim.rest.core import PRESENCE_IDS_MAX
from meshim.stores.ports import Binding, Lease
from meshim.wire import rest
from meshim.wire.bounds import INTEGER_MAX
from tests.contract.rest.world import World, befriend, new_user


async def test_presence_tells_of_the_friends_among_those_asked_for(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await new_user(world, "carol")
        ids = {name: (await bob.user(name)).user_id for name in ("alice", "bob", "carol")}
        await befriend(world, alice, bob)
        await world.leases.acquire(Lease("connector", "c1", 7, "tcp://127.0.0.1:1"), 60.0)
        await world.presence.online([(Binding(user, user, 7, 1), (user,)) for user in ids.values()])
        online = (rest.PeerPresence(rest.User(ids["bob"], "bob"), online=True),)
        assert await alice.presence([ids["bob"], ids["carol"], ids["alice"], INTEGER_MAX, ids["bob"]]) == online
        assert await alice.presence([ids["carol"]]) == await alice.presence([]) == ()
        assert await alice.presence() == online
        await bob.block("alice")
        assert await alice.presence([ids["bob"]]) == ()


async def test_at_most_so_many_are_asked_for(world: World) -> None:
    async with await new_user(world, "alice") as alice, world.raw() as http:
        assert await alice.presence(range(1, PRESENCE_IDS_MAX + 1)) == ()
        for query in ("&".join(f"user_id={n}" for n in range(1, PRESENCE_IDS_MAX + 2)), "user_id=bob", "user_id=0"):
            answer = await http.get(f"/v1/presence?{query}", headers={"authorization": f"Bearer {alice.token}"})
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


async def test_questions_about_presence_are_limited_by_user(world: World) -> None:
    now = time.time()
    limits = msgspec.structs.replace(world.topology.limits, presence_lookups_per_s=10)
    world.topology = msgspec.structs.replace(world.topology, limits=limits)
    app = world.build(clock=lambda: now)
    async with await new_user(world, "alice") as one, await new_user(world, "bob") as other:
        alice, bob = world.api(one.token, app), world.api(other.token, app)
        await alice.presence(range(1, 36))
        for user_ids in ([1], None):
            with pytest.raises(ApiError, match="try again in 3 s") as refused:
                await alice.presence(user_ids)
            assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "slow_down", 3.0)
        await bob.presence([1])
        now += 3
        await alice.presence([1])


async def test_a_look_at_all_friends_costs_as_much_as_one_at_each(world: World) -> None:
    now = time.time()
    limits = msgspec.structs.replace(world.topology.limits, presence_lookups_per_s=2)
    world.topology = msgspec.structs.replace(world.topology, limits=limits)
    async with await new_user(world, "alice") as alice, world.api(alice.token, world.build(clock=lambda: now)) as api:
        for name in ("bob", "carol"):
            await befriend(world, alice, await new_user(world, name), name)
        assert len(await api.presence()) == 2
        with pytest.raises(ApiError) as refused:
            await api.presence()
        assert refused.value.code == "slow_down"
