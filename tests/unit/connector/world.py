"""A connector core in virtual time: clients and transfers send frames, stores answer when a test says so."""

from collections.abc import Sequence
from typing import Any, TypeVar

from meshim.connector import events as e
from meshim.connector.cookies import make_cookie
from meshim.connector.core import ConnectorCore
from meshim.connector.offline_sync import OfflineSyncOptions
from meshim.connector.options import ConnectorOptions
from meshim.protocol.link import LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.stores.ports import Account, Binding, Login, Page, Row
from meshim.wire import client, mesh
from meshim.wire.client import Delivery, Greet, Outcome, Stored, Submit, Welcome
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Stream,
    decode_envelope,
    encode_envelope,
)
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.mesh import Deliver, FromConnector, FromTransfer, Hello, HelloOk, Stamp

A = TypeVar("A", bound=e.Action)
F = TypeVar("F", bound=Frame)

HERE = 77
"""The incarnation of the connector."""
ELSEWHERE = 78
SECRET = bytes(range(32))
EPOCH = 0xE90C
ALICE, BOB, CAROL = 1, 2, 3
A1, A2, B1, B2, C1 = 11, 12, 21, 22, 31
"""Devices: the tens digit is the user."""
RETRY_S, SWEEP_S = 1.0, 30.0
DEFER_S, DELIVERY_S = 2.5, 2.5
RELATION_S = 45.0
LONGEST = 1.25
"""The largest factor of jitter."""


def options(**changes: Any) -> ConnectorOptions:
    window = WindowOptions(credit=8, queue=64, frame_items=4, frame_bytes=4_000, give_up_s=DELIVERY_S)
    values: dict[str, Any] = {
        "clients": LinkOptions(window, heartbeat_s=10.0, silence_s=25.0),
        "transfers": LinkOptions(window, heartbeat_s=0.5, silence_s=1.5),
        "sync": OfflineSyncOptions(RETRY_S, SWEEP_S),
        "body_bytes": 1_000,
        "frame_bytes": 8_000,
        "sessions": 8,
        "session_queue": 6,
        "session_bytes": 3_000,
        "session_rate": 100.0,
        "silence_max_s": 150.0,
        "defer_s": DEFER_S,
        "relation_ttl_s": RELATION_S,
        "unauthorized": 4,
    }
    return ConnectorOptions(**(values | changes))


def account(user: int, friends: Sequence[int] = (ALICE, BOB), devices: Sequence[int] = ()) -> Account:
    return Account(user, tuple(devices) or (10 * user + 1,), tuple(friend for friend in friends if friend != user), 0.0)


def envelope(
    device: int = A1,
    to: int | Destination = BOB,
    seq: int = 1,
    body: bytes = b"hello",
    kind: int = Kind.TEXT,
    **fields: Any,
) -> bytes:
    """`to` may be a user."""
    to = to if isinstance(to, Destination) else Destination(DestinationType.USER, to)
    values: dict[str, Any] = {
        "version": WIRE_VERSION, "id": bytes(16), "user": device // 10, "device": device, "epoch": EPOCH,
        "to": to, "seq": seq, "base": seq, "kind": kind, "key": 0, "sent_at": 0, "body": body,
    }  # fmt: skip
    return encode_envelope(Envelope(**(values | fields)))


