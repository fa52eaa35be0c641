"""What a client decides, frame by frame against a connector."""

from collections.abc import Sequence

import pytest

from meshim.client import events as e
from meshim.client.core import ClientCore, Identity
from meshim.client.core import State as Stage
from meshim.errors import Code
from meshim.wire import client as wire
from meshim.wire.client import ConnectorItem, Delivery, Greet, Stored, Welcome
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    decode_envelope,
    decode_receipt,
    encode_content,
    encode_envelope,
)
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.outcome import Outcome, OutcomeStatus
from tests.unit.client_world import OPTIONS

ME = Identity(1, 10, 7)
TO_ME, TO_BOB = Destination(DestinationType.USER, 1), Destination(DestinationType.USER, 2)
LINK = 55
EMPTY = e.Snapshot([], [], [], [], [])


class Connector:
    """The other end of one client, whose frames the test writes and reads."""

    def __init__(self, snapshot: e.Snapshot = EMPTY) -> None:
        self.core = ClientCore(ME, OPTIONS, snapshot, lambda: bytes(16), lambda: 0, 0.0)
        self.now = 0.0
        self.actions: list[e.Action] = []
        self.link = LINK - 1
        self._number = 0

    def happens(self, event: e.Event | None) -> Sequence[e.Action]:
        """What the core does about an event, or about time that passed."""
        core = self.core
        found = core.tick(self.now) if event is None else core.receive(event, self.now)
        self.actions = list(found)
        return self.actions

    def online(self, **changes: int) -> "Connector":
        self.greeted()
        self.says(self.welcome(**changes))
        return self

    def greeted(self) -> Sequence[e.Action]:
        self.link += 1
        self._number = 0
        return self.happens(e.Connected(self.link, b"token"))

    def welcome(
        self, window: int = 4, body_bytes: int = 65_536, frame_bytes: int = 262_144, heartbeat_ms: int = 10_000
    ) -> Welcome:
        return Welcome(WIRE_VERSION, self.link, 1, ME.user, ME.device, window, body_bytes, frame_bytes, heartbeat_ms, 0)

    def says(self, *frames: Frame) -> Sequence[e.Action]:
        return self.happens(e.FramesReceived([wire.encode(frame) for frame in frames]))

    def delivers(self, *items: ConnectorItem, ack: int = 0) -> Sequence[e.Action]:
        self._number += 1
        return self.says(Data(self.link, self._number, ack, (), items))

    def saves(self) -> Sequence[e.Action]:
        """Everything is written now."""
        return self.happens(e.Saved(self.core._serial))

    @property
    def frames(self) -> list[wire.ClientFrame]:
        sent = [action.frame for action in self.actions if isinstance(action, e.SendFrame)]
        return [wire.decode_from_client(frame) for frame in sent]

    @property
    def submits(self) -> list[Envelope]:
        items = [item for frame in self.frames if isinstance(frame, Data) for item in frame.items]
        return [decode_envelope(item.envelope) for item in items]

    def acked(self) -> int | None:
        """The last acknowledgement in what the core said."""
        acks = [frame.ack for frame in self.frames if isinstance(frame, Ack | Data)]
        return acks[-1] if acks else None

    def did(self, kind: type[e.Action]) -> list[e.Action]:
        return [action for action in self.actions if isinstance(action, kind)]

    def composes(self, size: int = 4) -> int:
        seq, base = self.core.reserve(TO_BOB)
        envelope = Envelope(WIRE_VERSION, bytes(16), *ME, TO_BOB, seq, base, Kind.TEXT, 1, 0, bytes(size))
        self.happens(e.Composed((envelope,)))
        return seq


def from_bob(seq: int, base: int = 1, *, stored: bool = False, **changes: object) -> Delivery:
    fields = {"kind": Kind.TEXT, "body": b"text", "user": 2, "device": 20, "to": TO_ME} | changes
    envelope = Envelope(
        WIRE_VERSION, bytes(16), fields["user"], fields["device"], 5, fields["to"], seq, base,  # type: ignore[arg-type]
        fields["kind"], 1, 0, fields["body"],  # type: ignore[arg-type]
    )  # fmt: skip
    return Delivery(encode_envelope(envelope), stored)


def delivered(seq: int, who: Identity = ME) -> Outcome:
    return Outcome(0, *who, TO_BOB, seq, seq, OutcomeStatus.DELIVERED, ((2, 20),), ((2, 20),))


# ---------------------------------------------------------------- connecting


