"""Full queues: the writer counts when a sender could have its share, announces it, renews it and takes it back."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from meshim.stores.ports import Size
from meshim.writer.events import AnnounceFull, CountQueues, StopRequested
from meshim.writer.options import QuotaOptions
from meshim.writer.quotas import EVERYBODY, full_senders, room
from tests.unit.writer.world import QUOTA, Process, World, fail, record, start, step, take

LIMIT = Size(160, 16_000)
SMALL = QuotaOptions(rows=LIMIT.rows, bytes=LIMIT.bytes)
CAT, PHONE, LAPTOP = 3, 31, 32
ANN, BEN = ord("a"), ord("b")
FULL_OF_ANN = {CAT: ((PHONE, ANN),)}


class Sending:
    """A lone writer of one partition, and senders whose messages for cat's phone it stores."""

    def __init__(self, quota: QuotaOptions = SMALL) -> None:
        self.world = World(1)
        self.process = start(self.world, quota=quota)
        self.sent = 0

    def send(self, sender: int, count: int, size: int = 10, device: int = PHONE, user: int = CAT) -> None:
        for _ in range(count):
            self.sent += 1
            text = bytes([sender]) + b"%07d" % self.sent
            self.world.publish(0, record((user, (device,), text.ljust(size, b"."))))
            self.process.run()

    def waiting(self, device: int = PHONE) -> int:
        return len(self.world.unread(device))

    def read(self, count: int, device: int = PHONE) -> None:
        self.world.read.update(self.world.unread(device)[:count])

    def pass_time(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.now = min(end, self.world.now + 0.5)
            self.process.tick()
            self.process.run()

    def until_full(self, sender: int, most: int = 200) -> int:
        """Let the sender send until it is refused; return how many of its messages were stored."""
        for count in range(most):
            if any(who in (sender, EVERYBODY) for _, who in self.world.full.get(CAT, ())):
                return count
            self.send(sender, 1)
        raise AssertionError("nobody stopped it")


def test_one_sender_gets_a_quarter_and_others_get_through() -> None:
    sending = Sending()
    assert sending.until_full(ANN) == LIMIT.rows // 4
    assert sending.world.full == FULL_OF_ANN
    shares = [sending.until_full(sender) for sender in (BEN, ord("c"), ord("d"))]
    assert all(share > 0 for share in shares), shares
    assert sending.waiting() < LIMIT.rows


def test_bytes_count_as_rows_do() -> None:
    sending = Sending()
    sending.send(ANN, 9, 400)
    assert sending.world.full == {}
    sending.send(ANN, 1, 400)
    assert sending.world.full == FULL_OF_ANN


def test_each_device_has_a_queue_of_its_own() -> None:
    sending = Sending()
    sending.until_full(ANN)
    sending.send(ANN, 30, device=LAPTOP)
    assert sending.world.full == FULL_OF_ANN


def test_a_full_queue_is_announced_again_without_counting_it_and_room_is_announced() -> None:
    sending = Sending()
    sending.until_full(ANN)
    counted = sending.process.statistics().queues_counted
    for _ in range(3):
        sending.world.full.clear()
        sending.pass_time(SMALL.renew_s + 1)
        assert sending.world.full == FULL_OF_ANN
    assert sending.process.statistics().queues_counted == counted
    sending.read(3)
    sending.pass_time(SMALL.renew_s + 1)
    assert sending.world.full == {CAT: ()}
    sending.send(ANN, 3)
    assert sending.world.full == FULL_OF_ANN


def test_a_queue_that_others_fill_further_is_counted_although_nobody_reads_it() -> None:
    sending = Sending()
    sending.until_full(ANN)
    sending.until_full(BEN)
    assert sending.world.full[CAT] == ((PHONE, ANN), (PHONE, BEN))


def test_a_queue_that_is_read_as_fast_as_it_grows_is_never_full_and_seldom_counted() -> None:
    sending = Sending()
    for _ in range(100):
        sending.send(ANN, 5)
        sending.read(5)
    assert sending.world.full == {}
    assert sending.process.statistics().queues_counted <= 500 // (LIMIT.rows // 8) + 1


def test_short_queues_are_never_counted() -> None:
    sending = Sending()
    for user in range(1, 60):
        sending.send(ANN, 9, device=user, user=user)
    assert sending.process.statistics().queues_counted == 0


def test_a_writer_that_has_just_started_finds_a_full_queue_after_a_sixteenth() -> None:
    sending = Sending()
    sending.until_full(ANN)
    sending.process = successor(sending)
    sending.world.full.clear()
    assert sending.until_full(ANN) == LIMIT.rows // 16


def successor(sending: Sending) -> Process:
    sending.world.leases.clear()
    return start(sending.world, quota=SMALL)


def test_while_the_database_does_not_count_it_is_asked_again() -> None:
    sending = Sending()
    sending.send(ANN, 39)
    [sending.world.publish(0, record((CAT, (PHONE,), b"a one more")))]
    while not any(isinstance(action, CountQueues) for action in sending.process.pending):
        sending.process.happen()
        sending.process.answer()
    fail(sending.process, CountQueues)
    assert sending.world.full == {}
    sending.pass_time(2.5)
    assert sending.world.full == FULL_OF_ANN


def test_what_could_not_be_announced_is_announced_later_as_it_is_then() -> None:
    sending = Sending()
    sending.send(ANN, 39)
    sending.world.publish(0, record((CAT, (PHONE,), b"a one more")))
    while not any(isinstance(action, AnnounceFull) for action in sending.process.pending):
        sending.process.happen()
        sending.process.answer()
    fail(sending.process, AnnounceFull)
    assert sending.world.full == {}
    sending.pass_time(2.5)
    assert sending.world.full == FULL_OF_ANN


def test_a_writer_that_leaves_waits_for_its_count_and_starts_none() -> None:
    sending = Sending()
    sending.send(ANN, 39)
    sending.world.publish(0, record((CAT, (PHONE,), b"a one more")))
    while not any(isinstance(action, CountQueues) for action in sending.process.pending):
        sending.process.happen()
        sending.process.answer()
    sending.process.tell(StopRequested())
    sending.process.answer_idle_fetches()
    assert not sending.process.stopped()
    step(sending.process, CountQueues)
    sending.process.answer_idle_fetches()
    sending.process.run()
    assert sending.process.stopped()
    assert sending.world.full == {}


def test_of_many_queues_those_that_grow_most_are_remembered() -> None:
    sending = Sending(msgspec.structs.replace(SMALL, queues_max=20))
    sending.send(ANN, 9)
    for user in range(100, 200):
        sending.send(BEN, 1, device=user, user=user)
    sending.send(ANN, 1)
    assert sending.process.statistics().queues_counted == 1


def test_of_many_full_queues_the_announcements_of_the_oldest_end() -> None:
    sending = Sending(msgspec.structs.replace(SMALL, full_max=2))
    for user in (CAT, CAT + 1, CAT + 2):
        sending.send(ANN, 40, device=user * 10, user=user)
    sending.world.full.clear()
    sending.pass_time(SMALL.renew_s + 1)
    assert {user for user, full in sending.world.full.items() if full} == {CAT + 1, CAT + 2}


def test_counts_are_asked_for_in_bounded_batches() -> None:
    world = World(1)
    process = start(world, quota=SMALL)
    for user in range(1, 41):
        world.publish(0, record(*[(user, (user,), b"a%d" % seq) for seq in range(10)]))
    for _ in range(1000):
        if any(isinstance(action, CountQueues) for action in process.pending):
            break
        process.happen()
        process.answer()
    assert len(take(process, CountQueues).queues) <= 16
    process.run()
    assert process.statistics().queues_counted == 40


SIZES = st.builds(Size, st.integers(0, 60), st.integers(0, 6_000))
SENDERS = st.dictionaries(st.integers(1, 9), SIZES, max_size=9)


@given(SENDERS, st.integers(1, 9), SIZES)
def test_nobody_is_full_before_the_room_is_used_up(senders: dict[int, Size], sender: int, more: Size) -> None:
    full = full_senders(senders, LIMIT)
    left = room(senders, full, LIMIT)
    at_least = left.rows == LIMIT.rows // 64 or left.bytes == LIMIT.bytes // 64
    own = senders.get(sender, Size(0, 0))
    grown = senders | {sender: Size(own.rows + more.rows, own.bytes + more.bytes)}
    if set(full_senders(grown, LIMIT)) - set(full) - {EVERYBODY}:
        assert more.rows >= left.rows or more.bytes >= left.bytes or at_least


@given(st.integers(1, 30))
def test_n_senders_leave_room_for_another(count: int) -> None:
    limit = Size(10_000, 10_000)
    senders = dict.fromkeys(range(1, count + 1), Size(0, 0))
    while len(full_senders(senders, limit)) < count:
        full = full_senders(senders, limit)
        senders = {who: own if who in full else Size(own.rows + 1, 0) for who, own in senders.items()}
    each = senders[1].rows
    assert abs(each - limit.rows // (count + 3)) <= count
    assert sum(own.rows for own in senders.values()) < limit.rows
    assert count + 1 not in full_senders(senders | {count + 1: Size(1, 0)}, limit)
    assert QUOTA.announced_s > 2 * QUOTA.renew_s
