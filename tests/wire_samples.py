"""A value of every type of the wire, with its bytes: shared by the tests of the wire."""

from collections.abc import Callable
from typing import Any, NamedTuple

from meshim.wire import client, mesh
from meshim.wire.client import Delivery, Greet, Stored, Submit, Welcome
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
from meshim.wire.outcome import Outcome, OutcomeStatus

LINK = 0xA1B2C3D4E5F60718
CLIENT_LINK = 0x11223344556677
EPOCH = 0xFEDCBA9876543210
BOB = Destination(DestinationType.USER, 42)
ENVELOPE = Envelope(
    1, bytes(range(16)), 7, 8, EPOCH, BOB, 300, 299, Kind.TEXT, 2, 1_700_000_000_123, b"sealed"
)  # fmt: skip
ENVELOPE_BYTES = encode_envelope(ENVELOPE)
STAMP = Stamp(2**62, 7, 8, EPOCH, BOB, 300, Kind.TEXT, ((42, 5, 9),), ((42, 5), (7, 6)))
OUTCOME = Outcome(2**62, 7, 8, EPOCH, BOB, 300, 301, OutcomeStatus.STORED, ((42, 5),), ((42, 5), (7, 6)), 9)


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
    ("client", Greet(1, b"token", EPOCH, CLIENT_LINK, 32, 60_000),
     "970101c405746f6b656ecffedcba9876543210cf001122334455667720cdea60"),
    ("connector to client", Welcome(
        1, CLIENT_LINK, 2**50, 42, 5, 32, 65_536, 262_144, 10_000, 25_000, 2_500, 1_700_000_000_123
    ),
     "9d0201cf0011223344556677cf00040000000000002a0520ce00010000ce00040000cd2710cd61a8cd09c4cf0000018bcfe5687b"),
    ("connector to client", Stored(LINK, delayed=True),
     "930acfa1b2c3d4e5f60718c3"),
    ("client", Data(LINK, 1, 0, (Submit(b"env", ((42, 5, 9),)),)),
     "9503cfa1b2c3d4e5f607180100919301c403656e7691932a0509"),
    ("connector to client", Data(LINK, 2, 1, (Delivery(b"env", stored=True), OUTCOME)),
     ("9503cfa1b2c3d4e5f607180201929302c403656e76c39e03cf40000000000000000708cffedcba987654321093012a00cd012ccd012d0291922a0592922a059207060900a0")),
    ("client", Ack(LINK, 3),
     "9304cfa1b2c3d4e5f6071803"),
    ("client", Ping(LINK),
     "9205cfa1b2c3d4e5f60718"),
    ("client", Pong(LINK),
     "9206cfa1b2c3d4e5f60718"),
    ("connector to client", Close(LINK, 14, "leaving"),
     "9407cfa1b2c3d4e5f607180ea76c656176696e67"),
    ("connector to client", Reset(LINK),
     "9208cfa1b2c3d4e5f60718"),
    ("connector to transfer", Hello(1, LINK, 2**62, "c1", 64),
     "960101cfa1b2c3d4e5f60718cf4000000000000000a2633140"),
    ("transfer", HelloOk(1, LINK, 2**61, 64),
     "950201cfa1b2c3d4e5f60718cf200000000000000040"),
    ("connector to transfer", Data(LINK, 1, 0, (Route(STAMP, b"env"),)),
     ("9503cfa1b2c3d4e5f60718010091"
      "930199cf40000000000000000708cffedcba987654321093012a00cd012c0191932a050992922a05920706c403656e76")),
    ("connector to transfer", Data(LINK, 2, 0, (Return(42, (5,), True, STAMP, b"env"), OUTCOME)),
     ("9503cfa1b2c3d4e5f60718020092"
      "96042a9105c399cf40000000000000000708cffedcba987654321093012a00cd012c0191932a050992922a05920706c403656e76"
      "9e03cf40000000000000000708cffedcba987654321093012a00cd012ccd012d0291922a0592922a059207060900a0")),
    ("transfer", Data(LINK, 1, 0, (Deliver(42, ((5, 2**50),), STAMP, b"env"),)),
     ("9503cfa1b2c3d4e5f60718010091"
      "95022a919205cf000400000000000099cf40000000000000000708cffedcba987654321093012a00cd012c"
      "0191932a050992922a05920706c403656e76")),
    ("envelope", ENVELOPE,
     ("9c01c410000102030405060708090a0b0c0d0e0f0708cffedcba987654321093012a00cd012ccd012b"
      "0102cf0000018bcfe5687bc4067365616c6564")),
    ("text", Text("hé"),
     "91a368c3a9"),
    ("receipt", Receipt(ReceiptKind.READ, EPOCH, BOB, ((1, 3), (5, 5))),
     "9402cffedcba987654321093012a0092920103920505"),
    ("log", Record(1, (Entry(42, (5, 6), b"env"),)),
     "920191932a920506c403656e76"),
    ("notification", WakeUp(((42, 5),)),
     "920191922a05"),
    ("notification", Kick(42, 5, 2**50, 11, "replaced"),
     "96022a05cf00040000000000000ba87265706c61636564"),
    ("notification", AccountChanged((42, 7)),
     "9203922a07"),
]  # fmt: skip