def test_a_connection_is_greeted_and_welcomed() -> None:
    connector = Connector()
    connector.greeted()
    assert connector.frames == [Greet(WIRE_VERSION, b"token", ME.epoch, LINK, 4)]
    assert connector.says(connector.welcome(body_bytes=99)) == [e.Online(99)]
    assert connector.core.state is Stage.ONLINE
    assert connector.says(connector.welcome()) == []


def test_nothing_but_the_greeting_is_said_before_the_welcome() -> None:
    connector = Connector()
    connector.composes()
    connector.saves()
    connector.greeted()
    assert len(connector.frames) == 1
    connector.says(connector.welcome())
    assert [envelope.seq for envelope in connector.submits] == [1]


def test_what_overtakes_the_welcome_is_not_taken_in_and_may_come_again() -> None:
    connector = Connector()
    connector.greeted()
    early = Data(LINK, 1, 0, (), (from_bob(1),))
    assert connector.says(early) == []
    connector.says(connector.welcome())
    connector.says(early)
    connector.saves()
    assert connector.acked() == 1


def test_a_greeting_that_is_not_answered_ends_the_connection() -> None:
    connector = Connector()
    connector.greeted()
    assert connector.core.next_deadline() == OPTIONS.greet_timeout_s
    connector.now = OPTIONS.greet_timeout_s
    assert connector.happens(None) == [e.Disconnect(None, "the connector did not answer the greeting")]
    assert connector.core.next_deadline() is None


@pytest.mark.parametrize("link", [LINK, 0])
def test_a_refusal_is_told_with_its_code(link: int) -> None:
    connector = Connector()
    connector.greeted()
    assert connector.says(Close(link, Code.BAD_TOKEN, "log in")) == [e.Disconnect(Code.BAD_TOKEN, "log in")]
    assert connector.says(connector.welcome()) == []


def test_a_code_of_the_future_is_no_error() -> None:
    assert Connector().online().says(Close(LINK, 999, "new")) == [e.Disconnect(None, "new")]


def test_frames_of_another_link_are_not_read() -> None:
    connector = Connector().online()
    for frame in (Close(54, Code.REPLACED), Reset(54), Data(54, 1, 0, (), (from_bob(1),)), Ping(54)):
        assert connector.says(frame) == []


def test_a_connector_that_does_not_know_the_link_is_left() -> None:
    assert Connector().online().says(Reset(LINK)) == [
        e.Disconnect(Code.UNKNOWN_EPOCH, "the connector does not know this link any more")
    ]


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x91\x63", wire.encode(Ack(LINK, 7))])
def test_a_connector_that_breaks_the_protocol_is_left(frame: bytes) -> None:
    connector = Connector().online()
    [action] = connector.happens(e.FramesReceived([frame]))
    assert isinstance(action, e.Disconnect)
    assert "broke the protocol" in action.sentence
    assert connector.core.state is Stage.OFFLINE


def test_what_came_before_the_connection_ended_is_kept() -> None:
    connector = Connector().online()
    connector.says(Data(LINK, 1, 0, (), (from_bob(1),)), Close(LINK, Code.SHUTTING_DOWN, "bye"), Ping(LINK))
    assert len(connector.did(e.Save)) == len(connector.did(e.Disconnect)) == 1
    assert connector.frames == []


def test_a_silent_connector_is_pinged_and_then_left() -> None:
    connector = Connector().online()
    connector.now = 10.0
    connector.happens(None)
    assert connector.frames == [Ping(LINK)]
    connector.says(Pong(LINK))
    connector.now = 35.0
    connector.happens(None)
    assert connector.did(e.Disconnect) == [e.Disconnect(None, "the connector does not answer")]


def test_a_ping_is_answered() -> None:
    connector = Connector().online()
    connector.says(Ping(LINK))
    assert connector.frames == [Pong(LINK)]


def test_a_connector_that_listens_for_less_time_hears_of_us_more_often() -> None:
    connector = Connector().online(heartbeat_ms=2_000)
    connector.now = 2.0
    connector.happens(None)
    assert connector.frames == [Ping(LINK)]
    connector.now = 5.0
    connector.happens(None)
    assert connector.did(e.Disconnect)


def test_frames_are_no_larger_than_the_connector_takes() -> None:
    for frame_bytes, count in ((262_144, 1), (16_384 + 6_000, 2), (1, 3)):
        connector = Connector()
        for _ in range(3):
            connector.composes(size=2_500)
        connector.saves()
        connector.online(frame_bytes=frame_bytes)
        assert len(connector.frames) == count
        assert len(connector.submits) == 3


