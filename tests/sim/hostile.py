"""A hostile device: a user with a valid login and a client of their own, which keeps no rule of the protocol.

It has a few friends; all other users are strangers.  While it is active it connects again and again, and tries one
attack after the other, in the order that the seed draws, until its connection is cut.  It knows more than an attacker
can: the epochs of all devices.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from meshim.client.connection import Transport
from meshim.errors import BackendUnavailable
from meshim.runtime import crypto
from meshim.stores.ports import Login
from meshim.wire.bounds import INTEGER_MAX, MS_MAX, SEQ_MAX
from meshim.wire.client import Greet, Outcome, Submit
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    encode_content,
    encode_envelope,
)
from meshim.wire.link import Ack, Data, Ping, Pong
from tests.sim.network import Network
from tests.sim.raw_connection import RawConnection
from tests.sim.remote_calls import result_of
from tests.sim.scheduler import WALL_S, Process, Scheduler
from tests.sim.scope import Scope
from tests.sim.servers import Backends

FLOOD = 600
"""Frames of a flood, more than twice what a session may send outside of its window."""
FLOOD_PIECE = 20
"""Frames of a flood that are sent at once, each `PIECE_S`."""
PIECE_S = 0.005
FLOODS_MOST = 3
"""Of one active time: each costs as much of a run as a second of the whole mesh."""
PAUSE_S = 0.08
"""Average pause between two attacks."""

Victim = tuple[int, int, int]
"""User, device and epoch of an honest device."""


class HostileDevice:
    """One device, and its process while it is active."""

    def __init__(
        self, scheduler: Scheduler, network: Network, backends: Backends, scope: Scope, user: int,
        transport: Transport, victims: Callable[[], Sequence[Victim]],
    ) -> None:  # fmt: skip
        self.user = user
        self.epoch = scheduler.random.getrandbits(53)
        self.token = scheduler.random.randbytes(32)
        self._scheduler = scheduler
        self._network = network
        self._backends = backends
        self._scope = scope
        self._transport = transport
        self._victims = victims
        self._process: Process | None = None
        self._floods = 0
        ends = WALL_S + 30 * 86400.0
        hash_ = crypto.hash_token(self.token)
        device, _ = result_of(backends.registry.log_in(user, "hostile", self.epoch, hash_, ends, WALL_S, 10))
        self.id = device.device_id
        result_of(backends.cache_data.put_login(hash_, Login(user, self.id, self.epoch, ends)))

    def start(self) -> None:
        """Attack until `stop`."""
        if self._process is None:
            process = self._process = Process(self._scheduler, "hostile")
            process.connect = self._network.streams.connect
            process.on_end = lambda: self._network.died(process)
            self._floods = 0
            process.run(self._main)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def _main(self) -> None:
        assert self._process is not None
        random = self._scheduler.random
        while True:
            connection = RawConnection(self._process, self._network, self._backends, self._transport)
            connection.on_frame = _Listener(self, connection).hear
            try:
                if await connection.open():
                    await _Attacks(self, connection).run()
            except BackendUnavailable:
                pass
            connection.close()
            await asyncio.sleep(random.uniform(0.0, 0.4))


class _Listener:
    """Acknowledges what comes, and has each outcome judged."""

    def __init__(self, device: HostileDevice, connection: RawConnection) -> None:
        self._device = device
        self._connection = connection

    def hear(self, frame: Any) -> None:
        if isinstance(frame, Data):
            for item in frame.items:
                if isinstance(item, Outcome):
                    self._device._scope.answered(self._device.user, item)
            self._connection.send(Ack(self._connection.link, frame.number))


class _Attacks:
    """The attacks over one connection."""

    def __init__(self, device: HostileDevice, connection: RawConnection) -> None:
        self._device = device
        self._connection = connection
        self._random = device._scheduler.random
        self._number = 0
        self._seqs: dict[int, int] = {}

    async def run(self) -> None:
        connection, random, device = self._connection, self._random, self._device
        if random.random() < 0.2:
            await random.choice((self._early, self._bad_greeting, self._garbage))()
        if not await connection.greet(device.token, device.epoch):
            return
        attacks: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._flood, self._to_strangers, self._to_strangers, self._receipts, self._receipts, self._forged_cookies,
            self._numbers, self._kinds, self._times, self._impersonate, self._early_data, self._duplicate,
            self._false_ack, self._too_many, self._second_greeting, self._garbage,
        ]  # fmt: skip
        while not connection.ended.is_set():
            await random.choice(attacks)()
            await asyncio.sleep(random.uniform(0.0, 2 * PAUSE_S))

    # ---- what is sent

    def _submit(self, *envelopes: Envelope, cookie: bytes = b"") -> None:
        self._number += 1
        items = tuple(Submit(encode_envelope(each), cookie) for each in envelopes)
        self._connection.send(Data(self._connection.link, self._number, 0, items))

    def _envelope(self, to: Destination, kind: int = Kind.TEXT, body: bytes = b"x", **other: Any) -> Envelope:
        seq = self._seqs[to.id] = self._seqs.get(to.id, self._random.randrange(1000)) + 1
        made = Envelope(
            WIRE_VERSION, self._random.randbytes(16), self._device.user, self._device.id, self._device.epoch, to, seq,
            seq, kind, 0, int(self._device._scheduler.now * 1000), body,
        )  # fmt: skip
        return msgspec.structs.replace(made, **other)

    def _friend(self) -> Destination:
        return _user(self._random.choice(sorted(self._device._scope.friends(self._device.user))))

    def _stranger(self) -> Destination:
        """An honest user who is no friend, or a user that does not exist."""
        friends = self._device._scope.friends(self._device.user)
        strangers = sorted({user for user, _, _ in self._device._victims()} - friends)
        return _user(self._random.choice([*strangers, 10**6 + self._random.randrange(1000), INTEGER_MAX]))

    def _receipt(self, to: Destination, about: int | None = None) -> bytes:
        """A receipt for a user, about the stream of one of its devices to this user or to another one."""
        random = self._random
        victims = [each for each in self._device._victims() if each[0] == to.id] or [(to.id, 1, 1)]
        _, device, epoch = random.choice(victims)
        ranges = random.choice(
            [
                ((1, 10_000),),
                tuple((first, first + 10_000) for first in range(1, 64 * 10_002, 10_002)),
                tuple((first, first) for first in range(1, 2 * 500, 2)),
                ((1, SEQ_MAX),),
                ((SEQ_MAX, 1),),
            ]
        )
        kind = random.choice([ReceiptKind.DELIVERED, ReceiptKind.READ, 77])
        return encode_content(Receipt(kind, device, epoch, _user(about or self._device.user), ranges))

    # ---- attacks

    async def _flood(self) -> None:
        """Frames that no window bounds."""
        device, link = self._device, self._connection.link
        if device._floods >= FLOODS_MOST:
            return
        device._floods += 1
        frame = self._random.choice([Ping(link), Pong(link), Ack(link, 0), Ping(link + 1)])
        for _ in range(FLOOD // FLOOD_PIECE):
            for _ in range(FLOOD_PIECE):
                if not self._connection.send(frame):
                    return
            await asyncio.sleep(PIECE_S)

    async def _to_strangers(self) -> None:
        """Messages and receipts: nothing may be stored, and the answers must all be the same."""
        to = self._stranger()
        victims = [user for user, _, _ in self._device._victims()]
        self._submit(
            self._envelope(to),
            self._envelope(to, Kind.RECEIPT, self._receipt(to)),
            self._envelope(to, Kind.RECEIPT, self._receipt(to, about=self._random.choice(victims))),
            self._envelope(to, Kind.BASE, b""),
            self._envelope(to, Kind.TYPING, b""),
            self._envelope(to, self._random.randrange(5, 128)),
        )

    async def _receipts(self) -> None:
        """Receipts to friends about messages that they never sent to this user."""
        to = self._friend()
        about = self._random.choice([self._device.user, *(user for user, _, _ in self._device._victims())])
        self._submit(self._envelope(to, Kind.RECEIPT, self._receipt(to, about)))

    async def _forged_cookies(self) -> None:
        to, random = self._friend(), self._random
        for cookie in (b"\x01" + random.randbytes(60), random.randbytes(1024), b"\x01" + bytes(16) + b"\x90", b"\0"):
            self._submit(self._envelope(to), cookie=cookie)

    async def _numbers(self) -> None:
        """Huge numbers within the bounds, and `base` that says that all is settled; then numbers beyond the bounds."""
        to = self._friend()
        self._submit(self._envelope(to, seq=SEQ_MAX, base=SEQ_MAX), self._envelope(to, seq=1, base=1))
        self._submit(self._envelope(to, Kind.BASE, b"", seq=SEQ_MAX - 1, base=SEQ_MAX - 1))
        self._submit(self._envelope(to, key=(1 << 31) - 1))
        if self._random.random() < 0.3:
            beyond: dict[str, Any] = {
                "seq": INTEGER_MAX + 1, "base": 0, "sent_at": MS_MAX + 1, "kind": 256, "key": 1 << 31, "id": b"",
            }  # fmt: skip
            name = self._random.choice(sorted(beyond))
            self._submit(self._envelope(to, **{name: beyond[name]}))

    async def _kinds(self) -> None:
        """Kinds that no program knows, and bodies that do not fit their kind."""
        to, random = self._friend(), self._random
        self._submit(
            self._envelope(to, random.choice([0, 2, 5, 99, 127, 129, 255]), random.randbytes(20)),
            self._envelope(to, Kind.RECEIPT, random.randbytes(20)),
            self._envelope(to, Kind.BASE, random.randbytes(20)),
            self._envelope(to, Kind.TYPING, random.randbytes(20)),
        )

    async def _times(self) -> None:
        to = self._friend()
        self._submit(self._envelope(to, sent_at=MS_MAX), self._envelope(to, sent_at=0))

    async def _impersonate(self) -> None:
        user, device, epoch = self._random.choice(self._device._victims())
        claims: list[dict[str, Any]] = [{"user": user}, {"device": device}, {"epoch": epoch}]
        claims.append({"user": user, "device": device, "epoch": epoch})
        self._submit(self._envelope(self._friend(), **self._random.choice(claims)))

    async def _early_data(self) -> None:
        """A frame that leaves one out."""
        self._number += 1
        self._submit(self._envelope(self._friend()))

    async def _duplicate(self) -> None:
        self._submit(self._envelope(self._friend()))
        self._number -= 1
        self._submit(self._envelope(self._friend()))

    async def _false_ack(self) -> None:
        self._connection.send(Ack(self._connection.link, INTEGER_MAX))

    async def _too_many(self) -> None:
        """More items than a frame may have."""
        to = self._friend()
        self._submit(*(self._envelope(to) for _ in range(129)))

    async def _second_greeting(self) -> None:
        self._connection.send(Greet(WIRE_VERSION, self._device.token, self._device.epoch, self._connection.link, 8))

    async def _bad_greeting(self) -> None:
        random, device = self._random, self._device
        token = random.choice([random.randbytes(32), b"", random.randbytes(64), device.token])
        self._connection.send(Greet(random.choice([0, 1, 2]), token, random.getrandbits(53), self._connection.link, 8))

    async def _early(self) -> None:
        """A greeting and, before its Welcome, as many frames as there is room for."""
        device, link = self._device, self._connection.link
        self._connection.send(Greet(WIRE_VERSION, device.token, device.epoch, link, 8))
        for number in range(1, FLOOD + 1):
            if not self._connection.send(Data(link, number, 0, ())):
                return
            if number % FLOOD_PIECE == 0:
                await asyncio.sleep(PIECE_S)

    async def _garbage(self) -> None:
        self._connection.send(self._random.choice([b"", b"\xc1", self._random.randbytes(200), b"\x91" * 400, b"\xdd"]))


def _user(user: int) -> Destination:
    return Destination(DestinationType.USER, user)
