"""The port `Accounts`: blocks between two users, in memory, on SQLite and on MariaDB."""

import asyncio

import pytest

from meshim.errors import StoreConflict, TooManyRelations
from meshim.stores.ports import RelationKey, User
from tests.contract.sql.backends import LIMITS, NOW, Backend, Ports, person, processes

MANY = 100


async def _befriend(ports: Ports, one: User, other: User, version: int = 1) -> None:
    await ports.accounts.request(one.user_id, other.user_id, NOW, LIMITS)
    await ports.accounts.accept(other.user_id, one.user_id, RelationKey(version, b"key %d" % version), NOW, MANY)


async def _bring_about(ports: Ports, one: User, other: User, state: str | None) -> None:
    """Make `state` what `one` sees of a new pair."""
    if state == "requested":
        await ports.accounts.request(one.user_id, other.user_id, NOW, LIMITS)
    if state == "asked":
        await ports.accounts.request(other.user_id, one.user_id, NOW, LIMITS)
    if state in {"friends", "removed"}:
        await _befriend(ports, one, other)
    if state == "removed":
        await ports.accounts.remove(other.user_id, one.user_id, NOW)


async def _block(ports: Ports, one: User, other: User, most: int = MANY) -> str | None:
    return await ports.accounts.block(one.user_id, other.user_id, NOW, most)


async def _unblock(ports: Ports, one: User, other: User) -> bool:
    return await ports.accounts.unblock(one.user_id, other.user_id, NOW)


async def _request(ports: Ports, one: User, other: User, most: int = MANY) -> str:
    limits = LIMITS._replace(relations=most)
    return (await ports.accounts.request(one.user_id, other.user_id, NOW, limits)).state


async def _remove(ports: Ports, one: User, other: User) -> str | None:
    return await ports.accounts.remove(one.user_id, other.user_id, NOW)


async def _sees(ports: Ports, one: User, other: User) -> str | None:
    """What `one` sees, the same by both ways to look."""
    found = await ports.accounts.relation(one.user_id, other.user_id)
    listed = [each for each in await ports.accounts.relations(one.user_id) if each.peer == other]
    assert listed == ([] if found is None else [found])
    return None if found is None else found.state


@pytest.mark.parametrize("later_blocks", [False, True], ids=["lower id blocks", "higher id blocks"])
@pytest.mark.parametrize(
    ("before", "peer_sees", "after"),
    [
        (None, None, None),
        ("requested", None, None),
        ("asked", "requested", "asked"),
        ("friends", "removed", "removed"),
        ("removed", "removed", "removed"),
    ],
)
async def test_block_ends_what_the_blocker_wanted_and_is_seen_by_the_blocker_alone(
    ports: Ports, before: str | None, peer_sees: str | None, after: str | None, later_blocks: bool
) -> None:
    alice, bob = await person(ports), await person(ports)
    if later_blocks:
        alice, bob = bob, alice
    await _bring_about(ports, alice, bob, before)
    keys = 1 if before in {"friends", "removed"} else 0

    assert await _block(ports, alice, bob) == before
    assert await _block(ports, alice, bob) == "blocked"
    assert await _sees(ports, alice, bob) == "blocked"
    assert await _sees(ports, bob, alice) == peer_sees
    relation = await ports.accounts.relation(alice.user_id, bob.user_id)
    assert relation is not None
    assert len(relation.keys) == keys, "they open old messages"
    accounts = await ports.accounts.accounts([alice.user_id, bob.user_id], NOW)
    assert [account.friends for account in accounts.values()] == [(), ()]

    assert await _unblock(ports, alice, bob)
    assert not await _unblock(ports, alice, bob)
    assert await _sees(ports, alice, bob) == after
    assert await _sees(ports, bob, alice) == peer_sees


