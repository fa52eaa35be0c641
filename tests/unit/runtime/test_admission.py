"""The bound of handshakes per second: a token bucket, and turns by address."""

import pytest

from meshim.runtime.websocket.admission import Admission, network_of


def admission(rate: float = 1.0, burst: int = 2) -> Admission[str]:
    return Admission(rate, burst, 0.0)


def queued(*connections: tuple[str, str]) -> Admission[str]:
    """No token is left, and these wait: names and their addresses."""
    made = admission(burst=1)
    assert made.admit(0.0)
    for name, host in connections:
        assert not made.admit(0.0)
        made.wait(name, host)
    return made


def test_a_burst_is_served_at_once_and_then_the_rate() -> None:
    made = admission(rate=1.0, burst=2)
    assert [made.admit(0.0) for _ in range(3)] == [True, True, False]
    assert [made.admit(1.0) for _ in range(2)] == [True, False]
    assert [made.admit(9.0) for _ in range(3)] == [True, True, False], "no more than the burst was saved"


def test_none_overtakes_those_that_wait() -> None:
    made = queued(("first", "a"))
    assert not made.admit(1.0), "its token belongs to the first"
    made.wait("second", "b")
    assert made.due(1.0) == ["first"]
    assert made.due(1.5) == []
    assert made.due(2.0) == ["second"]
    assert len(made) == 0
    assert made.admit(3.0)


def test_addresses_take_turns_and_within_one_the_oldest_comes_first() -> None:
    made = queued(("a1", "a"), ("a2", "a"), ("a3", "a"), ("a4", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b"))
    assert [made.due(float(number))[0] for number in range(1, 8)] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_what_is_withdrawn_takes_no_turn() -> None:
    made = queued(("a1", "a"), ("a2", "a"), ("b1", "b"))
    made.withdraw("a1")
    made.withdraw("b1")
    made.withdraw("b1")
    assert (len(made), made.to_cut_for("a2")) == (1, "a2")
    assert made.due(1.0) == ["a2"]
    assert made.to_cut_for("a2") is None


def test_the_oldest_of_an_address_goes_for_the_newest_of_it_and_the_oldest_of_all_for_a_single_one() -> None:
    made = queued(("a1", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c"))
    assert [made.to_cut_for(each) for each in ("b2", "c1")] == ["b1", "a1"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same