def test_no_more_frames_are_under_way_than_the_connector_allows() -> None:
    connector = Connector().online(window=1)
    for _ in range(4):
        connector.composes()
        connector.saves()
    assert connector.submits == []
    connector.says(Ack(LINK, 1))
    assert [envelope.seq for envelope in connector.submits] == [2, 3, 4]


def test_farewell_ends_the_link() -> None:
    connector = Connector().online()
    connector.actions = list(connector.core.farewell())
    assert connector.frames == [Close(LINK, Code.SHUTTING_DOWN, "the client leaves")]
    assert connector.core.farewell() == []


def test_stored_messages_that_are_delayed_are_told() -> None:
    assert Connector().online().says(Stored(LINK, True)) == [e.StoredDelayed(True)]


# ---------------------------------------------------------------- only what is safe is acknowledged or sent


def test_a_message_is_acknowledged_when_it_is_in_the_state_file() -> None:
    connector = Connector().online()
    connector.delivers(from_bob(1))
    assert connector.acked() == 0
    assert not connector.did(e.InboxGrew)
    connector.saves()
    assert connector.acked() == 1
    assert connector.did(e.InboxGrew)


def test_what_changes_nothing_is_acknowledged_at_once_but_never_before_what_came_earlier() -> None:
    connector = Connector().online()
    connector.delivers(from_bob(1))
    connector.delivers(from_bob(1))  # again, in the next frame
    assert connector.acked() == 0
    connector.saves()
    assert connector.acked() == 2
    connector.delivers(from_bob(1))
    assert connector.acked() == 3


def test_saving_what_came_by_an_earlier_connection_acknowledges_nothing_on_this_one() -> None:
    connector = Connector().online()
    connector.delivers(from_bob(1))
    connector.happens(e.ConnectionLost())
    connector.online()
    connector.delivers(from_bob(1), from_bob(2))
    connector.happens(e.Saved(1))
    assert connector.acked() is None
    connector.saves()
    assert connector.acked() == 1


def test_a_message_is_submitted_when_it_is_in_the_state_file() -> None:
    connector = Connector().online()
    connector.composes()
    assert connector.frames == []
    connector.saves()
    assert [envelope.seq for envelope in connector.submits] == [1]


def test_what_is_not_settled_goes_to_the_next_connector() -> None:
    connector = Connector().online()
    for _ in range(3):
        connector.composes()
    connector.saves()
    connector.delivers(delivered(2), ack=1)
    connector.composes()  # not saved yet
    connector.says(Close(LINK, Code.SHUTTING_DOWN, "bye"))
    connector.online()
    assert [envelope.seq for envelope in connector.submits] == [1, 3]


def test_progress_is_told_and_kept() -> None:
    connector = Connector().online()
    connector.composes()
    connector.saves()
    connector.delivers(delivered(1), ack=1)
    assert connector.did(e.Progress) == [e.Progress(TO_BOB, 1, "delivered", 0, "")]
    [save] = connector.did(e.Save)
    assert isinstance(save, e.Save)
    assert save.changes == (e.SettleOut(TO_BOB, 1, "delivered"),)


@pytest.mark.parametrize("who", [ME._replace(epoch=8), ME._replace(device=11), ME._replace(user=3)])
def test_outcomes_for_somebody_else_change_nothing(who: Identity) -> None:
    """Of the installation that had this device before us, for example."""
    connector = Connector().online()
    connector.composes()
    connector.saves()
    connector.delivers(delivered(1, who), ack=1)
    assert connector.did(e.Progress) == []


def test_a_base_update_is_composed_with_the_settling_of_the_last_in_one_save() -> None:
    connector = Connector().online()
    connector.composes()
    connector.composes()
    connector.saves()
    rejected = Outcome(0, *ME, TO_BOB, 1, 1, OutcomeStatus.REJECTED, code=Code.TOO_LARGE, sentence="too large")
    connector.delivers(rejected, delivered(2), ack=1)
    [save] = connector.did(e.Save)
    assert isinstance(save, e.Save)
    [base] = [change for change in save.changes if isinstance(change, e.PutOut)]
    assert (base.kind, base.seq, base.base) == (Kind.BASE, 3, 3)
    connector.saves()
    assert [(envelope.kind, envelope.seq) for envelope in connector.submits] == [(Kind.BASE, 3)]


# ---------------------------------------------------------------- receipts


