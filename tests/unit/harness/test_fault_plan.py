"""The fault plan of a chaos run: made from the seed alone, each kind often enough, and isolated kinds alone."""

import pytest

from scripts.harness.chaos.fault_plan import (
    ACTIONS,
    AFTEREFFECT_S,
    ISOLATED_S,
    KINDS,
    LEASE_S,
    OTHER_LEASE_S,
    STOPPED_MAX,
    Fault,
    plan,
    too_few,
)

SECONDS = 120.0


def test_a_seed_makes_one_plan_and_another_seed_another() -> None:
    assert plan(1, SECONDS, KINDS) == plan(1, SECONDS, KINDS)
    assert plan(1, SECONDS, KINDS) != plan(2, SECONDS, KINDS)


def test_the_order_in_which_kinds_are_named_does_not_matter() -> None:
    assert plan(1, SECONDS, KINDS[::-1]) == plan(1, SECONDS, KINDS)


@pytest.mark.parametrize("seed", range(50))
def test_two_minutes_have_every_kind_twice(seed: int) -> None:
    assert too_few((fault.kind for fault in plan(seed, SECONDS, KINDS)), KINDS) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_is_over_when_the_traffic_ends(seed: int) -> None:
    faults = plan(seed, SECONDS, KINDS)
    assert all(fault.at_s + fault.duration_s <= SECONDS for fault in faults)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_lasts_longer_than_the_lease_of_its_target(seed: int) -> None:
    for fault in stopping(seed):
        assert fault.duration_s > LEASE_S.get(fault.target, OTHER_LEASE_S), fault


@pytest.mark.parametrize("seed", range(20))
def test_few_targets_are_stopped_at_a_time(seed: int) -> None:
    stops = stopping(seed)
    for fault in stops:
        assert sum(other.at_s <= fault.at_s < other.at_s + other.duration_s for other in stops) <= STOPPED_MAX


@pytest.mark.parametrize("seed", range(20))
def test_no_other_fault_overlaps_an_isolated_kind(seed: int) -> None:
    faults = plan(seed, SECONDS, KINDS)
    for at, fault in enumerate(faults):
        if fault.kind in ISOLATED_S:
            sooner = [other for other in faults[:at] if other.kind not in ISOLATED_S]
            assert all(other.at_s + other.duration_s + AFTEREFFECT_S <= fault.at_s + 0.01 for other in sooner)
            assert all(later.at_s >= fault.at_s + ISOLATED_S[fault.kind] - 0.01 for later in faults[at + 1 :])


def test_a_plan_of_one_kind_has_no_other() -> None:
    faults = plan(3, 30.0, ["kill-redis"])
    assert len(faults) > 10
    assert {fault.kind for fault in faults} == {"kill-redis"}


def test_one_fault_of_a_kind_is_too_few() -> None:
    assert too_few(["kill-nats", "kill-rest", "kill-rest"], ["kill-nats", "kill-rest", "stop-nats"]) == [
        "kill-nats",
        "stop-nats",
    ]


def test_a_kind_names_action_and_target() -> None:
    fault = Fault(0.0, "stop-writer", 0, 7.0)
    assert (fault.action, fault.target) == ("stop", "writer")
    assert {kind.partition("-")[0] for kind in KINDS} == {*ACTIONS, "wipe", "lock"}


def stopping(seed: int) -> list[Fault]:
    return [fault for fault in plan(seed, SECONDS, KINDS) if fault.action in ("stop", "lock")]
