"""Relations are asked for when the mesh says that they changed, on virtual time over the fake REST service."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from meshim.client.application.public_events import KeyChanged, RelationChanged, relation_state
from meshim.client.friends.relations import BACKOFF_MAX_S, JITTER_S, SPACING_S, Friend
from meshim.errors import ApiError
from meshim.wire import rest
from tests import virtual_time
from tests.unit.client.friends_world import FriendsWorld, waiting


def scenario(test: Callable[[FriendsWorld], Awaitable[None]]) -> Callable[[], None]:
    """Run the test in a world with the friends bob and carol, on virtual time."""

    async def main() -> None:
        async with FriendsWorld("bob", "carol") as world:
            await test(world)

    def run() -> None:
        virtual_time.run(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def bob(old: str, new: str) -> RelationChanged:
    return RelationChanged(user_id=2, name="bob", old=relation_state(old), new=relation_state(new))


@scenario
async def test_a_changed_frame_becomes_one_event(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.service.set_relation("bob", "removed")
    world.relations.changed()
    await asyncio.sleep(0.1)
    assert waiting(reader) == [bob("friends", "removed")]
    assert world.asked("/relations") == 1
    assert [(each.peer.name, each.state) for each in world.session.persisted[-2:]] == [
        ("bob", "removed"),
        ("carol", "friends"),
    ]


@pytest.mark.parametrize("state", ["asked", "requested", "blocked"])
def test_a_relation_that_rest_does_not_list_any_more_has_ended(state: str) -> None:
    """REST deletes the request of two users who never were friends when it is withdrawn or refused."""

    @scenario
    async def test(world: FriendsWorld) -> None:
        world.service.set_relation("bob", state)
        await world.relations.friends()
        reader = world.subscribe()
        world.service.relations = tuple(each for each in world.service.relations if each.peer.name != "bob")
        world.relations.changed()
        await asyncio.sleep(0.1)
        assert waiting(reader) == [bob(state, "removed")]
        assert [(each.peer.name, each.state) for each in world.session.persisted[-2:]] == [
            ("carol", "friends"),
            ("bob", "removed"),
        ]
        world.relations.changed()
        await asyncio.sleep(2 * SPACING_S)
        assert waiting(reader) == [], "it is told once"

    test()


@scenario
async def test_nothing_is_asked_while_no_application_reads_and_everything_once_it_does(world: FriendsWorld) -> None:
    world.connect()
    world.service.set_relation("bob", "removed")
    world.relations.changed()
    await asyncio.sleep(100)
    assert world.service.requests == []
    reader = world.subscribe()
    await asyncio.sleep(0.1)
    assert waiting(reader) == [bob("friends", "removed")]
    await asyncio.sleep(100)
    assert world.asked("/relations") == 1
    reader.close()
    world.relations.changed()
    await asyncio.sleep(100)
    assert world.asked("/relations") == 1


@scenario
async def test_many_changes_become_one_request_a_second_and_the_last_is_seen(world: FriendsWorld) -> None:
    reader = world.subscribe()
    for number in range(100):
        world.service.set_relation("bob", "removed" if number % 2 == 0 else "friends")
        world.relations.changed()
        await asyncio.sleep(0.1)
    world.service.set_relation("bob", "asked")
    world.relations.changed()
    await asyncio.sleep(2 * SPACING_S)
    assert 8 <= world.asked("/relations") <= 12
    assert waiting(reader) == [bob("friends", "asked")]


@scenario
async def test_requests_never_overlap(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.session.delay_s = 5.0
    world.relations.changed()
    await asyncio.sleep(1.0)
    world.service.set_relation("bob", "removed")
    world.relations.changed()
    await asyncio.sleep(3.0)
    assert world.asked("/relations") == 1
    await asyncio.sleep(11.0)
    assert waiting(reader) == [bob("friends", "removed")], "the second Changed came while the first request ran"
    listed = [asyncio.create_task(world.relations.friends()) for _ in range(2)]
    await asyncio.sleep(4.0)
    assert world.asked("/relations") == 3
    assert [await each for each in listed] == [[Friend(3, "carol", "friends")]] * 2


@scenario
async def test_a_welcome_is_followed_by_a_request_within_the_jitter(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.service.set_relation("bob", "asked")
    world.connect()
    await asyncio.sleep(JITTER_S + 0.01)
    assert waiting(reader) == [bob("friends", "asked")]


@scenario
async def test_a_service_that_is_away_is_asked_again_with_back_off(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.service.away = True
    world.relations.changed()
    await asyncio.sleep(600)
    failed = world.statistics.relation_requests_failed
    assert 600 / (1.5 * BACKOFF_MAX_S) < failed < 60
    assert waiting(reader) == []
    world.service.away = False
    world.service.set_relation("carol", "removed")
    await asyncio.sleep(1.5 * BACKOFF_MAX_S)
    assert [event.name for event in waiting(reader) if isinstance(event, RelationChanged)] == ["carol"]
    assert world.statistics.relation_requests_failed == failed
    world.service.set_relation("carol", "friends")
    world.relations.changed()
    await asyncio.sleep(SPACING_S)
    assert len(waiting(reader)) == 1, "the back-off began anew"


@scenario
async def test_an_answer_from_before_a_change_of_this_device_is_not_believed(world: FriendsWorld) -> None:
    reader = world.subscribe()
    world.session.delay_s = 1.0
    world.service.set_relation("bob", "asked")
    world.relations.changed()
    await asyncio.sleep(0.5)  # the answer "asked" is on its way
    world.session.delay_s = 0.0
    assert await world.relations.change(lambda api: api.accept("bob")) == Friend(2, "bob", "friends")
    await asyncio.sleep(5.0)
    assert waiting(reader) == [], "bob was a friend and is one"
    assert world.contacts.friend_id("bob") == 2


@scenario
async def test_changes_of_the_application_are_events_too(world: FriendsWorld) -> None:
    reader = world.subscribe()
    relations = world.relations
    await relations.end("Bob", lambda api: api.remove("Bob".lower()))
    assert waiting(reader) == [bob("friends", "removed")]
    assert await relations.change(lambda api: api.request("bob")) == Friend(2, "bob", "requested")
    assert await relations.change(lambda api: api.block("bob")) == Friend(2, "bob", "blocked")
    assert waiting(reader) == [bob("removed", "blocked")]
    assert await relations.friends() == [Friend(2, "bob", "blocked"), Friend(3, "carol", "friends")]
    assert await relations.change(lambda api: api.unblock("bob")) == Friend(2, "bob", "removed")
    assert await relations.friends() == [Friend(3, "carol", "friends")]
    with pytest.raises(ApiError, match="no such user") as refused:
        await relations.end("nobody", lambda api: api.remove("nobody"))
    assert refused.value.code == "no_such_user"


@scenario
async def test_a_new_key_and_a_state_of_a_later_version(world: FriendsWorld) -> None:
    reader = world.subscribe()
    peer = rest.User(2, "bob")
    keys = tuple(rest.ContentKey(version, bytes(32)) for version in (1, 2))
    world.service.relations = (rest.Relation(peer, "engaged", keys), world.service.relations[1])
    world.relations.changed()
    await asyncio.sleep(0.1)
    assert waiting(reader) == [bob("friends", "none"), KeyChanged(user_id=2, name="bob", version=2)]
