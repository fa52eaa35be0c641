"""A value of every type of the wire, with its bytes: shared by the tests of the wire."""

from collections.abc import Callable
from typing import Any, NamedTuple

from meshim.wire import client, mesh
from meshim.wire.client import Changed, Delivery, Greet, Outcome, Stored, Submit, Welcome
from meshim.wire.envelope import (
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    Text,
    decode_envelope,
    decode_receipt,
    decode_text,
    encode_content,
    encode_envelope,
)
from meshim.wire.link import Ack, Close, Data, Ping, Pong, Reset
from meshim.wire.mesh import Deliver, Hello, HelloOk, Return, Route, Stamp
from meshim.wire.notification import AccountChanged, Kick, WakeUp, decode_notification, encode_notification
from meshim.wire.offline_log import Entry, Record, decode_record, encode_record
from meshim.wire.outcome import CopyOutcome, OutcomeStatus

LINK = 0x0012C3D4E5F60718
EPOCH = 0x001CBA9876543210
BOB = Destination(DestinationType.USER, 42)
ENVELOPE = Envelope(
    1, bytes(range(16)), 7, 8, EPOCH, BOB, 300, 299, Kind.TEXT, 2, 1_700_000_000_123, b"sealed"
)  # fmt: skip
ENVELOPE_BYTES = encode_envelope(ENVELOPE)
STAMP = Stamp(2**62, 2**50, 7, 8, EPOCH, BOB, 300, Kind.TEXT, ((42, 5, 9),), ((42, 5), (7, 6)))
COPY_OUTCOME = CopyOutcome(
    2**62, 2**50, 7, 8, EPOCH, BOB, 300, 301, OutcomeStatus.STORED, ((42, 5),), ((42, 5), (7, 6)), 9, ((42, 5, 8),)
)

OUTCOME = Outcome(BOB, 300, 301, OutcomeStatus.STORED, True, 0x12345678, b"cookie")


class Coding(NamedTuple):
    """The functions that encode and decode one kind of value."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


FROM_CLIENT = Coding(client.encode, client.decode_from_client)
TO_CLIENT = Coding(client.encode, client.decode_from_connector)
FROM_CONNECTOR = Coding(mesh.encode, mesh.decode_from_connector)
FROM_TRANSFER = Coding(mesh.encode, mesh.decode_from_transfer)
CODINGS = {
    "client": FROM_CLIENT,
    "connector to client": TO_CLIENT,
    "connector to transfer": FROM_CONNECTOR,
    "transfer": FROM_TRANSFER,
    "envelope": Coding(encode_envelope, decode_envelope),
    "text": Coding(encode_content, decode_text),
    "receipt": Coding(encode_content, decode_receipt),
    "log": Coding(lambda record: encode_record(record.entries), decode_record),
    "notification": Coding(encode_notification, decode_notification),
}

# To change one of these lines is to change the protocol.
PINNED: list[tuple[str, Any, str]] = [
    ("client", Greet(1, b"token", EPOCH, LINK, 32, 60_000),
     "970101c405746f6b656ecf001cba9876543210cf0012c3d4e5f6071820cdea60"),
    ("connector to client", Welcome(
        1, LINK, 2**50, 42, 5, 32, 65_536, 262_144, 10_000, 25_000, 2_500, 1_700_000_000_123
    ),
     "9d0201cf0012c3d4e5f60718cf00040000000000002a0520ce00010000ce00040000cd2710cd61a8cd09c4cf0000018bcfe5687b"),
    ("connector to client", Stored(LINK, delayed=True),
     "930acf0012c3d4e5f60718c3"),
    ("connector to client", Changed(LINK, 5),
     "930bcf0012c3d4e5f6071805"),
    ("client", Data(LINK, 1, 0, (Submit(b"env", b"cookie"),)),
     "9503cf0012c3d4e5f607180100919301c403656e76c406636f6f6b6965"),
    ("connector to client", Data(LINK, 2, 1, (Delivery(b"env", stored=True), OUTCOME)),
     "9503cf0012c3d4e5f607180201929302c403656e76c39a0393012a00cd012ccd012d02c3ce12345678c406636f6f6b696500a0"),
    ("client", Ack(LINK, 3),
     "9304cf0012c3d4e5f6071803"),
    ("client", Ping(LINK),
     "9205cf0012c3d4e5f60718"),
    ("client", Pong(LINK),
     "9206cf0012c3d4e5f60718"),
    ("connector to client", Close(LINK, 14, "leaving"),
     "9507cf0012c3d4e5f607180ea76c656176696e6700"),
    ("connector to client", Close(LINK, 10, "full", 2_500),
     "9507cf0012c3d4e5f607180aa466756c6ccd09c4"),
    ("connector to client", Reset(LINK),
     "9208cf0012c3d4e5f60718"),
    ("connector to transfer", Hello(1, LINK, 2**62, "c1", 64),
     "960101cf0012c3d4e5f60718cf4000000000000000a2633140"),
    ("transfer", HelloOk(1, LINK, 2**61, 64),
     "950201cf0012c3d4e5f60718cf200000000000000040"),
    ("connector to transfer", Data(LINK, 1, 0, (Route(STAMP, b"env"),)),
     ("9503cf0012c3d4e5f6071801009193019acf4000000000000000cf00040000000000000708cf001cba987654321093012a00cd012c01"
      "91932a050992922a05920706c403656e76")),
    ("connector to transfer", Data(LINK, 2, 0, (Return(42, (5,), True, STAMP, b"env"), COPY_OUTCOME)),
     ("9503cf0012c3d4e5f6071802009296042a9105c39acf4000000000000000cf00040000000000000708cf001cba987654321093012a00"
      "cd012c0191932a050992922a05920706c403656e76dc001003cf4000000000000000cf00040000000000000708cf001cba9876543210"
      "93012a00cd012ccd012d0291922a0592922a059207060991932a050800a0")),
    ("transfer", Data(LINK, 1, 0, (Deliver(42, ((5, 2**50),), STAMP, b"env"),)),
     ("9503cf0012c3d4e5f6071801009195022a919205cf00040000000000009acf4000000000000000cf00040000000000000708cf001cba"
      "987654321093012a00cd012c0191932a050992922a05920706c403656e76")),
    ("envelope", ENVELOPE,
     ("9c01c410000102030405060708090a0b0c0d0e0f0708cf001cba987654321093012a00cd012ccd012b"
      "0102cf0000018bcfe5687bc4067365616c6564")),
    ("text", Text("hé"),
     "91a368c3a9"),
    ("receipt", Receipt(ReceiptKind.READ, 12, EPOCH, BOB, ((1, 3), (5, 5))),
     "95020ccf001cba987654321093012a0092920103920505"),
    ("log", Record(1, (Entry(42, (5, 6), b"env"),)),
     "920191932a920506c403656e76"),
    ("notification", WakeUp(((42, 5),)),
     "920191922a05"),
    ("notification", Kick(42, 5, 2**50, 11, "replaced"),
     "96022a05cf00040000000000000ba87265706c61636564"),
    ("notification", AccountChanged((42, 7), 3),
     "9303922a0703"),
]  # fmt: skip
