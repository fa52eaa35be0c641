"""No more wait than can be answered in time; the others come at the rate of the service."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.admission import Admission


def test_no_more_wait_than_are_answered_in_time() -> None:
    admission = Admission(queue_s=2.0, rate=100.0)
    waits = [admission.enter(0.0) for _ in range(300)]
    assert waits[:200] == [0.0] * 200
    assert admission.waiting == 200
    assert min(waits[200:]) > 2.0, "behind those that wait"


def test_the_others_get_turns_one_after_another_at_the_measured_rate() -> None:
    admission = Admission(queue_s=2.0, rate=100.0)
    turns = [wait_s for _ in range(400) if (wait_s := admission.enter(0.0))]
    assert [later - sooner for sooner, later in pairwise(turns)] == pytest.approx([0.01] * 199)
    later = admission.enter(1.0)
    assert later == pytest.approx(turns[-1] + 0.01 - 1.0), "those who were told before come first"


def test_turns_that_have_passed_hold_nobody_up() -> None:
    admission = Admission(queue_s=1.0, rate=100.0)
    for _ in range(1_000):
        admission.enter(0.0)
    assert admission.enter(1_000.0) == pytest.approx(1.01)


def test_a_flood_puts_nobody_off_for_long() -> None:
    admission = Admission(queue_s=1.0, rate=10.0, turn_max_s=30.0)
    assert max(admission.enter(0.0) for _ in range(100_000)) <= 30.0


def test_some_may_wait_whatever_the_rate() -> None:
    admission = Admission(queue_s=1.0, rate=1.0, least=8)
    assert [admission.enter(0.0) for _ in range(8)] == [0.0] * 8
    assert admission.enter(0.0) > 0.0


def test_those_who_have_gone_make_room() -> None:
    admission = Admission(queue_s=1.0, rate=100.0)
    while not admission.enter(0.0):
        pass
    admission.leave(1)
    assert admission.enter(0.0) == 0.0


def test_the_rate_is_that_of_a_service_that_is_busy_all_the_time() -> None:
    admission = Admission(queue_s=10.0, rate=100.0)
    now = 0.0
    for _ in range(900):
        admission.enter(now)
    for _ in range(16):
        now += 0.05
        admission.answered(50, now)
    assert admission.rate == pytest.approx(1_000.0, rel=0.05)


def test_a_question_now_and_then_says_nothing_about_the_rate() -> None:
    admission = Admission(queue_s=10.0, rate=100.0)
    for second in range(100):
        admission.enter(float(second))
        admission.answered(1, second + 0.5)
    assert admission.rate == 100.0


@given(
    st.lists(st.one_of(st.just("enter"), st.integers(1, 100), st.floats(0.001, 5.0)), max_size=200),
    st.floats(1.0, 1_000.0),
)
def test_whoever_is_not_let_in_gets_a_turn(steps: list[str | int | float], rate: float) -> None:
    admission = Admission(queue_s=1.0, rate=rate, least=4)
    now, inside = 0.0, 0
    for step in steps:
        if step == "enter":
            wait_s = admission.enter(now)
            assert 0.0 <= wait_s <= 30.0
            inside += not wait_s
        elif isinstance(step, int):
            done = min(step, inside)
            inside -= done
            admission.answered(done, now)
        elif isinstance(step, float):
            now += step
        assert admission.waiting == inside
        assert admission.rate >= 0.5
