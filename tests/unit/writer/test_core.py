"""One partition of a writer, action by action."""

import pytest

from meshim.stores.ports import Binding
from meshim.wire.offline_log import decode_record
from meshim.writer.events import (
    Acknowledge,
    Claim,
    Event,
    Extend,
    Fetch,
    PublishDeadLetter,
    Read,
    ReadPresence,
    SendWakeUps,
    StopRequested,
    Write,
    WritersLiving,
)
from tests.unit.writer.world import (
    GARBAGE,
    LEASE_S,
    REFUSED,
    Process,
    World,
    fail,
    record,
    record_of_version,
    start,
    step,
    take,
)


def test_a_lone_message_is_written_at_once() -> None:
    world = World(1)
    world.bindings[7] = Binding(7, 70, 99, 1)
    process = start(world)
    world.publish(0, record((7, (70, 71), b"m1")))
    step(process, Fetch)
    assert take(process, Fetch), "the next fetch runs beside the transaction"
    step(process, Write)
    assert world.positions == {0: 1}
    step(process, ReadPresence)
    assert not [action for action in process.pending if isinstance(action, Acknowledge)], (
        "wake-ups come before the acknowledgement"
    )
    step(process, SendWakeUps)
    assert world.wake_ups == [(99, ((7, 70),))], "only bound devices are woken"
    step(process, Acknowledge)
    assert world.acknowledged == {(0, 1)}
    statistics = process.statistics()
    assert (statistics.records, statistics.entries, statistics.woken, statistics.retried) == (1, 1, 1, 0)


def test_a_connector_gets_one_wake_up_for_all_its_devices() -> None:
    world = World(1)
    world.bindings = {user: Binding(user, 10 * user, user % 2, 1) for user in range(1, 5)}
    process = start(world)
    for user in range(1, 5):
        world.publish(0, record((user, (10 * user,), b"m%d" % user)))
    process.run()
    assert sorted(world.wake_ups) == [(0, ((2, 20), (4, 40))), (1, ((1, 10), (3, 30)))]


def test_a_transaction_is_bounded_in_records() -> None:
    world = World(1)
    process = start(world, records=4)
    for number in range(10):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    process.run()
    assert [row.envelope for row in world.rows] == [b"m%d" % number for number in range(10)]
    assert process.statistics().transactions >= 3


def test_a_transaction_is_bounded_in_bytes() -> None:
    world = World(1)
    process = start(world, records=4)
    for number in range(4):
        world.publish(0, record((1, (1,), b"%d" % number * 3000)))
    step(process, Fetch)
    assert [position for position, _ in take(process, Write).records] == [1, 2]


def test_a_gap_is_read_and_written_first() -> None:
    world = World(1)
    process = start(world)
    for number in range(1, 5):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    world.delivered[0] = {1, 2, 3}  # to a writer that is dead
    step(process, Fetch)
    assert take(process, Read) == Read(0, (1, 2, 3))
    process.run()
    assert [row.position for row in world.rows] == [1, 2, 3, 4]
    world.redeliver(0)
    process.run()
    assert not world.log[0]


def test_positions_that_the_log_does_not_have_are_passed_over() -> None:
    world = World(1)
    process = start(world)
    for number in range(1, 101):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    for position in range(2, 100):
        del world.log[0][position]
    process.run()
    assert [row.position for row in world.rows] == [1, 100]
    assert process.statistics().skipped == 98


@pytest.mark.parametrize("event", [StopRequested(), WritersLiving(("w0", "w1", "w2"))], ids=["stop", "surplus"])
@pytest.mark.parametrize("written", [True, False])
def test_a_batch_that_is_being_written_outlives_a_gap_that_cannot_be_read(event: Event, *, written: bool) -> None:
    """The partition is given back after the answer of the database, whatever the answer is."""
    world = World(1)
    process = start(world)
    for number in range(1, 4):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    world.delivered[0] = {2}  # to a writer that is dead
    step(process, Fetch)
    process.tick()
    process.tell(event)
    fail(process, Read)
    assert take(process, Write).through == 1
    if written:
        step(process, Write)
    else:
        fail(process, Write)
    process.answer_idle_fetches()
    process.run()
    assert (process.owned(), world.leases) == ((), {})
    assert world.acknowledged == ({(0, 1)} if written else set())
    assert world.positions == {0: int(written)}


def test_a_gap_that_cannot_be_read_blocks_the_messages_after_it() -> None:
    world = World(1)
    process = start(world)
    for number in range(1, 3):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    world.delivered[0] = {1}
    step(process, Fetch)
    fail(process, Read)
    process.tick()
    assert not any(isinstance(action, Read | Write) for action in process.pending)
    world.now += 1
    process.tick()
    process.run()
    assert [row.position for row in world.rows] == [1, 2]


