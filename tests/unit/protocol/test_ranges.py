"""Ranges of `seq`, against a set of numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.ranges import Range, Ranges, ranges_of, united

NUMBERS = st.integers(1, 60)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_ranges_are_a_set_of_numbers(added: list[Range]) -> None:
    ranges, numbers = Ranges(), set[int]()
    for first, last in added:
        new = set(range(first, last + 1)) - numbers
        assert ranges.missing(first, last) == list(ranges_of(sorted(new)))
        numbers |= new
        assert ranges.add(first, last) == list(ranges_of(sorted(new)))
        assert tuple(ranges) == ranges_of(sorted(numbers))
    for number in range(1, 62):
        assert (number in ranges) == (number in numbers)
        if number in numbers:
            first, last = ranges.around(number)
            assert first <= number <= last
            assert ranges.covers(first, last)
            assert not {first - 1, last + 1} & numbers
    assert tuple(Ranges(ranges)) == tuple(ranges)
    assert bool(ranges) == bool(numbers)


def test_beyond_the_limit_the_lowest_range_is_forgotten() -> None:
    ranges = Ranges(most=2)
    for number in (1, 5, 9):
        assert ranges.add(number, number) == [(number, number)]
    assert list(ranges) == [(5, 5), (9, 9)]
    assert ranges.add(1, 20) == [(1, 4), (6, 8), (10, 20)]
    assert list(ranges) == [(1, 20)]


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [
        ([], ()),
        ([4], ((4, 4),)),
        ([3, 1, 2, 2, 7, 9, 8], ((1, 3), (7, 9))),
    ],
)
def test_ranges_cover_exactly_the_numbers(numbers: list[int], ranges: tuple[Range, ...]) -> None:
    assert ranges_of(numbers) == ranges


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30))))
def test_united_ranges_have_the_same_numbers_and_do_not_touch(ranges: list[Range]) -> None:
    numbers = {number for first, last in ranges for number in range(first, last + 1)}
    assert united(ranges) == list(ranges_of(list(numbers)))
