"""One partition of a writer, step by step, against dictionaries."""

import pytest

from meshim.stores.ports import Binding
from meshim.wire.offline_log import decode_record
from meshim.writer.events import (
    Acknowledge,
    Claim,
    Extend,
    Fetch,
    LookUp,
    PublishDeadLetter,
    Read,
    StopRequested,
    Tell,
    Write,
    WritersSeen,
)
from tests.unit.writer_world import (
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


def test_a_lone_message_goes_through_at_once() -> None:
    world = World(1)
    world.bindings[7] = Binding(7, 70, 99, 1)
    process = start(world)
    world.publish(0, record((7, (70, 71), b"m1")))
    step(process, Fetch)
    assert take(process, Fetch), "the next messages are waited for during the transaction"
    step(process, Write)
    assert world.positions == {0: 1}
    step(process, LookUp)
    assert not [action for action in process.pending if isinstance(action, Acknowledge)], (
        "first the connectors are told"
    )
    step(process, Tell)
    assert world.wake_ups == [(99, ((7, 70),))], "only devices with a binding"
    step(process, Acknowledge)
    assert world.acknowledged == {(0, 1)}
    count = process.count()
    assert (count.records, count.entries, count.woken, count.retried) == (1, 1, 1, 0)


def test_a_connector_gets_one_wake_up_for_many_devices() -> None:
    world = World(1)
    world.bindings = {user: Binding(user, 10 * user, user % 2, 1) for user in range(1, 5)}
    process = start(world)
    for user in range(1, 5):
        world.publish(0, record((user, (10 * user,), b"m%d" % user)))
    process.run()
    assert sorted(world.wake_ups) == [(0, ((2, 20), (4, 40))), (1, ((1, 10), (3, 30)))]


def test_one_transaction_is_bounded_and_the_rest_follows() -> None:
    world = World(1)
    process = start(world, records=4)
    for number in range(10):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    process.run()
    assert [row.envelope for row in world.rows] == [b"m%d" % number for number in range(10)]
    assert process.count().transactions >= 3


def test_a_transaction_is_bounded_in_bytes() -> None:
    world = World(1)
    process = start(world, records=4)
    for number in range(4):
        world.publish(0, record((1, (1,), b"%d" % number * 3000)))
    step(process, Fetch)
    assert [position for position, _ in take(process, Write).records] == [1, 2]


def test_what_is_missing_is_read_and_written_first() -> None:
    world = World(1)
    process = start(world)
    for number in range(1, 5):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    world.delivered[0] = {1, 2, 3}  # to a writer that died
    step(process, Fetch)
    assert take(process, Read) == Read(0, (1, 2, 3))
    process.run()
    assert [row.position for row in world.rows] == [1, 2, 3, 4]
    world.redeliver(0)
    process.run()
    assert not world.log[0]


def test_what_is_gone_is_passed_over() -> None:
    world = World(1)
    process = start(world)
    for number in range(1, 101):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    for position in range(2, 100):
        del world.log[0][position]
    process.run()
    assert [row.position for row in world.rows] == [1, 100]
    assert process.count().skipped == 98


def test_what_cannot_be_read_now_is_waited_for() -> None:
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


def test_given_again_is_written_again_woken_again_and_acknowledged() -> None:
    """R10 on our side: the acknowledgement was lost."""
    world = World(1)
    world.bindings[1] = Binding(1, 1, 99, 1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    for kind in (Fetch, Write, LookUp, Tell):
        step(process, kind)
    fail(process, Acknowledge)
    world.redeliver(0)
    world.now += 5
    process.run()
    assert len(world.rows) == 1
    assert world.wake_ups == [(99, ((1, 1),))] * 2
    assert not world.log[0]
    assert process.count().duplicates == 1


def test_given_again_while_it_is_on_its_way_is_not_written_twice() -> None:
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    world.redeliver(0)
    step(process, Fetch)
    step(process, Write)
    assert not any(isinstance(action, Write) for action in process.pending)


@pytest.mark.parametrize("data", [GARBAGE, b"", record_of_version(2)])
def test_what_does_not_decode_is_buried_before_it_is_acknowledged(data: bytes) -> None:
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
    assert world.acknowledged == {(0, 2)}, "the others do not wait for it"
    world.redeliver(0)
    world.now += 5
    process.tick()
    process.run()
    assert world.dead_lettered == {(0, 1): [data]}
    assert not world.log[0]


def test_what_the_database_refuses_is_buried_and_the_rest_is_written() -> None:
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1"), (2, (2,), REFUSED), (3, (3,), b"m3")))
    process.run()
    assert [row.envelope for row in world.rows] == [b"m1", b"m3"]
    (letter,) = world.dead_lettered[0, 1]
    assert [entry.user for entry in decode_record(letter).entries] == [2]
    assert not world.log[0]


def test_database_away_keeps_extends_and_tries_again() -> None:
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
    assert 8 <= tries <= 20, "with growing pauses"
    assert extended >= 4
    assert not world.acknowledged
    assert process.owned() == (0,)
    world.now += 2
    process.tick()
    process.run()
    assert world.acknowledged == {(0, 1)}


def test_a_commit_that_was_not_heard_of_is_repeated() -> None:
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


def test_presence_away_leaves_it_to_the_sweep() -> None:
    """R1 with the wake-up lost."""
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    step(process, Write)
    fail(process, LookUp)
    step(process, Acknowledge)
    assert not world.log[0]
    assert process.count().wake_ups_lost == 1


def test_log_away_is_asked_again_and_made_anew_without_giving_a_position_twice() -> None:
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


def test_fenced_off_drops_what_is_in_flight_and_claims_again_later() -> None:
    """R11, R15: stopped beyond the lease, woken after another took over."""
    world = World(1)
    process = start(world)
    for number in range(1, 4):
        world.publish(0, record((1, (1,), b"m%d" % number)))
    step(process, Fetch)
    late = take(process, Write)
    other = Process(world, "w2", partitions=1)
    other.tell(WritersSeen(("w2",)))
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
    assert process.count().fenced == 1
    assert not [action for action in process.pending if isinstance(action, Write | Claim | Acknowledge)]


def test_the_database_away_and_a_renewal_denied_afterwards() -> None:
    world = World(1)
    process = start(world)
    world.now += LEASE_S / 3
    process.tick()
    fail(process, Claim)
    assert process.owned() == (0,), "nobody else can have claimed it either"
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


def test_a_renewal_that_is_a_new_claim_begins_anew() -> None:
    """Somebody else had it, wrote, and gave it back."""
    world = World(1)
    process = start(world)
    world.now += 2 * LEASE_S
    world.publish(0, record((1, (1,), b"m1")))
    other = Process(world, "w2", partitions=1)
    other.tell(WritersSeen(("w2",)))
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