def test_a_redelivered_message_is_written_woken_and_acknowledged_again() -> None:
    """R10: the acknowledgement was lost."""
    world = World(1)
    world.bindings[1] = Binding(1, 1, 99, 1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    for kind in (Fetch, Write, ReadPresence, SendWakeUps):
        step(process, kind)
    fail(process, Acknowledge)
    world.redeliver(0)
    world.now += 5
    process.run()
    assert len(world.rows) == 1
    assert world.wake_ups == [(99, ((1, 1),))] * 2
    assert not world.log[0]
    assert process.statistics().duplicates == 1


def test_a_message_redelivered_during_its_transaction_is_not_written_twice() -> None:
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    world.redeliver(0)
    step(process, Fetch)
    step(process, Write)
    assert not any(isinstance(action, Write) for action in process.pending)


@pytest.mark.parametrize("data", [GARBAGE, b"", record_of_version(2)])
def test_a_record_that_does_not_decode_is_dead_lettered_before_it_is_acknowledged(data: bytes) -> None:
    world = World(1)
    process = start(world)
    world.publish(0, data)
    world.publish(0, record((1, (1,), b"m2")))
    step(process, Fetch)
    step(process, Write)
    assert world.positions == {0: 2}
    letter = take(process, PublishDeadLetter)
    assert (letter.position, letter.data) == (1, data)
    assert letter.reason.startswith("The record ")
    fail(process, PublishDeadLetter)
    process.run()
    assert world.acknowledged == {(0, 2)}, "other messages do not wait for the dead letter"
    world.redeliver(0)
    world.now += 5
    process.tick()
    process.run()
    assert world.dead_lettered == {(0, 1): [data]}
    assert not world.log[0]


def test_entries_that_the_database_refuses_are_dead_lettered_and_the_others_written() -> None:
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1"), (2, (2,), REFUSED), (3, (3,), b"m3")))
    process.run()
    assert [row.envelope for row in world.rows] == [b"m1", b"m3"]
    (letter,) = world.dead_lettered[0, 1]
    assert [entry.user for entry in decode_record(letter).entries] == [2]
    assert not world.log[0]


def test_while_the_database_is_away_messages_are_kept_and_extended() -> None:
    """R8."""
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    tries, extended = 0, 0
    for _ in range(100):  # ten seconds
        for action in list(process.pending):
            if isinstance(action, Write | Claim):
                tries += isinstance(action, Write)
                fail(process, type(action))
            elif isinstance(action, Extend):
                assert action.positions == (1,)
                extended += 1
                step(process, Extend)
        world.now += 0.1
        process.tick()
    assert 8 <= tries <= 20, "the pauses grow"
    assert extended >= 4
    assert not world.acknowledged
    assert process.owned() == (0,)
    world.now += 2
    process.tick()
    process.run()
    assert world.acknowledged == {(0, 1)}


def test_a_commit_without_an_answer_is_repeated() -> None:
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    fail(process, Write, after_the_effect=True)
    world.now += 1
    process.tick()
    process.run()
    assert len(world.rows) == 1
    assert not world.log[0]


def test_while_presence_is_away_messages_are_acknowledged_without_wake_ups() -> None:
    """R1: the sweep of the connector finds the rows."""
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    step(process, Write)
    fail(process, ReadPresence)
    step(process, Acknowledge)
    assert not world.log[0]
    assert process.statistics().wake_ups_lost == 1


def test_a_lost_log_is_created_anew_above_all_positions_seen() -> None:
    """R7, and a log that lost its disk."""
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    world.publish(0, record((1, (1,), b"m2")))
    world.delivered[0] = {1}
    step(process, Fetch)
    fail(process, Fetch)
    fail(process, Read)
    assert world.positions == {0: 0}
    world.streams.clear()
    world.last[0] = 0
    world.now += 1
    process.tick()
    process.run()
    assert world.publish(0, record((1, (1,), b"m3"))) == 3
    process.run()
    assert [row.envelope for row in world.rows] == [b"m1", b"m2", b"m3"]


def test_a_fenced_writer_drops_its_messages_and_claims_again_later() -> None:
    """R11, R15: it was stopped for longer than its lease, and another writer took over."""
    world = World(1)
    process = start(world)
    for number in range(1, 4):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    step(process, Fetch)
    late = take(process, Write)
    other = Process(world, "w2", partitions=1)
    other.tell(WritersLiving(("w2",)))
    world.now += 2 * LEASE_S
    other.tick()
    other.run()
    world.redeliver(0)
    other.run()
    assert [row.position for row in world.rows] == [1, 2, 3]
    process.happen(process.pending.index(late))
    process.answer()
    assert len(world.rows) == 3
    assert process.owned() == ()
    assert process.statistics().fenced == 1
    assert not [action for action in process.pending if isinstance(action, Write | Claim | Acknowledge)]


def test_a_denied_renewal_after_an_outage_loses_the_partition() -> None:
    world = World(1)
    process = start(world)
    world.now += LEASE_S / 3
    process.tick()
    fail(process, Claim)
    assert process.owned() == (0,), "no other writer can have claimed it either"
    world.now += 2 * LEASE_S
    world.happen(Claim(0), "w2-1")
    process.tick()
    step(process, Claim)
    assert process.owned() == ()
    world.now += 2 * LEASE_S
    process.answer_idle_fetches()
    process.tick()
    process.run()
    assert process.owned() == (0,)


def test_a_renewal_with_another_fencing_number_loses_the_partition() -> None:
    """Another writer had claimed it, written to it, and given it back."""
    world = World(1)
    process = start(world)
    world.now += 2 * LEASE_S
    world.publish(0, record((1, (1,), b"m1")))
    other = Process(world, "w2", partitions=1)
    other.tell(WritersLiving(("w2",)))
    other.run()
    other.tell(StopRequested())
    other.answer_idle_fetches()
    other.run()
    assert other.stopped()
    process.tick()
    step(process, Claim)
    assert process.owned() == ()
    process.answer_idle_fetches()
    world.now += LEASE_S
    process.tick()
    process.run()
    assert process.owned() == (0,)
    world.publish(0, record((1, (1,), b"m2")))
    process.run()
    assert [row.envelope for row in world.rows] == [b"m1", b"m2"]
