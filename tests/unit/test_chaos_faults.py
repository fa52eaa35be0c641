"""The plan of a chaos run: made from the seed alone, everything often enough, and room where recovery is measured."""

import pytest

from scripts.harness.chaos.fault_plan import (
    AFTERMATH_S,
    DEEDS,
    KINDS,
    LEASE_S,
    LONE,
    OTHER_LEASE_S,
    STOPPED_MOST,
    Fault,
    plan,
    too_few,
)

SECONDS = 120.0


def test_a_seed_makes_the_same_plan_and_another_one_another() -> None:
    assert plan(1, SECONDS, KINDS) == plan(1, SECONDS, KINDS)
    assert plan(1, SECONDS, KINDS) != plan(2, SECONDS, KINDS)


def test_the_order_in_which_kinds_are_named_does_not_matter() -> None:
    assert plan(1, SECONDS, KINDS[::-1]) == plan(1, SECONDS, KINDS)


@pytest.mark.parametrize("seed", range(50))
def test_two_minutes_are_enough_for_everything_twice(seed: int) -> None:
    assert too_few((fault.kind for fault in plan(seed, SECONDS, KINDS)), KINDS) == []


@pytest.mark.parametrize("seed", range(20))
def test_everything_is_over_when_the_traffic_ends(seed: int) -> None:
    faults = plan(seed, SECONDS, KINDS)
    assert all(fault.at_s + fault.lasts_s <= SECONDS for fault in faults)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_stands_still_does_so_for_longer_than_its_lease(seed: int) -> None:
    for fault in unrevoked(seed):
        assert fault.lasts_s > LEASE_S.get(fault.what, OTHER_LEASE_S), fault


@pytest.mark.parametrize("seed", range(20))
def test_few_stand_still_at_a_time(seed: int) -> None:
    still = unrevoked(seed)
    for fault in still:
        assert sum(other.at_s <= fault.at_s < other.at_s + other.lasts_s for other in still) <= STOPPED_MOST


@pytest.mark.parametrize("seed", range(20))
def test_nothing_else_is_broken_while_recovery_is_measured(seed: int) -> None:
    faults = plan(seed, SECONDS, KINDS)
    for at, fault in enumerate(faults):
        if fault.kind in LONE:
            sooner = [other for other in faults[:at] if other.kind not in LONE]
            assert all(other.at_s + other.lasts_s + AFTERMATH_S <= fault.at_s + 0.01 for other in sooner)
            assert all(later.at_s >= fault.at_s + LONE[fault.kind] - 0.01 for later in faults[at + 1 :])


def test_a_run_of_one_kind_does_nothing_else() -> None:
    faults = plan(3, 30.0, ["kill-redis"])
    assert len(faults) > 10
    assert {fault.kind for fault in faults} == {"kill-redis"}


def test_what_was_done_once_is_too_little() -> None:
    assert too_few(["kill-nats", "kill-rest", "kill-rest"], ["kill-nats", "kill-rest", "stop-nats"]) == [
        "kill-nats",
        "stop-nats",
    ]


def test_kinds_say_what_is_done_to_what() -> None:
    fault = Fault(0.0, "stop-writer", 0, 7.0)
    assert (fault.deed, fault.what) == ("stop", "writer")
    assert {kind.partition("-")[0] for kind in KINDS} == {*DEEDS, "wipe", "lock"}


def unrevoked(seed: int) -> list[Fault]:
    return [fault for fault in plan(seed, SECONDS, KINDS) if fault.deed in ("stop", "lock")]
