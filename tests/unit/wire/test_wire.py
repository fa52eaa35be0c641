"""The wire: pinned bytes, round trips, tolerance for new fields, and associated data."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.wire import client, codec
from meshim.wire.bounds import INTEGER_MAX, MS_MAX, SEQ_MAX
from meshim.wire.client import Delivery, Greet, Outcome, Submit
from meshim.wire.envelope import (
    EPHEMERAL_FROM,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    Stream,
    Text,
    associated_data,
    decode_envelope,
    encode_envelope,
)
from meshim.wire.link import Ack, Close, Data, Ping, Pong, Reset
from meshim.wire.mesh import Deliver, Return, Route, Stamp
from meshim.wire.offline_log import Entry, Record
from meshim.wire.outcome import CopyOutcome, OutcomeStatus
from tests.wire_samples import (
    BOB,
    CODINGS,
    ENVELOPE,
    ENVELOPE_BYTES,
    EPOCH,
    FROM_CLIENT,
    FROM_CONNECTOR,
    LINK,
    OUTCOME,
    PINNED,
    TO_CLIENT,
    Coding,
)

thorough = settings(max_examples=300)

every_pinned = pytest.mark.parametrize(
    ("coding", "value"),
    [pytest.param(CODINGS[coding], value, id=f"{coding} {type(value).__name__}") for coding, value, _ in PINNED],
)


@pytest.mark.parametrize(("coding", "value", "pinned"), PINNED)
def test_bytes_are_pinned(coding: str, value: Any, pinned: str) -> None:
    assert CODINGS[coding].encode(value).hex() == pinned


@every_pinned
def test_every_pinned_value_round_trips(coding: Coding, value: Any) -> None:
    assert coding.decode(coding.encode(value)) == value


def test_every_struct_of_the_wire_is_pinned() -> None:
    pinned: set[Any] = {type(each) for _, value, _ in PINNED for each in _structs(value)}
    modules = ("envelope", "link", "outcome", "client", "mesh", "offline_log", "notification")
    named: set[Any] = {
        each
        for each in _subclasses(msgspec.Struct)
        if each.__module__ in {f"meshim.wire.{module}" for module in modules} and each.__struct_fields__
    }
    assert named - pinned == {Stream}  # a name, which is never sent by itself


def _subclasses(base: Any) -> Iterator[Any]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def _structs(value: Any) -> Iterator[Any]:
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from _structs(getattr(value, name))
    elif isinstance(value, tuple):
        for each in value:
            yield from _structs(each)


# ---------------------------------------------------------------- newer and older peers


@every_pinned
def test_fields_that_a_newer_peer_adds_are_ignored_in_every_struct(coding: Coding, value: Any) -> None:
    """At the end of each struct alone, and of all at once.  Pairs are not structs and cannot grow."""
    grown = list(_grown(value))
    assert len(grown) == 1 + sum(1 for _ in _structs(value))
    for each in grown:
        assert coding.decode(codec.encode(each)) == value


NEW_FIELDS: list[Any] = [12345, None, {"new": [1.5, True]}, b"bytes", "text", [[]], msgspec.msgpack.Ext(5, b"new")]


def _grown(value: Any) -> Iterator[Any]:
    """The value as plain arrays, with new fields in all structs, then in each struct alone."""
    count = sum(1 for _ in _structs(value))
    yield _plain(value, [True] * count)
    for target in range(count):
        yield _plain(value, [at == target for at in range(count)])


def _plain(value: Any, grows: list[bool]) -> Any:
    """`grows` says for each remaining struct whether it gets new fields."""
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        more = NEW_FIELDS if grows.pop(0) else []
        fields = [_plain(getattr(value, name), grows) for name in value.__struct_fields__]
        return [*([] if tag is None else [tag]), *fields, *more]
    if isinstance(value, tuple):
        return [_plain(each, grows) for each in value]
    return value


@pytest.mark.parametrize(
    ("coding", "plain", "value"),
    [
        (FROM_CLIENT, [1, 1, b"t", 1, 2, 3], Greet(1, b"t", 1, 2, 3)),
        (FROM_CLIENT, [3, 1, 1, 0, [[1, b"e"]]], Data(1, 1, 0, (Submit(b"e"),))),
        (FROM_CLIENT, [4, 1, 0], Ack(1, 0)),
        (FROM_CLIENT, [7, 1, 14], Close(1, 14)),
        (TO_CLIENT, [3, 1, 1, 0, [[2, b"e"]]], Data(1, 1, 0, (Delivery(b"e"),))),
        (
            TO_CLIENT,
            [3, 1, 1, 0, [[3, [1, 42], 1, 1, 4]]],
            Data(1, 1, 0, (Outcome(BOB, 1, 1, OutcomeStatus.BUSY),)),
        ),
        (
            FROM_CONNECTOR,
            [3, 1, 1, 0, [[3, 9, 6, 7, 8, 5, [1, 42], 1, 1, 4]]],
            Data(1, 1, 0, (CopyOutcome(9, 6, 7, 8, 5, BOB, 1, 1, OutcomeStatus.BUSY),)),
        ),
        (
            FROM_CONNECTOR,
            [3, 1, 1, 0, [[1, [9, 6, 7, 8, 5, [1, 42], 1, 1], b"e"]]],
            Data(1, 1, 0, (Route(Stamp(9, 6, 7, 8, 5, BOB, 1, 1), b"e"),)),
        ),
    ],
)
def test_fields_with_defaults_may_be_left_out_at_the_end(coding: Coding, plain: list[Any], value: Any) -> None:
    assert coding.decode(codec.encode(plain)) == value


def test_unknown_kinds_statuses_and_codes_decode() -> None:
    strange = msgspec.structs.replace(ENVELOPE, kind=99, to=Destination(77, 1, 2), version=2, key=2**31 - 1)
    assert decode_envelope(encode_envelope(strange)) == strange
    outcome = Data(LINK, 1, 0, (msgspec.structs.replace(OUTCOME, status=99, code=9_999),))
    assert client.decode_from_connector(client.encode(outcome)) == outcome


def test_kinds_from_128_are_ephemeral() -> None:
    assert EPHEMERAL_FROM == 128
    assert {kind for kind in Kind if kind >= EPHEMERAL_FROM} == {Kind.TYPING}
    assert all(0 < kind <= 255 for kind in Kind)


# ---------------------------------------------------------------- round trips

ids, any_ids = st.integers(1, INTEGER_MAX), st.integers(0, INTEGER_MAX)
u53, u31, u8 = st.integers(0, INTEGER_MAX), st.integers(0, 2**31 - 1), st.integers(0, 255)
seqs = st.integers(1, SEQ_MAX)
destinations = st.builds(Destination, u8, ids, any_ids)
pairs = st.lists(st.tuples(ids, any_ids), max_size=4).map(tuple)
positions = st.lists(st.tuples(ids, any_ids, any_ids), max_size=4).map(tuple)
envelopes = st.builds(
    Envelope, u31, st.binary(min_size=16, max_size=16), ids, ids, u53, destinations, seqs, seqs, u8, u31,
    st.integers(0, MS_MAX), st.binary(max_size=100),
)  # fmt: skip
sentences = st.text(max_size=20)
outcomes = st.builds(
    Outcome, destinations, seqs, seqs, u8, st.booleans(), u31, st.binary(max_size=1_024), u31, sentences
)  # fmt: skip
copy_outcomes = st.builds(
    CopyOutcome, any_ids, any_ids, ids, ids, u53, destinations, seqs, seqs, u8, pairs, pairs, any_ids, positions, u31,
    sentences,
)  # fmt: skip
stamps = st.builds(Stamp, any_ids, any_ids, ids, ids, u53, destinations, seqs, u8, positions, pairs)
numbers, acks = st.integers(1, 2**53 - 1), st.integers(0, 2**53 - 1)


def data_of(*items: st.SearchStrategy[Any]) -> st.SearchStrategy[Data[Any]]:
    several: st.SearchStrategy[Any] = st.lists(st.one_of(*items), max_size=3).map(tuple)
    return st.builds(Data, u53, numbers, acks, several)


controls = st.one_of(
    st.builds(Ack, u53, acks),
    st.builds(Ping, u53),
    st.builds(Pong, u53),
    st.builds(Close, u53, u31, st.text(max_size=50)),
    st.builds(Reset, u53),
)
devices = st.lists(ids, max_size=4).map(tuple)
returns = st.builds(Return, ids, devices, st.booleans(), stamps, st.binary(max_size=50))
deliveries = st.builds(Deliver, ids, pairs, stamps, st.binary(max_size=50))
EVERYTHING: dict[str, st.SearchStrategy[Any]] = {
    "client": controls | data_of(st.builds(Submit, st.binary(max_size=50), st.binary(max_size=1_024))),
    "connector to client": controls | data_of(st.builds(Delivery, st.binary(max_size=50), st.booleans()), outcomes),
    "connector to transfer": controls
    | data_of(st.builds(Route, stamps, st.binary(max_size=50)), returns, copy_outcomes),
    "transfer": controls | data_of(deliveries, copy_outcomes),
    "envelope": envelopes,
    "text": st.builds(Text, st.text()),
    "receipt": st.builds(Receipt, u8, ids, u53, destinations, st.lists(st.tuples(seqs, seqs), max_size=5).map(tuple)),
    "log": st.builds(Record, st.just(1), st.lists(st.builds(Entry, ids, devices, st.binary()), max_size=3).map(tuple)),
}


@pytest.mark.parametrize("coding", EVERYTHING)
@thorough
@given(st.data())
def test_round_trips(coding: str, data: st.DataObject) -> None:
    value = data.draw(EVERYTHING[coding])
    assert CODINGS[coding].decode(CODINGS[coding].encode(value)) == value


# ---------------------------------------------------------------- associated data


def test_associated_data_is_pinned() -> None:
    assert associated_data(ENVELOPE).hex() == (
        "9a01c410000102030405060708090a0b0c0d0e0f0708cf001cba987654321093012a00cd012c0102cf0000018bcfe5687b"
    )


def test_associated_data_covers_every_field_but_base_and_body() -> None:
    sealed = associated_data(ENVELOPE)
    other: dict[str, Any] = {
        "version": 2, "id": bytes(16), "user": 1, "device": 1, "epoch": 1, "seq": 1, "kind": 2, "key": 3, "sent_at": 0,
        "to": Destination(DestinationType.USER, 43), "base": 1, "body": b"other",
    }  # fmt: skip
    assert other.keys() == set(Envelope.__struct_fields__)
    covered = {
        name for name, value in other.items()
        if associated_data(msgspec.structs.replace(ENVELOPE, **{name: value})) != sealed
    }  # fmt: skip
    assert covered == other.keys() - {"base", "body"}
    for to in (Destination(DestinationType.GROUP, 42), Destination(DestinationType.USER, 42, 1)):
        assert associated_data(msgspec.structs.replace(ENVELOPE, to=to)) != sealed


@thorough
@given(envelopes, envelopes)
def test_associated_data_is_equal_only_for_equal_fields(one: Envelope, other: Envelope) -> None:
    alike = msgspec.structs.replace(other, base=one.base, body=one.body) == one
    assert (associated_data(one) == associated_data(other)) == alike


def test_associated_data_does_not_depend_on_the_encoding_of_the_envelope() -> None:
    """The encoding may leave out a default, use more bytes for a number than needed, or have new fields."""
    plain = [1, ENVELOPE.id, 7, 8, EPOCH, [1, 42], 300, 299, 1, 2, ENVELOPE.sent_at, b"sealed", "new"]
    assert associated_data(decode_envelope(codec.encode(plain))) == associated_data(ENVELOPE)
    wide = ENVELOPE_BYTES.replace(b"\xcd\x01\x2c", b"\xcf\0\0\0\0\0\0\x01\x2c")
    assert wide != ENVELOPE_BYTES
    assert associated_data(decode_envelope(wide)) == associated_data(ENVELOPE)


def test_a_stream_is_named_by_sending_device_and_destination() -> None:
    assert ENVELOPE.stream == Stream(7, 8, EPOCH, BOB)
    assert len({ENVELOPE.stream, msgspec.structs.replace(ENVELOPE, seq=1).stream}) == 1
