"""The client's core, frame by frame against a connector."""

from collections.abc import Sequence

import pytest

from meshim.client import events as e
from meshim.client.core import ClientCore, State
from meshim.client.identity import Identity
from meshim.errors import Code
from meshim.wire import client as wire
from meshim.wire.client import Changed, ConnectorItem, Delivery, Greet, Outcome, Stored, Welcome
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    Stream,
    decode_envelope,
    decode_receipt,
    encode_content,
    encode_envelope,
)
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.outcome import OutcomeStatus
from tests.unit.client.world import OPTIONS

ME = Identity(1, 10, 7)
TO_ME, TO_BOB = Destination(DestinationType.USER, 1), Destination(DestinationType.USER, 2)
READ_1 = encode_content(Receipt(ReceiptKind.READ, ME.device, ME.epoch, TO_BOB, ((1, 1),)))
LINK = 55
EMPTY = e.Snapshot([], [], [], [], [])


class Connector:
    """The connector of one client: the test writes its frames and reads those of the client."""

    def __init__(self, snapshot: e.Snapshot = EMPTY) -> None:
        self.core = ClientCore(ME, OPTIONS, snapshot, lambda: bytes(16), lambda: 0, 0.0)
        self.now = 0.0
        self.actions: list[e.Action] = []
        self.link = LINK - 1
        self._number = 0

    def step(self, event: e.Event | None) -> Sequence[e.Action]:
        """The actions of the core for an event, or for a tick (None)."""
        core = self.core
        found = core.tick(self.now) if event is None else core.receive(event, self.now)
        self.actions = list(found)
        return self.actions

    def go_online(self, **changes: int) -> "Connector":
        self.connect()
        self.send(self.welcome(**changes))
        return self

    def connect(self) -> Sequence[e.Action]:
        self.link += 1
        self._number = 0
        return self.step(e.Connected(self.link, b"token"))

    def welcome(
        self, window: int = 4, body_bytes: int = 65_536, frame_bytes: int = 262_144, silence_ms: int = 25_000,
        ack_ms: int = 2_500,
    ) -> Welcome:  # fmt: skip
        return Welcome(
            WIRE_VERSION,
            self.link,
            1,
            ME.user,
            ME.device,
            window,
            body_bytes,
            frame_bytes,
            10_000,
            silence_ms,
            ack_ms,
            0,
        )

    def send(self, *frames: Frame) -> Sequence[e.Action]:
        return self.step(e.FramesReceived([wire.encode(frame) for frame in frames]))

    def deliver(self, *items: ConnectorItem, ack: int = 0) -> Sequence[e.Action]:
        self._number += 1
        return self.send(Data(self.link, self._number, ack, items))

    def persist(self) -> Sequence[e.Action]:
        """Everything is in the state file now."""
        return self.step(e.Persisted(self.core._serial))

    @property
    def frames(self) -> list[wire.ClientFrame]:
        sent = [action.frame for action in self.actions if isinstance(action, e.SendFrame)]
        return [wire.decode_from_client(frame) for frame in sent]

    @property
    def submits(self) -> list[Envelope]:
        items = [item for frame in self.frames if isinstance(frame, Data) for item in frame.items]
        return [decode_envelope(item.envelope) for item in items]

    def acked(self) -> int | None:
        """The latest acknowledgement in the frames of the last step."""
        acks = [frame.ack for frame in self.frames if isinstance(frame, Ack | Data)]
        return acks[-1] if acks else None

    def actions_of(self, kind: type[e.Action]) -> list[e.Action]:
        return [action for action in self.actions if isinstance(action, kind)]

    def compose(self, size: int = 4) -> int:
        seq, base = self.core.reserve(TO_BOB)
        envelope = Envelope(WIRE_VERSION, bytes(16), *ME, TO_BOB, seq, base, Kind.TEXT, 1, 0, bytes(size))
        self.step(e.Composed((envelope,)))
        return seq


