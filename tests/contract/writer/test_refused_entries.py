"""Entries that can never be written are refused with a reason, and the others written.

In memory, on SQLite, on MariaDB.
"""

import msgspec
import pytest

from meshim.stores.ports import Device, User
from meshim.stores.sql.rows import CONTENT_BYTES_MAX
from meshim.wire.bounds import INTEGER_MAX, MS_MAX, SEQ_MAX
from meshim.wire.envelope import Destination, Envelope, Kind, encode_envelope
from meshim.wire.offline_log import Entry
from tests.contract.sql.backends import NOW, Ports, claimed, device_of, entry, envelope, person, positions, stored

ID_MAX = INTEGER_MAX
LEAST = Envelope(0, bytes(16), 1, 1, 0, Destination(0, 1, 0), 1, 1, 0, 0, 0, b"")
MOST = Envelope(
    (1 << 31) - 1,
    b"\xff" * 16,
    ID_MAX,
    ID_MAX,
    INTEGER_MAX,
    Destination(255, ID_MAX, ID_MAX),
    SEQ_MAX,
    SEQ_MAX,
    127,
    (1 << 31) - 1,
    MS_MAX,
    b"\xff\x00'\\%",
)


async def test_entries_at_the_limits_are_written(ports: Ports) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    largest = msgspec.structs.replace(MOST, seq=2, base=2, body=b"")
    body = bytes(CONTENT_BYTES_MAX - len(encode_envelope(largest)) - 3)  # msgpack writes the length in 3 bytes more
    largest = msgspec.structs.replace(largest, body=body)
    assert len(encode_envelope(largest)) == CONTENT_BYTES_MAX
    messages = [encode_envelope(message) for message in (LEAST, MOST, largest)]
    entries = [Entry(bob.user_id, (), message) for message in messages]
    fence = await claimed(ports.partitions)
    written = await ports.partitions.write(0, fence, ID_MAX, [(ID_MAX, entries)], NOW)
    assert written.refused == ()
    assert await stored(ports, bob, phone) == messages
    assert await positions(ports) == {0: ID_MAX}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": bytes(15)}, "does not decode"),
        ({"user": 0}, "does not decode"),
        ({"device": 1 << 53}, "does not decode"),
        ({"epoch": -1}, "does not decode"),
        ({"to": Destination(256, 1)}, "does not decode"),
        ({"to": Destination(1, 0)}, "does not decode"),
        ({"to": Destination(2, 1, 1 << 53)}, "does not decode"),
        ({"seq": 0}, "does not decode"),
        ({"seq": SEQ_MAX + 1}, "does not decode"),
        ({"kind": Kind.TYPING}, "kind 128 is never stored"),
        ({"body": bytes(CONTENT_BYTES_MAX)}, "bytes, more than 1048576"),
    ],
)
async def test_an_entry_beyond_a_limit_is_refused_and_the_others_are_written(
    ports: Ports, change: dict[str, object], reason: str
) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    wrong = Entry(bob.user_id, (), encode_envelope(msgspec.structs.replace(LEAST, **change)))
    await assert_refused(ports, bob, phone, wrong, reason)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", envelope(1)[:-1], b"\x93\x01\x02\x03"])
async def test_an_undecodable_envelope_is_refused_and_the_others_are_written(ports: Ports, data: bytes) -> None:
    bob = await person(ports)
    phone = await device_of(ports, bob)
    await assert_refused(ports, bob, phone, Entry(bob.user_id, (), data), "does not decode")


async def assert_refused(ports: Ports, user: User, device: Device, wrong: Entry, reason: str) -> None:
    fence = await claimed(ports.partitions)
    records = [(4, [entry(user, 1), wrong]), (5, [entry(user, 2)])]
    written = await ports.partitions.write(0, fence, 5, records, NOW)
    [(position, refused, sentence)] = written.refused
    assert (position, refused) == (4, wrong)
    assert reason in sentence
    assert await stored(ports, user, device) == [envelope(seq, to=user.user_id) for seq in (1, 2)]
    assert await positions(ports) == {0: 5}
