"""What the outbox does when a queue of the recipient is full: it keeps the messages, and asks seldom (H4)."""

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshim.client.events import StreamDelayed
from meshim.client.streams.outbox import Outbox
from meshim.errors import Code
from meshim.protocol.timeouts import GAP_RELEASE_S
from meshim.wire.outcome import OutcomeStatus
from tests.unit.client.test_outbox import BOB, CAROL, OPTIONS, compose, outbox, outcome, states, submit

BUSY, STORED, DELIVERED = OutcomeStatus.BUSY, OutcomeStatus.STORED, OutcomeStatus.DELIVERED


def refuse(box: Outbox, first: int, last: int | None = None, now: float = 0.0) -> list[StreamDelayed]:
    return box.outcome(outcome(first, BUSY, last=last, code=Code.QUEUE_FULL), now).delayed


def refused(count: int) -> Outbox:
    """An outbox with so many messages, all refused at 0.0."""
    box = outbox()
    for _ in range(count):
        compose(box)
    assert submit(box) == list(range(1, count + 1))
    assert refuse(box, 1, count) == [StreamDelayed(BOB, Code.QUEUE_FULL, "why")]
    return box


def test_only_the_lowest_refused_message_is_submitted_again_and_ever_less_often() -> None:
    box = refused(5)
    times = []
    for quarter in range(1, 4 * 60):
        if seqs := submit(box, quarter / 4):
            assert seqs == [1]
            times.append(quarter / 4)
            assert refuse(box, 1, now=quarter / 4) == [], "it is told once"
    assert times == [4.0, 12.0, 27.0, 42.0, 57.0]
    assert max(b - a for a, b in pairwise(times)) <= GAP_RELEASE_S / 2


def test_all_follow_in_order_when_one_is_stored() -> None:
    box = refused(4)
    assert submit(box, 4.0) == [1]
    assert states(box.outcome(outcome(1, STORED), 4.1)) == [(1, "sent")]
    assert submit(box, 4.1) == [2, 3, 4]
    assert refuse(box, 2, 4, 4.2) == [StreamDelayed(BOB, Code.QUEUE_FULL, "why")], "it is full anew"
    assert submit(box, 8.3) == [2]


def test_those_that_no_device_has_follow_when_a_device_connects() -> None:
    """It gets them live, while the queue of another device stays full."""
    box = refused(4)
    assert submit(box, 4.0) == [1]
    box.outcome(outcome(1, DELIVERED, final=False), 4.1)
    refuse(box, 1, now=4.1)
    assert submit(box, 4.2) == [2, 3, 4]
    for seq in (2, 3, 4):
        box.outcome(outcome(seq, DELIVERED, final=False), 4.3)
    refuse(box, 2, 4, 4.3)
    assert submit(box, 12.0) == []
    assert submit(box, 12.1) == [1], "delivered, and to be stored for the other device"
    box.outcome(outcome(1, DELIVERED, final=False), 12.2)
    refuse(box, 1, now=12.2)
    assert submit(box, 14.0) == []


def test_a_new_message_is_submitted_at_once() -> None:
    box = refused(2)
    compose(box)
    assert submit(box, 1.0) == [3]
    assert refuse(box, 3, now=1.0) == []
    assert submit(box, 3.9) == []


def test_a_message_that_is_refused_after_a_later_one_is_asked_for_in_its_place() -> None:
    box = outbox()
    compose(box)
    compose(box)
    submit(box)
    refuse(box, 2)
    refuse(box, 1)
    assert submit(box, 4.0) == [2]
    assert submit(box, 8.0) == [1]
    refuse(box, 2, now=8.0)
    assert submit(box, 16.0) == [1], "there was no outcome"


def test_other_streams_go_on() -> None:
    box = refused(2)
    compose(box, CAROL)
    assert submit(box, 1.0) == [1]
    assert states(box.outcome(outcome(1, STORED, to=CAROL), 1.0)) == [(1, "sent")]
    assert submit(box, 1.0) == []


def test_a_new_connection_submits_all_again() -> None:
    box = refused(3)
    box.disconnected()
    assert submit(box, 1.0) == [1, 2, 3]
    assert refuse(box, 1, 3, 1.0) == [StreamDelayed(BOB, Code.QUEUE_FULL, "why")]


def test_a_rejected_message_lets_the_others_follow() -> None:
    box = refused(3)
    assert submit(box, 4.0) == [1]
    box.outcome(outcome(1, OutcomeStatus.REJECTED, code=Code.NOT_FRIENDS), 4.0)
    assert submit(box, 4.0) == [2, 3]


def answer(box: Outbox, seq: int, how: str, now: float) -> None:
    if how == "full":
        refuse(box, seq, now=now)
    elif how == "busy":
        box.outcome(outcome(seq, BUSY, code=Code.BUSY), now)
    elif how == "delivered":
        box.outcome(outcome(seq, DELIVERED, final=False), now)
    elif how == "stored":
        box.outcome(outcome(seq, STORED), now)


@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_whatever_the_mesh_answers_everything_is_settled_once_there_is_room(chance: Random, count: int) -> None:
    box, now, composed = outbox(), 0.0, 0
    under_way: list[int] = []
    for _ in range(chance.randint(1, 40)):
        if composed < count and chance.random() < 0.5:
            composed = compose(box)
        under_way += submit(box, now)
        for seq in under_way[:]:
            if (
                how := chance.choice(("full", "full", "full", "busy", "delivered", "late", "lost", "stored"))
            ) != "late":
                under_way.remove(seq)
                answer(box, seq, how, now)
        if chance.random() < 0.01:
            box.disconnected()
            under_way.clear()
        now += chance.choice((0.0, 0.5, 3.0))
    end = now + 3 * OPTIONS.resend_max_s
    while now < end and box.unsettled:
        for seq in submit(box, now):
            answer(box, seq, "stored", now)
        now += 0.5
    assert box.unsettled == 0
