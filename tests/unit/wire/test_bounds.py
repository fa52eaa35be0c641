"""Any bytes of a peer decode within the bounds, or raise DecodeError at once."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.wire import client, codec, mesh
from meshim.wire.bounds import ITEMS_MAX, LIST_MAX, MS_MAX, SEQ_MAX
from meshim.wire.client import Greet, Submit
from meshim.wire.envelope import (
    Destination,
    Receipt,
    decode_envelope,
    decode_receipt,
    encode_content,
    encode_envelope,
)
from meshim.wire.link import Ack, Close, Data
from meshim.wire.mesh import Deliver, Hello, Return
from meshim.wire.notification import AccountChanged, WakeUp, decode_notification, encode_notification
from meshim.wire.offline_log import Entry, decode_record, encode_record
from tests.wire_samples import BOB, CODINGS, COPY_OUTCOME, ENVELOPE, PINNED, STAMP, Coding

thorough = settings(max_examples=300)

every_pinned = pytest.mark.parametrize(
    ("coding", "value"),
    [pytest.param(CODINGS[coding], value, id=f"{coding} {type(value).__name__}") for coding, value, _ in PINNED],
)


# ---------------------------------------------------------------- malformed bytes


@thorough
@given(st.binary(max_size=200))
def test_garbage_raises_only_decode_error(data: bytes) -> None:
    for coding in CODINGS.values():
        _refused_or_decoded(coding, data)


def _refused_or_decoded(coding: Coding, data: bytes) -> None:
    try:
        value = coding.decode(data)
    except msgspec.DecodeError:
        return
    assert coding.decode(codec.encode(value)) == value


@every_pinned
def test_truncated_and_continued_bytes_do_not_decode(coding: Coding, value: Any) -> None:
    data = coding.encode(value)
    for length in range(len(data)):
        with pytest.raises(msgspec.DecodeError):
            coding.decode(data[:length])
    with pytest.raises(msgspec.DecodeError):
        coding.decode(data + b"\xc0")


@every_pinned
def test_any_changed_byte_raises_only_decode_error(coding: Coding, value: Any) -> None:
    data = coding.encode(value)
    for at in range(len(data)):
        for byte in range(256):
            _refused_or_decoded(coding, data[:at] + bytes((byte,)) + data[at + 1 :])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x94\x07\x01\x01\xa2\xff\xfe", id="text that is not UTF-8"),
        pytest.param(b"\x94\x07\x01\x01\xa3\xed\xa0\x80", id="half a surrogate pair"),
        pytest.param(
            b"\x95\x04\x01\x01\x90" + b"\x91" * 100_000 + b"\x01", id="nested without end, where it is ignored"
        ),
        pytest.param(b"\x91" * 100_000, id="nested without end"),
        pytest.param(b"\x95\x04\x01\x01\x90" + b"\x81\xc0" * 100_000, id="nested maps"),
        pytest.param(b"\x94\x04\x01\x01\xdd\xff\xff\xff\xff", id="a list that claims 2^32 numbers"),
        pytest.param(b"\x96\x03\x01\x01\x01\x90\xdd\xff\xff\xff\xff", id="a list that claims 2^32 items"),
        pytest.param(b"\x97\x01\x01\xc6\xff\xff\xff\xff", id="bytes that claim 4 GiB"),
        pytest.param(b"\xdd\xff\xff\xff\xff\x04\x01\x01\x90", id="a frame that claims 2^32 fields"),
        pytest.param(b"\x95\x04\x01\x01\x90\xdf\xff\xff\xff\xff", id="a map that claims 2^32 pairs"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x90", id="no type"),
        pytest.param(b"\x80", id="a map"),
        pytest.param(b"\x92\x63\x01", id="an unknown type"),
        pytest.param(b"\x92\xff\x01", id="a negative type"),
        pytest.param(b"\x92\xa1a\x01", id="a type that is text"),
        pytest.param(b"\x92\x02\x01", id="a frame of the other side"),
        pytest.param(b"\x92\x05\xcb\x3f\xf0\0\0\0\0\0\0", id="a number with a point"),
        pytest.param(b"\x92\x05\xc3", id="a truth value for a number"),
    ],
)
def test_hostile_frames_raise_decode_error_at_once(data: bytes) -> None:
    begin = time.perf_counter()
    with pytest.raises(msgspec.DecodeError):
        client.decode_from_client(data)
    assert time.perf_counter() - begin < 1.0


# ---------------------------------------------------------------- bounds

U63_FIELDS = {"incarnation", "origin", "position", "after"}
"""They stay inside the mesh; `after` has positions."""


def _with_number(value: Any, number: int) -> Iterator[tuple[str, Any]]:
    """(field, value with this number there) for every number in it."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            for field, changed in _with_number(getattr(value, name), number):
                yield field or name, msgspec.structs.replace(value, **{name: changed})
    elif isinstance(value, tuple):
        for at, each in enumerate(value):
            for field, changed in _with_number(each, number):
                yield field, (*value[:at], changed, *value[at + 1 :])
    elif isinstance(value, int) and not isinstance(value, bool):
        yield "", number


@every_pinned
@pytest.mark.parametrize("number", [-1, -(2**63)])
def test_no_number_is_negative(coding: Coding, value: Any, number: int) -> None:
    for field, changed in _with_number(value, number):
        with pytest.raises(msgspec.DecodeError):
            assert coding.decode(codec.encode(changed)) is None, field


@every_pinned
def test_every_number_is_below_2_to_53_but_those_inside_the_mesh(coding: Coding, value: Any) -> None:
    for field, changed in _with_number(value, 2**53):
        if field not in U63_FIELDS:
            with pytest.raises(msgspec.DecodeError):
                assert coding.decode(codec.encode(changed)) is None, field
    for field, changed in _with_number(value, 2**63):
        with pytest.raises(msgspec.DecodeError):
            assert coding.decode(codec.encode(changed)) is None, field


