"""Blocks on the REST service: what the blocker sees, and that the blocked user learns nothing."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshim.errors import ApiError
from meshim.rest import friends
from meshim.runtime import crypto
from meshim.stores.ports import Binding, Lease, User
from meshim.wire.client import Change
from meshim.wire.notification import AccountChanged
from tests.contract.rest.world import World, befriend, new_user, without_pause, world_of

T = TypeVar("T")


def told(world: World) -> list[tuple[tuple[int, ...], int]]:
    """Return whom the connectors were told to have changed, and what; forget it."""
    recorded = world.recorded.notifications
    found = [(each.users, each.what) for _, each in recorded if isinstance(each, AccountChanged)]
    assert len(found) == len(recorded)
    recorded.clear()
    return found


async def test_blocking_a_friend_ends_the_friendship(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        keys = (await befriend(world, alice, bob)).keys
        ids = ((await bob.user("alice")).user_id, (await alice.user("bob")).user_id)
        blocked = await alice.block("BOB")
        assert (blocked.peer.name, blocked.state, blocked.keys) == ("bob", "blocked", keys)
        assert told(world) == [(ids, Change.RELATIONS | Change.KEYS)], "as after a remove"
        assert [account and account.friends for account in await world.cache.accounts(ids)] == [(), ()]
        assert await alice.relations() == (blocked,)
        [seen] = await bob.relations()
        assert (seen.state, seen.keys) == ("removed", keys)

        assert await alice.block("bob") == blocked
        assert told(world) == []
        unblocked = await alice.unblock("bob")
        assert (unblocked.state, unblocked.keys) == ("removed", keys)
        assert told(world) == [((ids[0],), Change.RELATIONS)], "the peer is told nothing"


async def test_requests_of_a_blocked_user_are_hidden(world: World) -> None:
    without_pause(world)
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        mine, bobs = (await bob.user("alice")).user_id, (await alice.user("bob")).user_id
        assert (await alice.block("bob")).state == "blocked"
        assert told(world) == [((mine,), Change.RELATIONS)]
        assert await bob.relations() == ()
        for _ in range(2):
            assert (await bob.request("alice")).state == "requested"
            assert [each.state for each in await alice.relations()] == ["blocked"]
            await bob.remove("alice")
            with pytest.raises(ApiError, match="not friends"):
                await bob.relation("alice")
        assert told(world) == [((bobs,), Change.RELATIONS)] * 4, "the blocker is told nothing"
        await bob.request("alice")
        assert (await alice.unblock("bob")).state == "asked", "the request waits"
        assert (await bob.relation("alice")).state == "requested"


async def test_a_request_stays_with_a_block_and_a_request_of_the_blocker_is_withdrawn(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        mine, bobs = (await bob.user("alice")).user_id, (await alice.user("bob")).user_id
        await bob.request("alice")
        told(world)
        await alice.block("bob")
        assert told(world) == [((mine,), Change.RELATIONS)]
        assert (await bob.relation("alice")).state == "requested"
        await alice.unblock("bob")
        await alice.refuse("bob")
        await alice.request("bob")
        told(world)
        await alice.block("bob")
        assert told(world) == [((mine, bobs), Change.RELATIONS)], "as after withdrawing"
        assert await bob.relations() == ()


async def test_refusals_around_blocks_have_their_codes(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob"):
        await alice.block("bob")
        for call in (alice.request, alice.accept, alice.refuse, alice.remove):
            with pytest.raises(ApiError, match="You have blocked bob: unblock first") as refused:
                await call("bob")
            assert (refused.value.status, refused.value.code) == (409, "blocked")
        await alice.unblock("bob")
        with pytest.raises(ApiError, match="not blocked bob") as refused:
            await alice.unblock("bob")
        assert (refused.value.status, refused.value.code) == (409, "not_blocked")
        with pytest.raises(ApiError) as refused:
            await alice.block("nobody")
        assert (refused.value.status, refused.value.code) == (404, "no_such_user")
        await alice.import_users([(f"user{number}", "x") for number in range(4)])
        for number in range(3):
            await alice.block(f"user{number}")
        with pytest.raises(ApiError) as refused:
            await alice.block("user3")
        assert (refused.value.status, refused.value.code) == (409, "too_many_relations")


# ---------------------------------------------------------------- privacy: two worlds, one with blocks and one without

REQUESTS = {
    "request": "POST /v1/relations/{}",
    "accept": "POST /v1/relations/{}/accept",
    "refuse": "POST /v1/relations/{}/refuse",
    "remove": "DELETE /v1/relations/{}",
    "block": "POST /v1/relations/{}/block",
    "unblock": "POST /v1/relations/{}/unblock",
}
QUESTIONS = (
    "GET /v1/users/{}",
    "GET /v1/relations",
    "GET /v1/relations/{}",
    "GET /v1/relations?user_id={id}",
    "GET /v1/presence",
    "GET /v1/presence?user_id={id}",
)
STEPS = st.lists(st.tuples(st.sampled_from(["alice", "bob"]), st.sampled_from([*REQUESTS])), max_size=10)
"""Both may block: that of Bob is the same in both worlds."""

Reply = tuple[int, Any]


class Two:
    """Alice and Bob, new users of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tokens: dict[str, str] = {}
        self._users: dict[str, User] = {}

    async def make(self, number: int) -> None:
        for person in ("alice", "bob"):
            user = await self._world.accounts.register(f"{person}{number}", "x")
            token, now = secrets.token_bytes(32), time.time()
            await self._world.accounts.log_in(user.user_id, None, 0, crypto.hash_token(token), now + 3600, now, 3)
            await self._world.presence.online([(Binding(user.user_id, user.user_id, 7, 1), (user.user_id,))])
            self._users[person], self._tokens[person] = user, crypto.format_token(token)
        self._world.recorded.notifications.clear()

    async def ask(self, person: str, request: str) -> Reply:
        """Return status and body of the answer to a request about the other."""
        peer = self._users["bob" if person == "alice" else "alice"]
        method, path = request.format(peer.name, id=peer.user_id).split()
        async with self._world.raw() as http:
            headers = {"authorization": f"Bearer {self._tokens[person]}"}
            response = await http.request(method, path, headers=headers)
        return response.status_code, response.json() if response.content else None

    async def seen_by_bob(self) -> list[object]:
        bob = self._users["bob"].user_id
        seen: list[object] = [await self.ask("bob", question) for question in QUESTIONS]
        return [*seen, [what for users, what in told(self._world) if bob in users]]