def from_bob(seq: int, base: int = 1, *, stored: bool = False, **changes: object) -> Delivery:
    fields = {"kind": Kind.TEXT, "body": b"text", "user": 2, "device": 20, "to": TO_ME} | changes
    envelope = Envelope(
        WIRE_VERSION, bytes(16), fields["user"], fields["device"], 5, fields["to"], seq, base,  # type: ignore[arg-type]
        fields["kind"], 1, 0, fields["body"],  # type: ignore[arg-type]
    )  # fmt: skip
    return Delivery(encode_envelope(envelope), stored)


def delivered_outcome(seq: int) -> Outcome:
    return Outcome(TO_BOB, seq, seq, OutcomeStatus.DELIVERED, final=True, audience=1)


# ---------------------------------------------------------------- connecting


def test_the_client_greets_and_is_online_after_the_first_welcome() -> None:
    connector = Connector()
    connector.connect()
    assert connector.frames == [Greet(WIRE_VERSION, b"token", ME.epoch, LINK, 4)]
    assert connector.send(connector.welcome(body_bytes=99)) == [e.Online(99)]
    assert connector.core.state is State.ONLINE
    assert connector.send(connector.welcome()) == []


def test_only_the_greeting_is_sent_before_the_welcome() -> None:
    connector = Connector()
    connector.compose()
    connector.persist()
    connector.connect()
    assert len(connector.frames) == 1
    connector.send(connector.welcome())
    assert [envelope.seq for envelope in connector.submits] == [1]


@pytest.mark.parametrize("early", [Data(LINK, 1, 0, ()), Ack(LINK, 0), Ping(LINK), Stored(LINK, delayed=True)])
def test_a_frame_before_the_welcome_disconnects(early: Frame) -> None:
    connector = Connector()
    connector.connect()
    (end,) = connector.send(early)
    assert isinstance(end, e.Disconnect)
    assert end.sentence.endswith("came before the Welcome")
    connector.connect()
    connector.send(connector.welcome())
    assert connector.core.state is State.ONLINE


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_frame_that_is_not_the_next_one_disconnects(number: int) -> None:
    """What was not acknowledged comes again over the next connection."""
    connector = Connector().go_online()
    connector.deliver(from_bob(1))
    data = wire.encode(Data(LINK, 7, 0, (from_bob(2),))).replace(b"\x07", bytes([number]), 1)
    [action] = connector.step(e.FramesReceived([data]))
    assert isinstance(action, e.Disconnect)
    assert "broke the protocol" in action.sentence


def test_a_greeting_without_a_welcome_times_out() -> None:
    connector = Connector()
    connector.connect()
    assert connector.core.next_deadline() == OPTIONS.greet_timeout_s
    connector.now = OPTIONS.greet_timeout_s
    assert connector.step(None) == [e.Disconnect(None, "the connector did not answer the greeting")]
    assert connector.core.next_deadline() is None


@pytest.mark.parametrize("link", [LINK, 0])
def test_a_close_frame_disconnects_with_its_code(link: int) -> None:
    connector = Connector()
    connector.connect()
    assert connector.send(Close(link, Code.BAD_TOKEN, "log in")) == [e.Disconnect(Code.BAD_TOKEN, "log in")]
    assert connector.send(connector.welcome()) == []


def test_an_unknown_close_code_becomes_none() -> None:
    assert Connector().go_online().send(Close(LINK, 999, "new")) == [e.Disconnect(None, "new")]


def test_frames_of_another_link_epoch_are_ignored() -> None:
    connector = Connector().go_online()
    for frame in (Close(54, Code.REPLACED), Reset(54), Data(54, 1, 0, (from_bob(1),)), Ping(54)):
        assert connector.send(frame) == []


def test_a_reset_disconnects() -> None:
    assert Connector().go_online().send(Reset(LINK)) == [
        e.Disconnect(Code.UNKNOWN_EPOCH, "the connector does not know this link any more")
    ]


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x91\x63", wire.encode(Ack(LINK, 7))])
def test_a_protocol_error_disconnects(frame: bytes) -> None:
    connector = Connector().go_online()
    [action] = connector.step(e.FramesReceived([frame]))
    assert isinstance(action, e.Disconnect)
    assert "broke the protocol" in action.sentence
    assert connector.core.state is State.OFFLINE


