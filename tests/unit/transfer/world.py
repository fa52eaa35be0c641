"""A transfer core in virtual time: connectors that speak frames; presence and the log answer when the test says so."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from meshim.protocol.link import LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.stores.ports import Binding, UserPresence
from meshim.transfer import events as e
from meshim.transfer.core import TransferCore
from meshim.transfer.options import TransferOptions
from meshim.transfer.statistics import Statistics
from meshim.wire import mesh
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Kind
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from meshim.wire.mesh import Deliver, FromConnector, FromTransfer, Hello, HelloOk, Return, Route, Stamp
from meshim.wire.offline_log import Entry, decode_record
from meshim.wire.outcome import Copy, CopyOutcome

A = TypeVar("A", bound=e.Action)
F = TypeVar("F", bound=Frame)

HERE = 901
ALICE, BOB, CAROL = 1, 2, 3
A1, A2, B1, B2, C1 = 11, 12, 21, 22, 31
"""Devices: the tens digit is the user."""
EPOCH = 0xE90C
PARTITIONS = 4
SILENCE_S, GIVE_UP_S = 1.5, 2.5
SESSION = 1000
"""Of every sender."""
CACHE_S, PRESENCE_SILENCE_S = 30.0, 5.0


def options(**changes: Any) -> TransferOptions:
    window = WindowOptions(credit=8, queue=16, frame_items=8, frame_bytes=4_000, give_up_s=GIVE_UP_S)
    values: dict[str, Any] = {
        "links": LinkOptions(window, heartbeat_s=0.5, silence_s=SILENCE_S),
        "partitions": PARTITIONS,
        "publishes": 4,
        "pending": 6,
        "pending_bytes": 1_000,
        "record_bytes": 300,
        "record_items": 3,
        "presence_cache": 3,
        "presence_cache_ttl_s": CACHE_S,
        "presence_silence_s": PRESENCE_SILENCE_S,
    }
    return TransferOptions(**(values | changes))


def stamp(seq: int = 1, to: int | Destination = BOB, sender: int = A1, origin: int = 0, **fields: Any) -> Stamp:
    """`to` may be a user; `origin` defaults to the connector that has the number of the sender's user."""
    to = to if isinstance(to, Destination) else Destination(DestinationType.USER, to)
    values: dict[str, Any] = {"kind": Kind.TEXT, "after": (), "copies": ()}
    return Stamp(origin or sender // 10, SESSION, sender // 10, sender, EPOCH, to, seq, **(values | fields))


def route(seq: int = 1, to: int | Destination = BOB, sender: int = A1, size: int = 4, **fields: Any) -> Route:
    return Route(stamp(seq, to, sender, **fields), b"%04d" % seq + bytes(size - 4))


def returned(seq: int = 1, *devices: int, absent: bool = False, **fields: Any) -> Return:
    """A Return for these devices of bob."""
    copies = fields.pop("copies", tuple((BOB, device) for device in devices))
    return Return(BOB, devices, absent, stamp(seq, copies=copies, **fields), b"%04d" % seq)


def presence_of(connector: int, *devices: int, unbound: Sequence[int] = ()) -> UserPresence:
    """The presence of a user: `devices` are bound to one connector, the `unbound` ones to none."""
    bindings = tuple(Binding(device // 10, device, connector, 7) for device in devices)
    return UserPresence((*devices, *unbound), bindings)


class Transfer:
    """The core with its connectors; `pending` are the actions that the test has not answered."""

    def __init__(self, **changes: Any) -> None:
        self.now = 1000.0
        self.core = TransferCore(HERE, options(**changes))
        self.pending: list[e.Action] = []
        self.connectors: dict[bytes, Connector] = {}
        self.keys: dict[bytes, str] | None = None
        """By peer, the incarnation of its key; None without CURVE."""
        self.presence_beats = True
        self.heartbeat()

    def heartbeat(self) -> None:
        """Presence reports that nothing changed, unless it is away."""
        if self.presence_beats:
            self.tell(e.PresenceChanged(()))

    @property
    def count(self) -> Statistics:
        return self.core.statistics

    def tell(self, event: e.Event) -> None:
        self.perform(self.core.receive(event, self.now))

    def pass_time(self, seconds: float) -> None:
        """Tick the core at each of its deadlines."""
        end = self.now + seconds
        idle = 0
        while True:
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            idle = idle + 1 if deadline <= self.now else 0
            assert idle < 3, "a tick does not move the deadline: the process would spin"
            self.now = max(self.now, deadline)
            self.heartbeat()
            self.perform(self.core.tick(self.now))
        self.now = end
        self.heartbeat()

    def take(self, kind: type[A]) -> list[A]:
        """Remove and return the pending actions of this type."""
        found: list[A] = [action for action in self.pending if isinstance(action, kind)]
        self.pending = [action for action in self.pending if not isinstance(action, kind)]
        return found

    def perform(self, actions: Sequence[e.Action]) -> None:
        for action in actions:
            if isinstance(action, e.SendConnector):
                self.connectors[action.peer].receive(mesh.decode_from_transfer(action.frame))
            else:
                self.pending.append(action)

    # ---- connectors

    def connector(self, incarnation: int) -> "Connector":
        """Link a new connector."""
        connector = Connector(self, incarnation)
        connector.greet()
        return connector

    # ---- presence

    def lookups(self) -> list[int]:
        """The users whose look-up is not answered, in order."""
        return [user for read in self.pending if isinstance(read, e.ReadPresence) for user in read.users]

    def answer_lookups(self, found: Mapping[int, UserPresence] | None = None) -> None:
        """Answer all look-ups; users that `found` lacks have no entry."""
        for read in self.take(e.ReadPresence):
            self.tell(e.PresenceRead(read.users, {u: (found or {})[u] for u in read.users if u in (found or {})}))

    # ---- the log

    def publish_all(self, position: int = 5) -> list[tuple[int, list[Entry]]]:
        """The log takes all records at this position; return them as (partition, entries)."""
        publishes = self.take(e.Publish)
        for publish in publishes:
            self.tell(e.Published(publish.record, position))
        return [(publish.partition, list(decode_record(publish.data).entries)) for publish in publishes]

    def fail_publishes(self) -> int:
        """The log takes no record; return how many there were."""
        publishes = self.take(e.Publish)
        for publish in publishes:
            self.tell(e.PublishFailed(publish.record))
        return len(publishes)


class Connector:
    """One connector, as the transfer sees it; acknowledges every bundle at once, unless it is `mute`."""

    def __init__(self, transfer: Transfer, incarnation: int, peer: bytes | None = None) -> None:
        self.transfer = transfer
        self.incarnation = incarnation
        self.peer = peer or b"connector-%d" % len(transfer.connectors)
        transfer.connectors[self.peer] = self
        self.link = 7000 + len(transfer.connectors)
        self.number = 0
        self.mute = False
        self.items: list[FromTransfer] = []
        self.frames: list[Frame] = []

    def greet(self, version: int = WIRE_VERSION) -> None:
        self.send(Hello(version, self.link, self.incarnation, "c", 8))

    def send(self, frame: Frame) -> None:
        self.send_bytes(mesh.encode(frame))

    def send_bytes(self, *frames: bytes) -> None:
        batch = [(self.peer, frame) for frame in frames]
        self.transfer.tell(e.ConnectorsSent(batch, self.transfer.keys))

    def send_items(self, *items: FromConnector) -> None:
        """Send one bundle."""
        self.number += 1
        self.send(Data(self.link, self.number, 0, items))

    def receive(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Data) and not self.mute:
            self.items.extend(frame.items)
            self.send(Ack(self.link, frame.number))
        elif isinstance(frame, Ping) and not self.mute:
            self.send(Pong(self.link))

    def received(self, kind: type[F]) -> list[F]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def linked(self) -> bool:
        return bool(self.received(HelloOk)) and not self.received(Close) and not self.received(Reset)

    @property
    def delivered(self) -> list[tuple[int, tuple[int, ...]]]:
        """(seq, devices) of each Deliver received, in order."""
        return [(i.stamp.seq, tuple(d for d, _ in i.bindings)) for i in self.items if isinstance(i, Deliver)]

    @property
    def outcomes(self) -> list[CopyOutcome]:
        return [item for item in self.items if isinstance(item, CopyOutcome)]

    def brief_outcomes(self) -> list[tuple[int, int, int, tuple[Copy, ...]]]:
        """(first, last, status, done) of each outcome received."""
        return [(o.first, o.last, o.status, o.done) for o in self.outcomes]
