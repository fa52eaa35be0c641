"""The port `Accounts`: requests for friendship that nobody answers, in memory, on SQLite and on MariaDB."""

import asyncio

import pytest

from meshim.errors import AskedLately, TooManyRelations, TooManyRequests
from meshim.stores.ports import RelationKey, RelationLimits, Requested, User
from tests.contract.sql.backends import NOW, Backend, Ports, person, processes

PAUSE_S = 3600.0
LIMITS = RelationLimits(relations=2, incoming=3, outgoing=3, pause_s=PAUSE_S)


async def _ask(ports: Ports, one: User, other: User, now: float = NOW) -> Requested:
    return await ports.accounts.request(one.user_id, other.user_id, now, LIMITS)


async def _accept(ports: Ports, one: User, other: User, version: int = 1) -> None:
    key = RelationKey(version, b"key")
    await ports.accounts.accept(one.user_id, other.user_id, key, NOW, LIMITS.relations)


async def _askers(ports: Ports, user: User) -> set[int]:
    return {each.peer.user_id for each in await ports.accounts.relations(user.user_id) if each.state == "asked"}


async def test_requests_of_strangers_take_no_place_of_the_relations_of_the_one_who_is_asked(ports: Ports) -> None:
    """A7: however many ask, the user can go on to make friends."""
    alice, bob, carol, *strangers = [await person(ports) for _ in range(8)]
    for number, stranger in enumerate(strangers):
        await _ask(ports, stranger, alice, NOW + number)
    assert await _ask(ports, alice, bob, NOW) == Requested("requested")
    await _accept(ports, bob, alice)
    assert await _ask(ports, carol, alice, NOW + 100) == Requested("requested", strangers[2].user_id)
    await _accept(ports, alice, carol)


async def test_of_the_requests_to_a_user_the_oldest_goes_for_a_new_one(ports: Ports) -> None:
    alice, *others = [await person(ports) for _ in range(5)]
    oldest, *kept, newest = others
    for number, other in enumerate(others[:3]):
        assert await _ask(ports, other, alice, NOW + number) == Requested("requested")
    assert await _ask(ports, newest, alice, NOW + 9) == Requested("requested", oldest.user_id)
    assert await _askers(ports, alice) == {each.user_id for each in (*kept, newest)}
    assert await ports.accounts.relation(oldest.user_id, alice.user_id) is None
    assert await _ask(ports, oldest, alice, NOW + 9) == Requested("requested", kept[0].user_id), "without a pause"


async def test_a_request_that_a_block_hides_goes_in_its_turn(ports: Ports) -> None:
    """Neither sooner nor later, or its user would learn of the block."""
    alice, *others = [await person(ports) for _ in range(6)]
    for number, other in enumerate(others[:3]):
        await _ask(ports, other, alice, NOW + number)
    await ports.accounts.block(alice.user_id, others[1].user_id, NOW + 4, 100)
    assert (await _ask(ports, others[3], alice, NOW + 5)).dropped == others[0].user_id
    assert (await _ask(ports, others[4], alice, NOW + 6)).dropped == others[1].user_id
    assert await ports.accounts.relation(others[1].user_id, alice.user_id) is None
    [blocked] = [each for each in await ports.accounts.relations(alice.user_id) if each.state == "blocked"]
    assert blocked.peer == others[1]


async def test_requests_of_a_user_that_wait_are_limited(ports: Ports) -> None:
    alice, *others = [await person(ports) for _ in range(5)]
    for other in others[:3]:
        await _ask(ports, alice, other)
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            await _ask(ports, alice, others[3])
    assert await _ask(ports, alice, others[0]) == Requested("requested"), "it is there already"
    assert await ports.accounts.remove(others[0].user_id, alice.user_id, NOW)
    assert await _ask(ports, alice, others[3]) == Requested("requested")


async def test_requests_of_a_user_are_limited_when_made_at_once(backend: Backend) -> None:
    ports = backend.process()
    alice, *others = [await person(ports) for _ in range(7)]
    asked = (_ask(each, alice, other) for each, other in zip(await processes(backend, 6), others, strict=True))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers.count(Requested("requested")) == 3
    assert sum(isinstance(answer, TooManyRequests) for answer in answers) == 3