def test_deliveries_before_a_close_frame_are_persisted() -> None:
    connector = Connector().go_online()
    connector.send(Data(LINK, 1, 0, (from_bob(1),)), Close(LINK, Code.SHUTTING_DOWN, "bye"), Ping(LINK))
    assert len(connector.actions_of(e.Persist)) == len(connector.actions_of(e.Disconnect)) == 1
    assert connector.frames == []


@pytest.mark.parametrize("silence_ms", [25_000, 4_000])
def test_a_connector_that_is_silent_for_as_long_as_the_welcome_says_is_disconnected(silence_ms: int) -> None:
    connector = Connector().go_online(silence_ms=silence_ms)
    connector.now = 3.0
    connector.send(Ping(LINK))
    assert connector.core.next_deadline() == 3.0 + silence_ms / 1000, "the client needs no timer of its own for pings"
    connector.now += silence_ms / 1000 - 0.1
    connector.step(None)
    assert connector.frames == []
    connector.now += 0.1
    connector.step(None)
    assert connector.actions_of(e.Disconnect) == [e.Disconnect(None, "the connector does not answer")]


def test_a_ping_is_answered_with_a_pong() -> None:
    connector = Connector().go_online()
    connector.send(Ping(LINK))
    assert connector.frames == [Pong(LINK)]


def test_frames_respect_the_size_limit_of_the_welcome() -> None:
    for frame_bytes, count in ((262_144, 1), (16_384 + 6_000, 2), (1, 3)):
        connector = Connector()
        for _ in range(3):
            connector.compose(size=2_500)
        connector.persist()
        connector.go_online(frame_bytes=frame_bytes)
        assert len(connector.frames) == count
        assert len(connector.submits) == 3


def test_unacknowledged_frames_respect_the_window_of_the_welcome() -> None:
    connector = Connector().go_online(window=1)
    for _ in range(4):
        connector.compose()
        connector.persist()
    assert connector.submits == []
    connector.send(Ack(LINK, 1))
    assert [envelope.seq for envelope in connector.submits] == [2, 3, 4]


def test_farewell_sends_a_close_frame_once() -> None:
    connector = Connector().go_online()
    connector.actions = list(connector.core.farewell())
    assert connector.frames == [Close(LINK, Code.QUIT, "the client quits")]
    assert connector.core.farewell() == []


def test_a_stored_frame_reports_delayed_messages() -> None:
    assert Connector().go_online().send(Stored(LINK, True)) == [e.StoredDelayed(True)]


# ---------------------------------------------------------------- persisted first, then acknowledged or sent


def test_a_delivery_is_acknowledged_when_persisted() -> None:
    connector = Connector().go_online()
    connector.deliver(from_bob(1))
    assert connector.acked() is None
    assert not connector.actions_of(e.MessagesAvailable)
    connector.persist()
    assert connector.acked() == 1
    assert connector.actions_of(e.MessagesAvailable)


@pytest.mark.parametrize("nested", [1, 200, 900])
def test_what_is_kept_of_an_envelope_decodes_also_deep_in_the_stack_of_an_application(nested: int) -> None:
    connector = Connector().go_online()
    plain = from_bob(1, 1).envelope
    unknown = b"\x91" * nested + b"\x90"  # an element that a later version added: arrays within arrays
    connector.deliver(Delivery(b"\x9d" + plain[1:] + unknown))
    kept = [
        change.envelope
        for action in connector.actions
        if isinstance(action, e.Persist)
        for change in action.changes
        if isinstance(change, e.AddToInbox)
    ]

    def deep(frames: int) -> Envelope:
        return deep(frames - 1) if frames else decode_envelope(kept[0])

    assert deep(500) == decode_envelope(plain)


def test_a_duplicate_is_acknowledged_at_once_unless_earlier_frames_wait_for_the_disk() -> None:
    connector = Connector().go_online()
    connector.deliver(from_bob(1))
    connector.deliver(from_bob(1))  # the duplicate, in the next frame
    assert connector.acked() is None
    connector.persist()
    assert connector.acked() == 2
    connector.deliver(from_bob(1))
    assert connector.acked() == 3


