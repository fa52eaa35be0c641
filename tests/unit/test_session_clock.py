"""How far session numbers must have come, by the clock of who was given one."""

from meshim.stores.redis.session_ids import SessionClock

NUMBER = 1_700_000_000_000_000


def test_before_the_first_number_nothing_is_known() -> None:
    assert SessionClock().least(1000.0) == 0


def test_numbers_go_on_with_the_time_that_has_passed_here() -> None:
    clock = SessionClock()
    clock.given(NUMBER, 50.0)
    assert clock.least(50.0) == NUMBER + 1
    assert clock.least(51.5) == NUMBER + 1 + 1_500_000
    clock.given(NUMBER + 7, 60.0)
    assert clock.least(60.25) == NUMBER + 8 + 250_000