async def test_requests_to_a_user_are_limited_when_made_at_once(backend: Backend) -> None:
    ports = backend.process()
    alice, *others = [await person(ports) for _ in range(7)]
    asked = (_ask(each, other, alice) for each, other in zip(await processes(backend, 6), others, strict=True))
    answers = await asyncio.gather(*asked)
    assert sum(answer.dropped is not None for answer in answers) == 3
    assert len(await _askers(ports, alice)) == 3


@pytest.mark.parametrize("ended_by", ["refused", "withdrawn", "blocking"])
@pytest.mark.parametrize("blocked", [False, True], ids=["seen", "hidden"])
async def test_a_user_whose_request_ended_waits_before_the_next_one(ports: Ports, ended_by: str, blocked: bool) -> None:
    """The same for each way, so that no answer tells them apart."""
    alice, bob = await person(ports), await person(ports)
    if blocked:
        await ports.accounts.block(bob.user_id, alice.user_id, NOW, 100)
    await _ask(ports, alice, bob)
    if ended_by == "refused":
        await ports.accounts.unblock(bob.user_id, alice.user_id, NOW + 10)
        assert await ports.accounts.remove(bob.user_id, alice.user_id, NOW + 10)
    elif ended_by == "withdrawn":
        assert await ports.accounts.remove(alice.user_id, bob.user_id, NOW + 10)
    else:
        await ports.accounts.block(alice.user_id, bob.user_id, NOW + 10, 100)
        await ports.accounts.unblock(alice.user_id, bob.user_id, NOW + 20)
    for later in (10.0, 30.0, PAUSE_S + 9):
        with pytest.raises(AskedLately) as refused:
            await _ask(ports, alice, bob, NOW + later)
        assert refused.value.wait_s == PAUSE_S + 10 - later
        assert await ports.accounts.relations(alice.user_id) == []
        assert [each.state for each in await ports.accounts.relations(bob.user_id)] in ([], ["blocked"])
    assert (await _ask(ports, alice, bob, NOW + PAUSE_S + 10)).state in {"requested", "hidden"}


async def test_the_one_who_refused_may_ask_at_once(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _ask(ports, alice, bob)
    await ports.accounts.remove(bob.user_id, alice.user_id, NOW)
    assert await _ask(ports, bob, alice, NOW) == Requested("requested")
    await _accept(ports, alice, bob)
    await ports.accounts.remove(alice.user_id, bob.user_id, NOW)
    for one, other in ((alice, bob), (bob, alice)):
        assert await _ask(ports, one, other, NOW) == Requested("requested"), "an end of friendship is no refusal"
        await _accept(ports, other, one, 2 if one is alice else 3)
        await ports.accounts.remove(alice.user_id, bob.user_id, NOW)


async def test_a_pause_that_began_in_the_future_is_over(ports: Ports) -> None:
    """The clock stepped back since (adr/0016)."""
    alice, bob = await person(ports), await person(ports)
    await _ask(ports, alice, bob, NOW)
    await ports.accounts.remove(bob.user_id, alice.user_id, NOW)
    assert await _ask(ports, alice, bob, NOW - 60) == Requested("requested")


async def test_what_a_pause_leaves_is_deleted_when_one_of_the_two_asks_later(backend: Backend) -> None:
    ports = backend.process()
    alice, bob, carol = [await person(ports) for _ in range(3)]
    await _ask(ports, alice, bob)
    await ports.accounts.remove(alice.user_id, bob.user_id, NOW)
    await _ask(ports, carol, bob, NOW + PAUSE_S - 1)
    assert await backend.pairs() == 2
    await _ask(ports, bob, carol, NOW + PAUSE_S)
    assert await backend.pairs() == 1


async def test_friends_are_limited_for_both_when_a_request_is_accepted(ports: Ports) -> None:
    alice, *others = [await person(ports) for _ in range(6)]
    await _ask(ports, others[2], alice)
    await _ask(ports, alice, others[3])
    for other in others[:2]:
        await _ask(ports, other, alice)
        await _accept(ports, alice, other)
    for one, other in ((alice, others[2]), (others[3], alice)):
        with pytest.raises(TooManyRelations):
            await _accept(ports, one, other)
    with pytest.raises(TooManyRelations):
        await _ask(ports, alice, others[4])
    await ports.accounts.remove(alice.user_id, others[0].user_id, NOW)
    assert await _ask(ports, alice, others[0]) == Requested("requested"), "the pair counts already"
    await _accept(ports, others[0], alice, 2)