def test_persisting_deliveries_of_an_earlier_link_acknowledges_nothing_on_this_one() -> None:
    connector = Connector().go_online()
    connector.deliver(from_bob(1))
    connector.step(e.ConnectionLost())
    connector.go_online()
    connector.deliver(from_bob(1), from_bob(2))
    connector.step(e.Persisted(1))
    assert connector.acked() is None
    connector.persist()
    assert connector.acked() == 1


def test_a_message_is_submitted_when_persisted() -> None:
    connector = Connector().go_online()
    connector.compose()
    assert connector.frames == []
    connector.persist()
    assert [envelope.seq for envelope in connector.submits] == [1]


def test_unsettled_messages_are_submitted_again_over_the_next_connection() -> None:
    connector = Connector().go_online()
    for _ in range(3):
        connector.compose()
    connector.persist()
    connector.deliver(delivered_outcome(2), ack=1)
    connector.compose()  # not persisted yet
    connector.send(Close(LINK, Code.SHUTTING_DOWN, "bye"))
    connector.go_online()
    assert [envelope.seq for envelope in connector.submits] == [1, 3]


def test_an_outcome_reports_and_persists_the_new_state() -> None:
    connector = Connector().go_online()
    connector.compose()
    connector.persist()
    connector.deliver(delivered_outcome(1), ack=1)
    assert connector.actions_of(e.StatusChanged) == [e.StatusChanged(TO_BOB, 1, "delivered", 0, "")]
    [save] = connector.actions_of(e.Persist)
    assert isinstance(save, e.Persist)
    assert save.changes == (e.SettleMessage(TO_BOB, 1, "delivered"),)


def test_a_base_update_is_persisted_with_the_last_settled_message_of_its_run() -> None:
    connector = Connector().go_online()
    connector.compose()
    connector.compose()
    connector.persist()
    rejected = Outcome(TO_BOB, 1, 1, OutcomeStatus.REJECTED, code=Code.TOO_LARGE, sentence="too large")
    connector.deliver(rejected, delivered_outcome(2), ack=1)
    [save] = connector.actions_of(e.Persist)
    assert isinstance(save, e.Persist)
    [base] = [change for change in save.changes if isinstance(change, e.AddToOutbox)]
    assert (base.kind, base.seq, base.base) == (Kind.BASE, 3, 3)
    connector.persist()
    assert [(envelope.kind, envelope.seq) for envelope in connector.submits] == [(Kind.BASE, 3)]


# ---------------------------------------------------------------- receipts


def receipts(envelopes: Sequence[Envelope]) -> list[tuple[Destination, Receipt]]:
    return [(each.to, decode_receipt(each.body)) for each in envelopes if each.kind == Kind.RECEIPT]


def test_stored_messages_of_one_frame_share_one_receipt() -> None:
    connector = Connector().go_online()
    connector.deliver(*(from_bob(seq, stored=True) for seq in (1, 2, 3, 5)))
    connector.persist()
    assert receipts(connector.submits) == [(TO_BOB, Receipt(ReceiptKind.DELIVERED, 20, 5, TO_ME, ((1, 3), (5, 5))))]


def test_a_stored_duplicate_gets_another_receipt() -> None:
    """The first receipt may have been lost with the process that held it."""
    connector = Connector().go_online()
    connector.deliver(from_bob(1))
    connector.persist()
    assert receipts(connector.submits) == []
    connector.deliver(from_bob(1, stored=True))
    connector.persist()
    assert len(receipts(connector.submits)) == 1


def test_what_came_straight_gets_a_receipt_after_a_while_also_offline() -> None:
    connector = Connector().go_online()
    connector.deliver(from_bob(1), from_bob(2))
    connector.persist()
    connector.step(e.ConnectionLost())
    due = connector.core.next_deadline()
    assert due == OPTIONS.delivered_delay_s
    connector.now = due
    connector.step(None)
    connector.persist()
    connector.go_online()
    assert receipts(connector.submits) == [(TO_BOB, Receipt(ReceiptKind.DELIVERED, 20, 5, TO_ME, ((1, 2),)))]


