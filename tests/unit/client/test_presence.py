"""Presence is asked for those who are watched, while somebody looks; on virtual time over the fake REST service."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from meshim.client.application.public_events import Presence, PresenceChanged
from meshim.errors import UsageError
from tests import virtual_time
from tests.unit.client.friends_world import FriendsWorld, waiting

NAMES = [f"friend{number}" for number in range(250)]


def scenario(test: Callable[[FriendsWorld], Awaitable[None]]) -> Callable[[], None]:
    """Run the test in a world with the friends bob and carol, who is online, on virtual time."""

    async def main() -> None:
        async with FriendsWorld("bob", "carol") as world:
            world.service.online = {3}
            await test(world)

    def run() -> None:
        virtual_time.run(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def changed(name: str, old: Presence, new: Presence) -> PresenceChanged:
    return PresenceChanged(name=name, old=old, new=new)


@scenario
async def test_only_changes_are_told_and_only_of_friends_who_are_watched(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.connect()
    world.presence.watch(["Carol", "carol", "dave"])
    await asyncio.sleep(2.0)
    assert waiting(reader) == [changed("carol", "unknown", "online")]
    assert (world.presence.presence("CAROL"), world.presence.presence("dave")) == ("online", "unknown")
    await asyncio.sleep(100.0)
    assert waiting(reader) == []
    assert 8 <= world.asked("/presence") <= 14
    assert set(world.service.requests) - {"/relations"} == {"/presence?user_id=3"}
    world.service.online.clear()
    await asyncio.sleep(12.0)
    assert waiting(reader) == [changed("carol", "online", "offline")]
    world.presence.unwatch(["carol"])
    assert world.presence.presence("carol") == "unknown"
    asked = world.asked("/presence")
    await asyncio.sleep(100.0)
    assert (waiting(reader), world.asked("/presence")) == ([], asked)


@pytest.mark.parametrize("missing", ["watched", "connection", "reader"])
def test_nothing_is_asked_unless_a_friend_is_watched_an_application_reads_and_there_is_a_connection(
    missing: str,
) -> None:
    @scenario
    async def test(world: FriendsWorld) -> None:
        reader = None if missing == "reader" else world.subscribe()
        if missing != "connection":
            world.connect()
        if missing != "watched":
            world.presence.watch(["carol"])
        await asyncio.sleep(100.0)
        assert world.asked("/presence") == 0
        reader = reader or world.subscribe()
        world.presence.watch(["carol"])
        if missing == "connection":
            world.connect()
        await asyncio.sleep(2.0)
        assert changed("carol", "unknown", "online") in waiting(reader)

    test()


@scenario
async def test_presence_is_unknown_while_the_service_or_the_connection_is_away(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.connect()
    world.presence.watch(["bob", "carol"])
    await asyncio.sleep(2.0)
    assert waiting(reader) == [changed("bob", "unknown", "offline"), changed("carol", "unknown", "online")]
    world.service.away = True
    await asyncio.sleep(12.0)
    assert waiting(reader) == [changed("bob", "offline", "unknown"), changed("carol", "online", "unknown")]
    assert world.statistics.presence_requests_failed == 1
    world.service.away = False
    await asyncio.sleep(12.0)
    assert len(waiting(reader)) == 2
    world.online.clear()
    await asyncio.sleep(12.0)
    assert waiting(reader) == [changed("bob", "offline", "unknown"), changed("carol", "online", "unknown")]
    world.connect()
    await asyncio.sleep(1.1)
    assert len(waiting(reader)) == 2


@scenario
async def test_the_end_of_a_friendship_ends_presence(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.connect()
    world.presence.watch(["carol"])
    await asyncio.sleep(2.0)
    assert waiting(reader) == [changed("carol", "unknown", "online")]
    world.service.set_relation("carol", "removed")
    await asyncio.sleep(12.0)
    assert waiting(reader) == [changed("carol", "online", "unknown")]  # this device does not know of the end yet
    await world.relations.friends()
    asked = world.asked("/presence")
    await asyncio.sleep(100.0)
    assert world.asked("/presence") == asked


@pytest.mark.parametrize(("retry_after_s", "known"), [(4.0, "online"), (60.0, "unknown")])
def test_retry_after_is_honoured(retry_after_s: float, known: Presence) -> None:
    @scenario
    async def test(world: FriendsWorld) -> None:
        world.subscribe()
        world.connect()
        world.presence.watch(["carol"])
        await asyncio.sleep(2.0)
        world.service.slow_down_s = retry_after_s
        async with asyncio.timeout(15.0):
            while world.service.slow_down_s:
                await asyncio.sleep(0.1)
        asked = world.asked("/presence")
        await asyncio.sleep(retry_after_s - 0.2)
        assert (world.asked("/presence"), world.presence.presence("carol")) == (asked, known)
        await asyncio.sleep(0.4)
        assert (world.asked("/presence"), world.presence.presence("carol")) == (asked + 1, "online")

    test()


def test_a_request_asks_for_a_hundred_friends_at_most() -> None:
    async def main() -> None:
        async with FriendsWorld(*NAMES, watched_max=250) as world:
            world.service.online = set(range(1000))
            world.subscribe()
            world.connect()
            world.presence.watch(NAMES)
            await asyncio.sleep(0.9)
            assert world.asked("/presence") <= 1, "100 friends a second"
            await asyncio.sleep(2.2)
            assert world.asked("/presence") == 3  # the service asserts the limit
            assert {world.presence.presence(name) for name in NAMES} == {"online"}
            with pytest.raises(UsageError, match="At most 250 friends"):
                world.presence.watch(["one.more"])
            world.presence.watch(NAMES)

    virtual_time.run(main)


@scenario
async def test_watching_many_one_after_the_other_becomes_a_request_a_second(world: FriendsWorld) -> None:
    world.subscribe()
    world.connect()
    for number in range(50):
        world.presence.watch([f"friend{number}", "carol"])
        await asyncio.sleep(0.1)
    assert 4 <= world.asked("/presence") <= 7


@scenario
async def test_what_cannot_be_a_name_is_refused(world: FriendsWorld) -> None:
    for call in (world.presence.watch, world.presence.unwatch):
        with pytest.raises(UsageError, match="cannot be the name"):
            call(["no name"])
