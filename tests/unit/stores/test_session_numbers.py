"""The floor of session numbers, by the clock of the process that was given one."""

from meshim.stores.redis.session_numbers import SessionNumberFloor

NUMBER = 1_700_000_000_000_000


def test_floor_is_zero_before_the_first_number() -> None:
    assert SessionNumberFloor().at(1000.0) == 0


def test_floor_rises_with_the_monotonic_clock() -> None:
    floor = SessionNumberFloor()
    floor.given(NUMBER, 50.0)
    assert floor.at(50.0) == NUMBER + 1
    assert floor.at(51.5) == NUMBER + 1 + 1_500_000
    floor.given(NUMBER + 7, 60.0)
    assert floor.at(60.25) == NUMBER + 8 + 250_000