def live_copy(device: int = B1, seq: int = 1, sender: int = A1, **fields: Any) -> Deliver:
    """A live copy for one device; `after` is the position at which an earlier one was stored for it."""
    user = device // 10
    after = ((user, device, fields.pop("after")),) if "after" in fields else ()
    body = fields.pop("body", b"hello")
    kind = fields.pop("kind", Kind.TEXT)
    origin = fields.pop("origin", ELSEWHERE)
    to = Destination(DestinationType.USER, user)
    session = fields.pop("session", 0)
    stamp = Stamp(origin, session, sender // 10, sender, EPOCH, to, seq, kind, after, ((user, device),))
    assert not fields
    return Deliver(user, ((device, 0),), stamp, envelope(sender, user, seq, body, kind))


def cookie_of(sender: "Client", *positions: tuple[int, int, int], to: int = BOB) -> bytes:
    """The cookie that the mesh makes for the stream of a client to a user."""
    login = sender.login
    stream = Stream(login.user, login.device, login.epoch, Destination(DestinationType.USER, to))
    return make_cookie(SECRET, stream, positions)


def row(number: int, sender: int = A1, to: int = BOB, body: bytes = b"hello") -> Row:
    """A stored row; `number` is its id, position and `seq`."""
    return Row(number, number, 0, envelope(sender, to, number, body))


class Connector:
    """A core, its clients and its transfers."""

    def __init__(self, **changes: Any) -> None:
        self.now = 1000.0
        self.core = ConnectorCore(HERE, "c1", 4, options(**changes), lambda: 0)
        self.asked: list[e.Action] = []
        """Actions for stores that are not answered yet."""
        self.clients: dict[bytes, Client] = {}
        self.closed_peers: list[bytes] = []
        """Clients whose connection the core closed."""
        self.transfers: dict[int, Transfer] = {}
        self.numbers = 100
        self.receive(e.SecretRead(SECRET))

    @property
    def count(self) -> Any:
        return self.core.statistics

    def receive(self, event: e.Event) -> None:
        self._perform(self.core.receive(event, self.now))

    def pass_time(self, seconds: float) -> None:
        """Tick the core at its deadlines."""
        end = self.now + seconds
        idle = 0
        while True:
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            idle = idle + 1 if deadline <= self.now else 0
            assert idle < 3, "a tick must put its deadline off, or the process spins"
            self.now = max(self.now, deadline)
            self._perform(self.core.tick(self.now))
        self.now = end

    def close(self) -> None:
        self._perform(self.core.close(self.now))

    def take(self, kind: type[A]) -> list[A]:
        """Take the actions of this kind off `asked`."""
        found: list[A] = [action for action in self.asked if isinstance(action, kind)]
        self.asked = [action for action in self.asked if not isinstance(action, kind)]
        return found

    def take_one(self, kind: type[A]) -> A:
        (action,) = self.take(kind)
        return action

    def _perform(self, actions: Sequence[e.Action]) -> None:
        for action in actions:
            if isinstance(action, e.SendClient):
                known = self.clients.get(action.peer)
                if known is not None:
                    known.frames.append(client.decode_from_connector(action.frame))
            elif isinstance(action, e.ClosePeer):
                self.closed_peers.append(action.peer)
            elif isinstance(action, e.SendTransfer):
                self.transfers[action.transfer].hear(mesh.decode_from_connector(action.frame))
            elif isinstance(action, e.ConnectTransfer):
                self.transfers.setdefault(action.transfer, Transfer(self, action.transfer)).connecting = True
            elif isinstance(action, e.DisconnectTransfer):
                self.transfers[action.transfer].connecting = self.transfers[action.transfer].open = False
            else:
                self.asked.append(action)

    # ---------------------------------------------------------------- clients and transfers

    def transfer(self, incarnation: int = 901) -> "Transfer":
        """One transfer, linked."""
        self.receive(e.TransfersDiscovered((*self.transfers, incarnation)))
        transfer = self.transfers[incarnation]
        transfer.accept()
        return transfer

    def connect(self, device: int, **greeting: Any) -> "Client":
        """A client that has greeted, and whose token is being verified."""
        client = Client(self, b"peer-%d-%d" % (device, len(self.clients)), device)
        self.clients[client.peer] = client
        client.greet(**greeting)
        return client

    def bound(self, device: int, friends: Sequence[int] = (ALICE, BOB), devices: Sequence[int] = ()) -> "Client":
        """A client that was welcomed, and whose queue is being checked."""
        client = self.connect(device)
        client.accepted(friends, devices)
        write = self.take(e.WriteBindings)[-1]
        self.receive(e.BindingsWritten([(each.binding, None) for each in write.renewals]))
        assert client.came(Welcome)
        return client

    def online(self, device: int, friends: Sequence[int] = (ALICE, BOB), devices: Sequence[int] = ()) -> "Client":
        """A client that is live, without unread rows."""
        client = self.bound(device, friends, devices)
        self.checked(through=0)
        self.take(e.RecordLastSeen)
        assert client.came(Stored) == [Stored(client.link, delayed=False)]
        client.frames.clear()
        return client

    # ---------------------------------------------------------------- answers about queues

    def checked(self, waiting: Sequence[int] = (), through: int = 0) -> None:
        """Answer every check."""
        for check in self.take(e.CheckQueues):
            self.receive(e.QueuesChecked(check.devices, dict.fromkeys(range(4), through), set(waiting)))

    def claimed(self, fence: int | None) -> None:
        claim = self.take_one(e.ClaimQueue)
        self.receive(e.QueueClaimed(claim.device, claim.session, fence))

    def page(self, *rows: Row, through: int = 0, more: bool = False) -> e.ReadPage:
        """Answer ReadPage; returns the action."""
        read = self.take_one(e.ReadPage)
        self.receive(e.PageRead(read.device, read.session, Page(rows, through, more)))
        return read

    def marked(self) -> Sequence[int]:
        mark = self.take_one(e.MarkRead)
        self.receive(e.RowsMarked(mark.device, mark.session, mark.row_ids))
        return mark.row_ids


class Client:
    """One connection to the connector."""

    def __init__(self, connector: Connector, peer: bytes, device: int) -> None:
        self.connector = connector
        self.peer = peer
        self.device = device
        self.link = 5000 + len(connector.clients)
        self.frames: list[Frame] = []
        self.number = 0
        self.acknowledged = 0
        self.session = 0

    def send(self, frame: Frame) -> None:
        self.send_bytes(client.encode(frame))

    def send_bytes(self, *frames: bytes) -> None:
        self.connector.receive(e.ClientsSent([(self.peer, frame) for frame in frames]))

    def came(self, kind: type[F]) -> list[F]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    # ---- greeting

    def greet(self, version: int = WIRE_VERSION, window: int = 8, silence_ms: int = 0) -> None:
        self.send(Greet(version, self.token_hash, EPOCH, self.link, window, silence_ms))

    @property
    def login(self) -> Login:
        return Login(self.device // 10, self.device, EPOCH, 1e12)

    def accepted(
        self, friends: Sequence[int] = (ALICE, BOB), devices: Sequence[int] = (), session: int | None = None
    ) -> None:
        """Its token is valid; by default the session gets the next number."""
        (check,) = (c for c in self.connector.take(e.CheckGreet) if c.peer == self.peer)
        self.connector.numbers += 1
        self.session = session if session is not None else self.connector.numbers
        known = account(self.device // 10, friends, devices)
        self.connector.receive(
            e.GreetAccepted(check.peer, check.link, self.token_hash, self.login, known, self.session)
        )

    @property
    def token_hash(self) -> bytes:
        return self.device.to_bytes(32, "big")

    @property
    def renewal(self) -> e.BindingRenewal:
        return e.BindingRenewal(self.binding, (self.device,), self.token_hash)

    @property
    def binding(self) -> Binding:
        return Binding(self.device // 10, self.device, HERE, self.session)

    # ---- talking

    def submit(self, *envelopes: bytes, cookie: bytes = b"") -> None:
        self.number += 1
        items = tuple(Submit(each, cookie) for each in envelopes)
        self.send(Data(self.link, self.number, self.received_number, items))

    @property
    def items(self) -> list[Any]:
        """The items that came, without duplicates, in the order of the frames."""
        frames = {frame.number: frame for frame in self.came(Data)}
        return [item for number in sorted(frames) for item in frames[number].items]

    @property
    def received_number(self) -> int:
        return max((frame.number for frame in self.came(Data)), default=0)

    def acknowledge(self, upto: int | None = None) -> None:
        """All frames that came, or those up to this number."""
        self.acknowledged = self.received_number if upto is None else upto
        self.send(Ack(self.link, self.acknowledged))

    def ping(self) -> None:
        self.send(Ping(self.link))

    @property
    def deliveries(self) -> list[bytes]:
        return [item.envelope for item in self.items if isinstance(item, Delivery)]

    @property
    def seqs(self) -> list[int]:
        """The `seq` of the delivered envelopes."""
        return [decode_envelope(data).seq for data in self.deliveries]

    @property
    def outcomes(self) -> list[Outcome]:
        return [item for item in self.items if isinstance(item, Outcome)]

    @property
    def closed(self) -> list[tuple[int, str]]:
        return [(frame.code, frame.sentence) for frame in self.came(Close)]

    @property
    def resets(self) -> list[int]:
        return [frame.link for frame in self.came(Reset)]


class Transfer:
    """One transfer, as the connector sees it; acknowledges bundles as they come, unless `mute`."""

    def __init__(self, connector: Connector, incarnation: int) -> None:
        self.connector = connector
        self.incarnation = incarnation
        self.connecting = self.open = self.mute = False
        self.link = 0
        self.number = 0
        self.items: list[FromConnector] = []
        """Items that came and were not taken yet."""
        self.frames: list[Frame] = []

    def accept(self) -> None:
        """The connection is made; answer the Hello."""
        assert self.connecting
        self.connector.receive(e.TransferConnected(self.incarnation))
        hello = self.frames[-1]
        assert isinstance(hello, Hello)
        self.link, self.number, self.open = hello.link, 0, True
        self.send(HelloOk(WIRE_VERSION, self.link, self.incarnation, 8))

    def hear(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Data) and not self.mute:
            self.items.extend(frame.items)
            self.send(Ack(self.link, frame.number))
        elif isinstance(frame, Ping) and not self.mute:
            self.send(Pong(self.link))

    def send(self, frame: Frame) -> None:
        self.connector.receive(e.TransferSent(self.incarnation, [mesh.encode(frame)]))

    def give(self, *items: FromTransfer) -> None:
        """Send one bundle of items."""
        self.number += 1
        self.send(Data(self.link, self.number, 0, items))

    def take(self) -> list[FromConnector]:
        items, self.items = self.items, []
        return items