def _envelope(**fields: Any) -> bytes:
    return encode_envelope(msgspec.structs.replace(ENVELOPE, **fields))


BEYOND: list[tuple[str, Callable[[bytes], Any], bytes]] = [
    ("id of 15 bytes", decode_envelope, _envelope(id=bytes(15))),
    ("id of 17 bytes", decode_envelope, _envelope(id=bytes(17))),
    ("user 0", decode_envelope, _envelope(user=0)),
    ("device 0", decode_envelope, _envelope(device=0)),
    ("user of 54 bits", decode_envelope, _envelope(user=2**53)),
    ("seq 0", decode_envelope, _envelope(seq=0)),
    ("seq whose next one would not fit", decode_envelope, _envelope(seq=SEQ_MAX + 1)),
    ("base 0", decode_envelope, _envelope(base=0)),
    ("kind 256", decode_envelope, _envelope(kind=256)),
    ("key of 32 bits", decode_envelope, _envelope(key=2**31)),
    ("time after the year 9999", decode_envelope, _envelope(sent_at=MS_MAX + 1)),
    ("destination 0", decode_envelope, _envelope(to=Destination(1, 0))),
    ("window 0", client.decode_from_client, client.encode(Greet(1, b"t", 1, 1, 0))),
    ("window", client.decode_from_client, client.encode(Greet(1, b"t", 1, 1, LIST_MAX + 1))),
    ("token of 65 bytes", client.decode_from_client, client.encode(Greet(1, bytes(65), 1, 1, 1))),
    ("name of 129 characters", mesh.decode_from_connector, mesh.encode(Hello(1, 1, 1, "x" * 129, 1))),
    ("sentence of 1025 characters", client.decode_from_client, client.encode(Close(1, 1, "x" * 1025))),
    ("frame number 0", client.decode_from_client, client.encode(Data(1, 0, 0, ()))),
    ("acknowledged number", client.decode_from_client, client.encode(Ack(1, 2**53))),
    ("frame number", client.decode_from_client, client.encode(Data(1, 2**53, 1, ()))),
    ("link", client.decode_from_client, client.encode(Greet(1, b"t", 1, 2**53, 1))),
    ("silence", client.decode_from_client, client.encode(Greet(1, b"t", 1, 1, 1, 2**31))),
    ("items", client.decode_from_client, client.encode(Data(1, 1, 1, (Submit(b""),) * (ITEMS_MAX + 1)))),
    (
        "after",
        mesh.decode_from_connector,
        mesh.encode(Data(1, 1, 1, (msgspec.structs.replace(COPY_OUTCOME, after=((1, 1, 1),) * (LIST_MAX + 1)),))),
    ),
    ("cookie of 1025 bytes", client.decode_from_client, client.encode(Data(1, 1, 1, (Submit(b"", bytes(1_025)),)))),
    (
        "copies",
        mesh.decode_from_connector,
        mesh.encode(Data(1, 1, 1, (msgspec.structs.replace(COPY_OUTCOME, copies=((1, 1),) * (LIST_MAX + 1)),))),
    ),
    (
        "bindings",
        mesh.decode_from_transfer,
        mesh.encode(Data(1, 1, 1, (Deliver(1, ((1, 1),) * (LIST_MAX + 1), STAMP, b""),))),
    ),
    (
        "returned devices",
        mesh.decode_from_connector,
        mesh.encode(Data(1, 1, 1, (Return(1, (1,) * (LIST_MAX + 1), False, STAMP, b""),))),
    ),
    ("ranges", decode_receipt, encode_content(Receipt(1, 1, 1, BOB, ((1, 1),) * (LIST_MAX + 1)))),
    ("range from 0", decode_receipt, encode_content(Receipt(1, 1, 1, BOB, ((0, 1),)))),
    ("devices of an entry", decode_record, encode_record((Entry(1, (1,) * (LIST_MAX + 1), b""),))),
    ("entries", decode_record, encode_record((Entry(1, (1,), b""),) * (ITEMS_MAX + 1))),
    ("woken devices", decode_notification, encode_notification(WakeUp(((1, 1),) * (ITEMS_MAX + 1)))),
    ("changed users", decode_notification, encode_notification(AccountChanged((1,) * (ITEMS_MAX + 1), 1))),
]


@pytest.mark.parametrize(("decode", "data"), [pytest.param(*each[1:], id=each[0]) for each in BEYOND])
def test_a_value_beyond_its_bounds_does_not_decode(decode: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(data)


def test_the_largest_values_decode() -> None:
    widest = msgspec.structs.replace(
        ENVELOPE, user=2**53 - 1, device=2**53 - 1, epoch=2**53 - 1, seq=SEQ_MAX, base=SEQ_MAX, kind=255, sent_at=MS_MAX
    )
    assert decode_envelope(encode_envelope(widest)) == widest
    ack = Ack(2**53 - 1, 2**53 - 1)
    assert client.decode_from_client(client.encode(ack)) == ack
    greet = Greet(0, bytes(64), 0, 0, LIST_MAX)
    assert client.decode_from_client(client.encode(greet)) == greet
    hello = Hello(0, 0, 0, "é" * 128, LIST_MAX)
    assert mesh.decode_from_connector(mesh.encode(hello)) == hello


def test_every_decoded_time_is_a_date() -> None:
    """Otherwise a friend could send a time that no application can show."""
    assert datetime.fromtimestamp(MS_MAX / 1000, UTC).year == 9999