async def test_request_to_the_blocker_is_hidden_until_the_block_ends(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _block(ports, alice, bob)
    for _ in range(2):
        assert await _request(ports, bob, alice) == "hidden"
        assert await _sees(ports, bob, alice) == "requested"
        assert await _sees(ports, alice, bob) == "blocked"
    assert await _remove(ports, bob, alice) == "hidden"
    assert await _remove(ports, bob, alice) is None
    assert await _sees(ports, bob, alice) is None
    assert await _request(ports, bob, alice) == "hidden"
    assert await _unblock(ports, alice, bob)
    assert await _sees(ports, alice, bob) == "asked"
    await ports.accounts.accept(alice.user_id, bob.user_id, RelationKey(1, b"k"), NOW, MANY)
    assert await _sees(ports, bob, alice) == "friends"


async def test_the_blocker_unblocks_before_anything_else(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _request(ports, bob, alice)
    await _block(ports, alice, bob)
    assert await _request(ports, alice, bob) == "blocked"
    assert await _remove(ports, alice, bob) is None
    with pytest.raises(StoreConflict, match="has not asked"):
        await ports.accounts.accept(alice.user_id, bob.user_id, RelationKey(1, b"k"), NOW, MANY)
    assert await _sees(ports, bob, alice) == "requested"


async def test_two_users_block_each_other(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _befriend(ports, alice, bob)
    assert await _block(ports, alice, bob) == "friends"
    assert await _request(ports, bob, alice) == "hidden"
    assert await _block(ports, bob, alice) == "hidden", "the own request is withdrawn"
    assert (await _sees(ports, alice, bob), await _sees(ports, bob, alice)) == ("blocked", "blocked")
    assert await _unblock(ports, alice, bob)
    assert (await _sees(ports, alice, bob), await _sees(ports, bob, alice)) == ("removed", "blocked")
    assert await _request(ports, alice, bob) == "hidden"
    assert await _unblock(ports, bob, alice)
    assert (await _sees(ports, alice, bob), await _sees(ports, bob, alice)) == ("requested", "asked")


async def test_of_two_blocks_of_strangers_each_ends_by_itself(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    assert await _block(ports, alice, bob) is None
    assert await _block(ports, bob, alice) is None, "nothing to see yet"
    assert await _unblock(ports, bob, alice)
    assert (await _sees(ports, alice, bob), await _sees(ports, bob, alice)) == ("blocked", None)
    assert await _unblock(ports, alice, bob)
    assert await _request(ports, alice, bob) == "requested"


async def test_of_a_pair_without_relation_and_block_nothing_is_kept(backend: Backend) -> None:
    ports = backend.process()
    alice, bob = await person(ports), await person(ports)
    await _block(ports, alice, bob)
    assert await backend.pairs() == 1
    await _unblock(ports, alice, bob)
    assert await backend.pairs() == 0
    await _request(ports, bob, alice)
    await _block(ports, alice, bob)
    await _unblock(ports, alice, bob)
    assert await backend.pairs() == 1
    await ports.accounts.accept(alice.user_id, bob.user_id, RelationKey(1, b"k"), NOW, MANY)
    assert await backend.pairs() == 1, "test_friend_requests.py has what a request leaves"


async def test_keys_go_on_after_a_block(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _befriend(ports, alice, bob)
    await _block(ports, alice, bob)
    await _unblock(ports, alice, bob)
    await _befriend(ports, bob, alice, version=2)
    relation = await ports.accounts.relation(alice.user_id, bob.user_id)
    assert relation is not None
    assert (relation.state, [key.version for key in relation.keys]) == ("friends", [1, 2])


async def test_a_block_counts_for_the_blocker_beside_the_relation(ports: Ports) -> None:
    alice, bob, carol, dave = [await person(ports) for _ in range(4)]
    await _block(ports, alice, bob, 1)
    with pytest.raises(StoreConflict, match="You have 1 relations"):
        await _block(ports, alice, carol, 1)
    with pytest.raises(StoreConflict, match="You have 1 relations"):
        await _request(ports, alice, carol, 1)
    assert await _request(ports, bob, alice, 1) == "hidden"
    assert await _request(ports, carol, alice, 1) == "requested", "the blocked user gets the same answer as any other"
    with pytest.raises(TooManyRelations, match="You have 1 relations"):
        await ports.accounts.accept(alice.user_id, carol.user_id, RelationKey(1, b"k"), NOW, 1)
    assert await _request(ports, bob, dave, 1) == "requested", "it does not count for the one who is blocked"

    await ports.accounts.accept(alice.user_id, carol.user_id, RelationKey(1, b"k"), NOW, 2)
    with pytest.raises(TooManyRelations, match="You have 2 relations"):
        await _block(ports, alice, dave, 2)
    assert await _block(ports, alice, carol, 2) == "friends"
    assert await _unblock(ports, alice, bob)
    with pytest.raises(TooManyRelations, match="You have 2 relations"):
        await _block(ports, alice, dave, 2)
    assert await _unblock(ports, alice, carol)
    assert await _block(ports, alice, dave, 2) is None, "its place is free again"


async def test_who_is_known_can_always_be_blocked(ports: Ports) -> None:
    alice, bob, carol, dave = [await person(ports) for _ in range(4)]
    await _bring_about(ports, alice, bob, "friends")
    await _bring_about(ports, alice, carol, "asked")
    assert await _block(ports, alice, bob, 1) == "friends"
    assert await _block(ports, alice, carol, 1) == "asked"
    assert await _block(ports, alice, carol, 1) == "blocked"
    with pytest.raises(TooManyRelations):
        await _block(ports, alice, dave, 1)


async def test_block_of_oneself_or_an_unknown_user_is_refused(ports: Ports) -> None:
    alice = await person(ports)
    for peer, sentence in ((alice.user_id, "themselves"), (1 << 52, "no such user")):
        with pytest.raises(StoreConflict, match=sentence):
            await ports.accounts.block(alice.user_id, peer, NOW, MANY)
        assert not await ports.accounts.unblock(alice.user_id, peer, NOW)


async def test_block_and_acceptance_at_once_leave_no_friends(backend: Backend) -> None:
    ports = backend.process()
    one, other = await processes(backend, 2)
    for _ in range(5):
        alice, bob = await person(ports), await person(ports)
        await _request(ports, alice, bob)
        await asyncio.gather(
            _block(one, alice, bob),
            other.accounts.accept(bob.user_id, alice.user_id, RelationKey(1, b"k"), NOW, MANY),
            return_exceptions=True,
        )
        assert await _sees(ports, alice, bob) == "blocked"
        assert await _sees(ports, bob, alice) in {None, "removed"}


async def test_blocks_are_limited_for_calls_at_once(backend: Backend) -> None:
    ports = backend.process()
    alice, *others = [await person(ports) for _ in range(7)]
    blocks = (
        _block(process, alice, other, 2) for process, other in zip(await processes(backend, 6), others, strict=True)
    )
    answers = await asyncio.gather(*blocks, return_exceptions=True)
    assert answers.count(None) == 2
    assert [each.state for each in await ports.accounts.relations(alice.user_id)] == ["blocked"] * 2


async def test_two_blocks_of_each_other_at_once_both_hold(backend: Backend) -> None:
    ports = backend.process()
    alice, bob = await person(ports), await person(ports)
    one, other = await processes(backend, 2)
    before = await asyncio.gather(_block(one, alice, bob), _block(other, bob, alice))
    assert list(before) == [None, None]
    assert (await _sees(ports, alice, bob), await _sees(ports, bob, alice)) == ("blocked", "blocked")


async def test_friends_are_found_by_name_and_among_ids(ports: Ports) -> None:
    me = await ports.accounts.register("me", "hash")
    zoe, adam, eve, ivy = [await ports.accounts.register(name, "hash") for name in ("zoe", "adam", "eve", "ivy")]
    await _befriend(ports, me, zoe)
    await _befriend(ports, adam, me)
    await _befriend(ports, zoe, eve)
    await _request(ports, ivy, me)
    ids = [each.user_id for each in (me, zoe, eve, ivy)]
    assert await ports.accounts.friends(me.user_id) == [adam, zoe]
    assert await ports.accounts.friends(me.user_id, [*ids, 1 << 52]) == [zoe]
    assert await ports.accounts.friends(zoe.user_id, ids) == [eve, me]
    assert await ports.accounts.friends(me.user_id, []) == []
