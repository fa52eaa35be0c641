"""The races of the design, each forced by faults at the right moments: it is met, and every promise is kept.

What has to happen is in the docstring of the test; how often it did is counted where it happens (`Judge.entered`).
"""

import pytest

from tests.sim.faults import Fault, Schedule
from tests.sim.simulation import Outcome, play

SEEDS = range(1, 13)
WRITER_1 = 0
TABLET = 1
"""The second device of the first user."""


def fault(kind: str, at: float, lasts_s: float = 0.0, target: int = 0, other: int = 0) -> Fault:
    return Fault(at, lasts_s, kind, target, other)


def everybody(kind: str, at: float, lasts_s: float = 0.0, count: int = 10) -> list[Fault]:
    return [fault(kind, at + 0.01 * number, lasts_s, number) for number in range(count)]


def only(*faults: Fault, replayed: float = 0.0, delay_s: float = 0.004) -> Schedule:
    """These faults and no other, in fair weather."""
    return Schedule(
        loss=0.0, doubling=0.0, overtaking=0.0, delay_s=delay_s, calls_lost=0.3, replayed=replayed, clock_jump_s=20.0,
        ends=max(each.at + each.lasts_s for each in faults) + 1.0, faults=tuple(sorted(faults)),
    )  # fmt: skip


def meet(race: str, *faults: Fault, replayed: float = 0.0, delay_s: float = 0.004) -> Outcome:
    """Run a mesh with these faults and no other until the race is met; nothing ever goes wrong.

    What people write is drawn from the seed, so that a race may need a few of them.
    """
    schedule = only(*faults, replayed=replayed, delay_s=delay_s)
    for seed in SEEDS:
        outcome = play(seed, schedule)
        assert outcome.violations == []
        if outcome.races[race]:
            return outcome
    pytest.fail(f"{race} is not met in {len(SEEDS)} runs")


def test_r1_stored_after_the_sync() -> None:
    """The writer commits what waits for somebody when she is back already and has synced."""
    meet("R1", *everybody("away", 4.0, 2.0, count=5), fault("sql-stalled", 5.0, 4.0))


def test_r1_with_every_wake_up_lost() -> None:
    """The same, and nobody is told: the sweep finds it."""
    meet("R1", *everybody("away", 4.0, 2.0, count=5), fault("sql-stalled", 5.0, 4.0), fault("nats-away", 8.5, 3.0))


def test_r2_live_overtakes_stored() -> None:
    """A message is stored, the next one is live: the connector holds it until the sync has passed the first."""
    blind = [fault("cut-redis", 3.0, 4.0, transfer) for transfer in (3, 4, 5)]
    meet("R2", *blind, *everybody("pause-writer", 5.0, 4.0, count=2))


def test_r3_two_connections_drain_one_queue() -> None:
    """An application is killed while it syncs; on another connector it syncs again, and the first knows nothing."""
    deaf = fault("nats-away", 6.5, 4.0)
    meet("R3", deaf, *everybody("away", 3.0, 4.0, count=6), *everybody("trap-device", 6.9, 3.0, count=6))


def test_r4_presence_points_at_the_dead() -> None:
    """A connector is killed; until its lease ends, presence says that its devices are there."""
    meet("R4", *everybody("kill-connector", 5.0, 3.0, count=2))


def test_r5_late_goodbye_and_late_hello() -> None:
    """A connector is stopped, its devices go elsewhere; when it goes on, it erases and writes their bindings."""
    meet("R5", *everybody("pause-connector", 5.0, 9.0, count=2))


def test_r6_a_transfer_dies_with_bundles_in_flight() -> None:
    faults = [fault("kill-transfer", 3.0 + 0.7 * number, 0.3, number) for number in range(15)]
    meet("R6", fault("nats-stalled", 3.0, 3.0), *faults)


def test_r7_nats_away() -> None:
    """Nobody is told `sent` for what the log has not acknowledged; it is `busy`, and settles later."""
    outcome = meet("R7", *everybody("away", 3.0, 6.0, count=5), fault("nats-away", 4.0, 5.0))
    assert outcome.counters["transfer_busy"] > 0


def test_r8_the_database_away() -> None:
    """People with a known token come in; what is stored for them comes when the database is back."""
    meet("R8", *everybody("away", 3.0, 2.0, count=5), fault("sql-away", 4.0, 6.0))