@pytest.mark.parametrize(
    "delivery",
    [
        from_bob(1, stored=True, kind=Kind.BASE),
        from_bob(1, stored=True, kind=Kind.RECEIPT, body=READ_1),
        from_bob(1, stored=True, user=1, device=11, to=TO_BOB),  # from another device of this user
        from_bob(1, stored=True, user=1, device=10, to=TO_BOB),  # from this device
        from_bob(1, stored=True, kind=Kind.TYPING),
    ],
)
def test_base_updates_receipts_own_messages_and_ephemeral_ones_get_no_receipt(delivery: Delivery) -> None:
    connector = Connector().go_online()
    acked = connector.deliver(delivery) and connector.acked()
    connector.persist()
    assert connector.submits == []
    assert 1 in (acked, connector.acked())


def test_a_read_receipt_goes_to_the_user_who_sent_the_message() -> None:
    connector = Connector().go_online()
    stream = decode_envelope(from_bob(1).envelope).stream
    connector.step(e.MessagesRead(((stream, 1), (stream, 2))))
    connector.persist()
    assert receipts(connector.submits) == [(TO_BOB, Receipt(ReceiptKind.READ, 20, 5, TO_ME, ((1, 2),)))]
    own = decode_envelope(from_bob(1, user=1, device=11, to=TO_BOB).envelope).stream
    assert connector.step(e.MessagesRead(((own, 1),))) == []


def test_a_receipt_with_many_ranges_is_split() -> None:
    connector = Connector().go_online()
    stream = decode_envelope(from_bob(1).envelope).stream
    connector.step(e.MessagesRead(tuple((stream, 2 * n + 1) for n in range(130))))
    connector.persist()
    counts = [len(receipt.ranges) for _, receipt in receipts(connector.submits)]
    assert counts == [64, 64, 2]


@pytest.mark.parametrize(
    ("device", "epoch", "progress"),
    [(ME.device, ME.epoch, ["read"]), (ME.device, ME.epoch + 1, []), (11, ME.epoch, [])],
)
def test_a_receipt_for_another_epoch_or_device_leaves_the_outbox_alone(
    device: int, epoch: int, progress: list[str]
) -> None:
    connector = Connector().go_online()
    connector.compose()
    connector.persist()
    connector.deliver(delivered_outcome(1), ack=1)
    body = encode_content(Receipt(ReceiptKind.READ, device, epoch, TO_BOB, ((1, 1),)))
    connector.deliver(from_bob(1, kind=Kind.RECEIPT, body=body))
    assert [
        action.state for action in connector.actions_of(e.StatusChanged) if isinstance(action, e.StatusChanged)
    ] == progress
    assert not connector.actions_of(e.MessagesAvailable)


def test_a_receipt_for_another_device_of_this_user_is_told_and_takes_its_place_in_the_order() -> None:
    connector = Connector().go_online()
    body = encode_content(Receipt(ReceiptKind.READ, 11, 6, TO_BOB, ((1, 2),)))
    connector.deliver(from_bob(1, kind=Kind.RECEIPT, body=body), from_bob(2))
    mine_elsewhere, from_bobs = Stream(ME.user, 11, 6, TO_BOB), decode_envelope(from_bob(1).envelope).stream
    assert connector.actions_of(e.StreamProgressed) == [e.StreamProgressed(mine_elsewhere, "read", ((1, 2),))]
    [save] = connector.actions_of(e.Persist)
    assert isinstance(save, e.Persist)
    assert e.PutOrder(from_bobs, 3, ()) in save.changes
    assert e.PutReceipts(mine_elsewhere, (), ((1, 2),), (), ()) in save.changes
    assert [change.seq for change in save.changes if isinstance(change, e.AddToInbox)] == [2]