def receipts(envelopes: Sequence[Envelope]) -> list[tuple[Destination, Receipt]]:
    return [(each.to, decode_receipt(each.body)) for each in envelopes if each.kind == Kind.RECEIPT]


def test_stored_messages_of_one_turn_earn_one_receipt() -> None:
    connector = Connector().online()
    connector.delivers(*(from_bob(seq, stored=True) for seq in (1, 2, 3, 5)))
    connector.saves()
    to_bobs_device = Destination(DestinationType.DEVICE, 2, 20)
    assert receipts(connector.submits) == [(to_bobs_device, Receipt(ReceiptKind.DELIVERED, 5, TO_ME, ((1, 3), (5, 5))))]


def test_a_stored_duplicate_earns_its_receipt_again() -> None:
    """The first may have been lost with whoever had it."""
    connector = Connector().online()
    connector.delivers(from_bob(1))
    connector.saves()
    assert receipts(connector.submits) == []
    connector.delivers(from_bob(1, stored=True))
    connector.saves()
    assert len(receipts(connector.submits)) == 1


@pytest.mark.parametrize(
    "delivery",
    [
        from_bob(1, stored=True, kind=Kind.BASE),
        from_bob(1, stored=True, user=1, device=11, to=TO_BOB),  # another device of ours
        from_bob(1, stored=True, user=1, device=10, to=TO_BOB),  # we ourselves
        from_bob(1, stored=True, kind=Kind.TYPING),
    ],
)
def test_other_messages_earn_no_receipt(delivery: Delivery) -> None:
    connector = Connector().online()
    acked = connector.delivers(delivery) and connector.acked()
    connector.saves()
    assert connector.submits == []
    assert 1 in (acked, connector.acked())


def test_reading_is_told_to_the_device_that_sent() -> None:
    connector = Connector().online()
    stream = decode_envelope(from_bob(1).envelope).stream
    connector.happens(e.MessagesRead(((stream, 1), (stream, 2))))
    connector.saves()
    assert receipts(connector.submits) == [
        (Destination(DestinationType.DEVICE, 2, 20), Receipt(ReceiptKind.READ, 5, TO_ME, ((1, 2),)))
    ]
    own = decode_envelope(from_bob(1, user=1, device=11, to=TO_BOB).envelope).stream
    assert connector.happens(e.MessagesRead(((own, 1),))) == []


def test_a_receipt_with_very_many_ranges_is_split() -> None:
    connector = Connector().online()
    stream = decode_envelope(from_bob(1).envelope).stream
    connector.happens(e.MessagesRead(tuple((stream, 2 * n + 1) for n in range(130))))
    connector.saves()
    counts = [len(receipt.ranges) for _, receipt in receipts(connector.submits)]
    assert counts == [64, 64, 2]


@pytest.mark.parametrize(("epoch", "progress"), [(ME.epoch, ["read"]), (ME.epoch + 1, [])])
def test_a_receipt_counts_for_the_state_file_that_sent(epoch: int, progress: list[str]) -> None:
    connector = Connector().online()
    connector.composes()
    connector.saves()
    connector.delivers(delivered(1), ack=1)
    body = encode_content(Receipt(ReceiptKind.READ, epoch, TO_BOB, ((1, 1),)))
    connector.delivers(from_bob(1, kind=Kind.RECEIPT, body=body, to=Destination(DestinationType.DEVICE, 1, 10)))
    assert [action.state for action in connector.did(e.Progress) if isinstance(action, e.Progress)] == progress
    assert not connector.did(e.InboxGrew)


@pytest.mark.parametrize("delivery", [Delivery(b"\xc1"), from_bob(1, kind=Kind.RECEIPT, body=b"\xc1")])
def test_what_cannot_be_read_is_counted_and_acknowledged(delivery: Delivery) -> None:
    connector = Connector().online()
    connector.delivers(delivery)
    assert connector.core.unreadable == 1
    assert connector.acked() == 1


# ---------------------------------------------------------------- gaps


def test_a_gap_that_lasts_too_long_is_given_up_also_while_offline() -> None:
    connector = Connector().online()
    connector.delivers(from_bob(2))
    connector.saves()
    connector.happens(e.ConnectionLost())
    deadline = connector.core.next_deadline()
    assert deadline == OPTIONS.ordering.gap_release_s
    connector.now = deadline
    connector.happens(None)
    [save] = connector.did(e.Save)
    assert isinstance(save, e.Save)
    assert [type(change) for change in save.changes] == [e.Release, e.PutOrder]
    assert connector.saves() == [e.InboxGrew()]