@pytest.mark.parametrize("status", ["redis-away", "redis-wiped", "redis-old", "redis-stalled"])
def test_r9_redis_away_wiped_or_old(status: str) -> None:
    meet("R9", fault(status, 6.0, 3.0), *everybody("away", 5.0, 2.0, count=4))


def test_r10_an_acknowledgement_is_lost() -> None:
    """The device has a stored message, its connector dies before it hears of that: synced again, and shown once."""
    outcome = meet(
        "R10",
        *everybody("away", 3.0, 3.0, count=6),
        *everybody("trap-connector", 5.9, 6.0, count=6),
    )
    assert outcome.counters["connector_synced"] > 0


def test_r11_stopped_and_not_dead() -> None:
    """Each role is stopped for longer than its lease, and goes on with what it believed."""
    roles = [
        fault(f"pause-{role}", 4.0 + number, 7.0) for number, role in enumerate(("connector", "transfer", "writer"))
    ]
    meet("R11", *roles)


def test_r12_resend_elsewhere() -> None:
    """A device has messages under way when its connector dies: it submits them to another one."""
    meet("R12", *[fault("kill-connector", 3.0 + number, 0.5, number) for number in range(8)])


def test_r13_a_restarted_peer() -> None:
    """Frames that were queued for the dead arrive at its successor before anything else."""
    faults = [fault("kill-connector", 3.0 + 0.5 * number, 0.2, number) for number in range(12)]
    meet("R13", *faults, replayed=1.0, delay_s=0.1)


def test_r14_a_lost_state_file() -> None:
    """A device comes back with a new state file: what waits for it is given to that one."""
    meet("R14", *everybody("lost-file", 5.0, 3.0, count=4))


def test_r14_taken_over_while_the_old_one_runs() -> None:
    faults = [
        *everybody("away", 3.0, 3.0, count=5),
        *everybody("taken-over", 6.2, count=5),
        fault("sql-stalled", 5.9, 2.0),
    ]
    outcome = meet("R14", *faults)
    assert outcome.faults["taken-over"] > 0


def test_r14_taken_over_while_redis_is_away() -> None:
    """The cache cannot be told of it; when Redis is back, the old application must not come in on what it knows."""
    faults = [
        *everybody("away", 3.0, 3.0, count=5),
        *everybody("taken-over", 6.3, count=5),
        fault("sql-stalled", 5.9, 2.0),
        fault("redis-away", 6.1, 4.0),
    ]
    outcome = meet("R14", *faults)
    assert outcome.faults["taken-over"] > 0


def test_r14_taken_over_before_redis_is_back_as_it_was() -> None:
    """The dump knows the tokens that were revoked since, and connectors that start then know of no restart."""
    faults = [
        *everybody("taken-over", 10.76, count=5),
        fault("redis-old", 10.8, 0.6),
        *everybody("kill-connector", 11.5, 1.0, count=2),
    ]
    for seed in SEEDS[:4]:  # the race as it is counted is another: that something waited for the device
        outcome = play(seed, only(*faults))
        assert outcome.violations == []
        assert outcome.faults["taken-over"] == 5


def test_r14_taken_over_and_the_old_one_not_told() -> None:
    """NATS does not say so to its connector, and then Redis forgets, again and again, who came later."""
    faults = [
        fault("nats-away", 3.5, 3.5),
        *everybody("taken-over", 5.0),
        *(fault("redis-wiped", 9.0 + 4.0 * time, 2.0) for time in range(4)),
    ]
    for seed in SEEDS[:4]:
        outcome = play(seed, only(*faults))
        assert outcome.violations == []
        assert outcome.faults["taken-over"] == 10


def test_r15_two_writers() -> None:
    """A writer is stopped for longer than its lease; another takes its partitions; then it wants to commit."""
    first = [fault("sql-away", 3.5, 1.5), fault("pause-writer", 4.5, 9.0, WRITER_1)]
    second = [fault("sql-away", 14.5, 1.5), fault("pause-writer", 15.5, 9.0, WRITER_1 + 1)]
    meet("R15", *first, *second, *everybody("away", 3.0, 18.0, count=5))


def test_r16_one_copy_live_and_one_stored() -> None:
    """One device of a user is away: of each message to her one copy is live and one is stored, when processes die."""
    away = [fault("away", 2.5, 8.0, TABLET), fault("away", 2.5, 8.0, 3)]
    kills = [fault("kill-transfer", 4.5 + 0.5 * number, 0.2, number) for number in range(4)]
    meet("R16", *away, fault("nats-stalled", 4.0, 2.0), *kills)
