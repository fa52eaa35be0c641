"""Partitions and transfers: every process picks the same one, shares are even, and no share moves without need."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.protocol.routing import conversation_of, mix, partition_of, pick

ids = st.integers(1, 2**63 - 1)
incarnations = st.lists(st.integers(0, 2**63 - 1), unique=True, min_size=1, max_size=8)
thorough = settings(max_examples=200)

TRANSFERS = [mix(number) >> 1 for number in range(5)]


@pytest.mark.parametrize(
    ("value", "mixed"),
    [(0, 0xE220A8397B1DCDAF), (1, 0x910A2DEC89025CC1), (2**64 - 1, 0xE4D971771B652C20)],
)
def test_mix_is_pinned(value: int, mixed: int) -> None:
    """Processes of different versions must agree; the first value is the first output of SplitMix64 with seed 0."""
    assert mix(value) == mixed


def test_conversations_are_pinned() -> None:
    assert conversation_of(1, 2) == 0xE06DD043328BD285
    assert conversation_of(2**63 - 1, 1) == 0xD1448F4D0B0BE7BC


@thorough
@given(ids, ids)
def test_both_directions_are_one_conversation(one: int, other: int) -> None:
    assert conversation_of(one, other) == conversation_of(other, one)
    assert 0 <= conversation_of(one, other) < 2**64


def test_conversations_of_one_user_differ() -> None:
    assert len({conversation_of(7, other) for other in range(10_000)}) == 10_000


@thorough
@given(ids, st.integers(1, 64))
def test_a_user_has_one_partition(user: int, partitions: int) -> None:
    assert 0 <= partition_of(user, partitions) < partitions


def test_ascending_users_fill_partitions_evenly() -> None:
    assert set(Counter(partition_of(user, 4) for user in range(1, 401)).values()) == {100}


@thorough
@given(st.integers(0, 2**64 - 1), incarnations)
def test_the_order_of_transfers_does_not_matter(conversation: int, transfers: list[int]) -> None:
    picked = pick(conversation, transfers)
    assert picked in transfers
    assert picked == pick(conversation, reversed(transfers)) == pick(conversation, iter(sorted(transfers)))


def test_pick_without_transfers_returns_none() -> None:
    assert pick(1, []) is None


@thorough
@given(st.integers(0, 2**64 - 1), incarnations, st.integers(0, 2**63 - 1))
def test_a_transfer_that_leaves_moves_its_own_conversations_only(
    conversation: int, transfers: list[int], newcomer: int
) -> None:
    before = pick(conversation, transfers)
    assert pick(conversation, {*transfers, newcomer}) in (before, newcomer)
    for leaver in transfers:
        if leaver != before:
            assert pick(conversation, [each for each in transfers if each != leaver]) == before


def test_conversations_are_spread_evenly() -> None:
    share = Counter(pick(conversation_of(one, 500), TRANSFERS) for one in range(1, 5_001))
    assert len(share) == len(TRANSFERS)
    assert max(share.values()) < 1.15 * 5_000 / len(TRANSFERS)