def test_a_receipt_that_comes_early_is_applied_at_once() -> None:
    connector = Connector().go_online()
    body = encode_content(Receipt(ReceiptKind.READ, 11, 6, TO_BOB, ((1, 2),)))
    connector.deliver(from_bob(2, kind=Kind.RECEIPT, body=body))
    assert connector.actions_of(e.StreamProgressed)
    connector.deliver(from_bob(1))
    connector.persist()
    assert connector.actions_of(e.MessagesAvailable)


def test_receipts_are_within_the_limit_of_their_stream() -> None:
    """256 texts to bob are under way: what is read meanwhile becomes one receipt, once one of them is settled."""
    connector = Connector()
    for _ in range(256):
        connector.compose()
    connector.persist()
    stream = decode_envelope(from_bob(1).envelope).stream
    for seq in (1, 2, 3):
        connector.step(e.MessagesRead(((stream, seq),)))
        connector.persist()
    core = connector.core
    assert (core.outbox.unsettled, core.unsettled) == (256, 257)
    connector.go_online()
    connector.deliver(delivered_outcome(1), ack=0)
    [save] = connector.actions_of(e.Persist)
    assert isinstance(save, e.Persist)
    [receipt] = [decode_envelope(change.envelope) for change in save.changes if isinstance(change, e.AddToOutbox)]
    assert (receipt.seq, receipt.base) == (257, 2)
    assert receipts([receipt]) == [(TO_BOB, Receipt(ReceiptKind.READ, 20, 5, TO_ME, ((1, 3),)))]
    assert core.unsettled == core.outbox.unsettled == 256


def test_a_rejected_receipt_is_settled_silently() -> None:
    """The friendship has ended: no base update, and nothing is left of it."""
    connector = Connector().go_online()
    connector.step(e.MessagesRead(((decode_envelope(from_bob(1).envelope).stream, 1),)))
    connector.persist()
    connector.deliver(Outcome(TO_BOB, 1, 1, OutcomeStatus.REJECTED, code=Code.NOT_FRIENDS, sentence="no"), ack=1)
    [save] = connector.actions_of(e.Persist)
    assert isinstance(save, e.Persist)
    assert save.changes == (e.DropFromOutbox(TO_BOB, 1),)
    assert connector.core.unsettled == 0


def test_receipts_are_not_answered() -> None:
    """Two clients that read everything at once, and are told of everything as stored: one receipt for each message."""
    connector = Connector().go_online()
    stream = decode_envelope(from_bob(1).envelope).stream
    connector.deliver(from_bob(1, stored=True))
    connector.persist()
    connector.step(e.MessagesRead(((stream, 1),)))
    connector.persist()
    sent = connector.core.outbox._streams[TO_BOB].next_seq
    for seq in (2, 3, 4):
        connector.deliver(from_bob(seq, stored=True, kind=Kind.RECEIPT, body=READ_1), ack=0)
        connector.persist()
        connector.step(e.MessagesRead(((stream, 1),)))
    assert (sent, connector.core.outbox._streams[TO_BOB].next_seq) == (3, 3)


@pytest.mark.parametrize("delivery", [Delivery(b"\xc1"), from_bob(1, kind=Kind.RECEIPT, body=b"\xc1")])
def test_an_unreadable_delivery_is_counted_and_acknowledged(delivery: Delivery) -> None:
    connector = Connector().go_online()
    connector.deliver(delivery)
    if connector.actions_of(e.Persist):  # a receipt takes its place in the order, whatever it says
        connector.persist()
    assert connector.core.statistics.unreadable == 1
    assert connector.acked() == 1


# ---------------------------------------------------------------- gaps


def test_a_gap_waits_while_offline_and_its_time_begins_anew_with_the_next_link() -> None:
    """What is missing may be stored meanwhile, and comes after the Welcome."""
    connector = Connector().go_online()
    connector.deliver(from_bob(2))
    connector.persist()
    connector.step(e.ConnectionLost())
    connector.now = OPTIONS.delivered_delay_s
    connector.step(None)
    connector.persist()
    assert connector.core.next_deadline() is None
    connector.now = 2 * OPTIONS.ordering.gap_release_s
    assert connector.step(None) == []
    connector.go_online(silence_ms=2_000_000_000)
    connector.send(Ack(connector.link, 1))  # of the receipt
    connector.now = 3 * OPTIONS.ordering.gap_release_s - 1.0
    connector.step(None)
    assert not connector.actions_of(e.Persist)
    connector.now += 1.0
    connector.step(None)
    [save] = connector.actions_of(e.Persist)
    assert isinstance(save, e.Persist)
    assert [type(change) for change in save.changes] == [e.Release, e.PutOrder]
    assert connector.persist() == [e.MessagesAvailable()]