class BlockedAndIgnored:
    """The same happens in two worlds, but where Alice blocks in one she removes, withdraws or ignores in the other."""

    def __init__(self, blocked: Two, ignored: Two) -> None:
        self._blocked = blocked
        self._ignored = ignored
        self._blocks = False

    async def step(self, person: str, action: str) -> None:
        request = REQUESTS[action]
        reply = await self._blocked.ask(person, request)
        if person == "bob":
            assert reply == await self._ignored.ask("bob", request)
        elif action == "block":
            await self._end_instead()
        elif action == "unblock":
            self._blocks = False
        elif self._blocks:
            assert reply[1]["code"] == "blocked"
        else:
            assert reply == await self._ignored.ask("alice", request), "no trace of an earlier block"
        assert await self._blocked.seen_by_bob() == await self._ignored.seen_by_bob()

    async def _end_instead(self) -> None:
        if not self._blocks:
            _, relation = await self._ignored.ask("alice", "GET /v1/relations/{}")
            if relation.get("state") in {"friends", "requested"}:
                await self._ignored.ask("alice", REQUESTS["remove"])
        self._blocks = True


@pytest.mark.parametrize(("kind", "examples"), [("memory", 60), ("sqlite", 15)])
def test_bob_cannot_tell_a_block_from_being_removed_or_ignored(
    kind: str, examples: int, request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(friends, "new_content_key", lambda: b"the same in both worlds".ljust(32))
    numbers = itertools.count()

    async def opened(stack: AsyncExitStack, name: str) -> World:
        redis: Callable[[], str] = lambda: str(request.getfixturevalue("valkey_url"))  # noqa: E731  (only if needed)
        opening = world_of(kind, lambda: f"sqlite:///{tmp_path}/{name}.db", redis, f"{name}{secrets.token_hex(4)}")
        world = await stack.enter_async_context(opening)
        await world.leases.acquire(Lease("connector", "c1", 7, "tcp://127.0.0.1:1"), 3600.0)
        return world

    async def run(worlds: list[World], steps: list[tuple[str, str]]) -> None:
        number = next(numbers)
        blocked, ignored = pairs = [Two(world) for world in worlds]
        for pair in pairs:
            await pair.make(number)
        both = BlockedAndIgnored(blocked, ignored)
        for person, action in steps:
            await both.step(person, action)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            worlds = [runner.run(opened(stack, name)) for name in ("blocked", "ignored")]

            @settings(max_examples=examples)
            @given(STEPS)
            @example([("alice", "request"), ("bob", "accept"), ("alice", "block"), ("bob", "request")])
            @example([("alice", "block"), ("bob", "request"), ("bob", "remove"), ("bob", "request")])
            @example([("bob", "request"), ("alice", "block"), ("bob", "request"), ("alice", "unblock")])
            @example([("alice", "request"), ("alice", "block"), ("bob", "accept"), ("bob", "request")])
            @example([("bob", "block"), ("alice", "request"), ("alice", "block"), ("bob", "unblock")])
            def same(steps: list[tuple[str, str]]) -> None:
                runner.run(run(worlds, steps))

            same()
        finally:
            runner.run(stack.aclose())