# ---------------------------------------------------------------- typing, and changes of the account


def test_typing_is_sent_at_once_with_the_next_seq_and_uses_up_none() -> None:
    connector = Connector().go_online()
    connector.compose()
    connector.persist()
    connector.step(e.UserTyped(TO_BOB))
    [typing] = connector.submits
    assert (typing.kind, typing.seq, typing.base, typing.key, typing.body) == (Kind.TYPING, 2, 1, 0, b"")
    assert connector.actions_of(e.Persist) == [], "it is not kept"
    connector.compose()
    connector.persist()
    assert [(each.kind, each.seq) for each in connector.submits] == [(Kind.TEXT, 2)]
    connector.step(e.UserTyped(TO_BOB))
    assert [each.seq for each in connector.submits] == [3], "a message begins the time anew"
    connector.step(e.UserTyped(TO_BOB))
    assert (connector.submits, connector.core.statistics.typing_not_sent) == ([], 1)
    connector.now = 60.0
    connector.step(None)
    assert Kind.TYPING not in {each.kind for each in connector.submits}, "it is not sent again"


def test_typing_is_dropped_without_a_connection_and_behind_messages_that_wait_for_room() -> None:
    connector = Connector()
    connector.step(e.UserTyped(TO_BOB))
    connector.connect()
    connector.step(e.UserTyped(TO_BOB))
    assert connector.submits == []
    connector.send(connector.welcome())
    assert connector.submits == []
    for _ in range(5):  # the window has room for four frames
        connector.compose()
        connector.persist()
    connector.step(e.UserTyped(TO_BOB))
    assert connector.submits == []
    assert connector.core.statistics.typing_not_sent == 3
    connector.send(Ack(LINK, 4))
    assert [each.kind for each in connector.submits] == [Kind.TEXT]


def test_typing_of_a_friend_is_shown_until_a_message_comes_or_time_passes() -> None:
    connector = Connector().go_online()
    started, stopped = e.TypingChanged(2, typing=True), e.TypingChanged(2, typing=False)
    connector.deliver(from_bob(1, kind=Kind.TYPING))
    assert connector.actions_of(e.TypingChanged) == [started]
    assert connector.core.next_deadline() == 6.0
    connector.deliver(from_bob(1))
    assert connector.actions_of(e.TypingChanged) == [stopped]
    connector.persist()
    connector.deliver(from_bob(2, kind=Kind.TYPING))
    connector.deliver(from_bob(2, kind=Kind.RECEIPT, body=READ_1))
    assert connector.actions_of(e.TypingChanged) == [], "a receipt is not what was typed"
    connector.now = 6.0
    connector.step(None)
    assert connector.actions_of(e.TypingChanged) == [stopped]


@pytest.mark.parametrize(
    "delivery",
    [
        from_bob(1, kind=Kind.TYPING),  # the message that was typed overtook it
        from_bob(9, kind=Kind.TYPING, user=1, device=11, to=TO_BOB),  # this user, on another device
        from_bob(9, kind=129),
    ],
)
def test_typing_that_came_late_or_from_this_user_is_not_shown(delivery: Delivery) -> None:
    connector = Connector().go_online()
    connector.deliver(from_bob(1))
    connector.deliver(delivery)
    assert connector.actions_of(e.TypingChanged) == []
    assert connector.core.state is State.ONLINE


def test_a_changed_frame_is_told() -> None:
    connector = Connector().go_online()
    connector.send(Changed(LINK, 5))
    assert connector.actions_of(e.AccountChanged) == [e.AccountChanged(5)]
