"""Two devices with real cores and real state files, and a mesh between them that a test steps.

The mesh keeps its promises and nothing more: it loses connections and outcomes, answers `busy`, stores messages that it
could deliver, and sends wake-ups late.  A device can be killed between any two steps, and restarts from its state file.
"""

import itertools
from collections import deque
from math import inf
from pathlib import Path

import msgspec

from meshim.client import events as e
from meshim.client.core import ClientCore
from meshim.client.identity import Identity
from meshim.client.options import ClientOptions, OutboxOptions
from meshim.client.state import Received, StateFile
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.ordering import OrderingOptions
from meshim.protocol.window import WindowOptions
from meshim.wire import client as wire
from meshim.wire.client import ConnectorItem, Delivery, Greet, Outcome, Submit, Welcome
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Envelope, Kind, Stream, decode_envelope
from meshim.wire.link import Close
from meshim.wire.outcome import OutcomeStatus

LINK = LinkOptions(
    WindowOptions(credit=4, queue=100_000, frame_items=3, frame_bytes=65_536, give_up_s=4.0),
    heartbeat_s=inf,
    silence_s=25.0,
)
CONNECTOR_LINK = msgspec.structs.replace(LINK, heartbeat_s=10.0)
OPTIONS = ClientOptions(
    LINK, OutboxOptions(resend_s=4.0, busy_s=0.5, settled_max=200), OrderingOptions(gap_release_s=10_000.0)
)
BODY_BYTES, FRAME_BYTES = 65_536, 262_144


def connector_item_size(item: ConnectorItem) -> int:
    return len(item.envelope) if isinstance(item, Delivery) else 64


class Row(msgspec.Struct):
    """A stored message of one device."""

    position: int
    envelope: bytes
    pushed: bool = False


class Binding:
    """One connected device, as the mesh sees it."""

    def __init__(self, link: int, now: float) -> None:
        self.link: Link[ConnectorItem, Submit] = Link(link, CONNECTOR_LINK, connector_item_size, now)
        self.unacked: deque[Row | bytes] = deque()
        self.synced = 0


class Mesh:
    """Connectors, transfers and the store in one.  Each user has one device, with ten times the user's id."""

    def __init__(self) -> None:
        self.bindings: dict[int, Binding] = {}
        self.rows: dict[int, dict[tuple[Stream, int], Row]] = {}
        self.busy = self.storing = self.mute = self.waking = False
        self._positions = itertools.count(1)
        self._highest: dict[Stream, int] = {}
        """The highest position of each stream: its cookie."""

    def receive(self, user: int, frame: bytes, now: float) -> list[bytes]:
        """Take in a frame; returns frames for this user.  `flush` returns those for others."""
        message = wire.decode_from_client(frame)
        if isinstance(message, Greet):
            self.leave(user)
            self.bindings[user] = Binding(message.link, now)
            self.wake_up(user)
            welcome = Welcome(
                WIRE_VERSION, message.link, 1, user, user * 10, LINK.window.credit, BODY_BYTES, FRAME_BYTES, 10_000,
                25_000, 2_500, 0,
            )  # fmt: skip
            return [wire.encode(welcome)]
        if user not in self.bindings or message.link != self.bindings[user].link.epoch:
            return []
        if isinstance(message, Close):
            self.leave(user)
            return []
        binding = self.bindings[user]
        items, acknowledged = binding.link.receive(message, now)
        for item in acknowledged:
            if isinstance(item, Delivery):
                self._acknowledged(user, binding.unacked.popleft())
        for submit in items:
            self._route(submit)
        return []

    def flush(self, user: int, now: float) -> list[bytes]:
        binding = self.bindings.get(user)
        return [] if binding is None else [wire.encode(f) for f in (*binding.link.tick(now), *binding.link.flush(now))]

    def leave(self, user: int) -> None:
        """End a session: store its live copies, and push its rows again in the next session."""
        binding = self.bindings.pop(user, None)
        if binding is not None:
            for row in self.rows.get(user, {}).values():
                row.pushed = False
            for entry in binding.unacked:
                if isinstance(entry, bytes):
                    self._store(user, entry)

    def wake_up(self, user: int) -> None:
        """Push the stored messages that this session has not pushed yet."""
        binding = self.bindings.get(user)
        if binding is None:
            return
        for row in sorted(self.rows.get(user, {}).values(), key=lambda row: row.position):
            if not row.pushed:
                row.pushed = binding.link.push(Delivery(row.envelope, stored=True))
                binding.unacked.append(row)
            binding.synced = max(binding.synced, row.position)

    @property
    def empty(self) -> bool:
        """Nothing is stored or unacknowledged."""
        return not any(self.rows.values()) and not any(binding.unacked for binding in self.bindings.values())

    def _acknowledged(self, user: int, entry: Row | bytes) -> None:
        if isinstance(entry, bytes):
            self._report(decode_envelope(entry), OutcomeStatus.DELIVERED)
        else:
            envelope = decode_envelope(entry.envelope)
            self.rows[user].pop((envelope.stream, envelope.seq), None)

    def _route(self, submit: Submit) -> None:
        envelope = decode_envelope(submit.envelope)
        user = envelope.to.id
        if self.busy:
            self._report(envelope, OutcomeStatus.BUSY)
            return
        binding = self.bindings.get(user)
        after = int(submit.cookie or b"0")
        if binding is None or self.storing or after > binding.synced:
            self._store(user, submit.envelope)
            return
        binding.link.push(Delivery(submit.envelope))
        binding.unacked.append(submit.envelope)

    def _store(self, user: int, data: bytes) -> None:
        envelope = decode_envelope(data)
        rows = self.rows.setdefault(user, {})
        row = rows.setdefault((envelope.stream, envelope.seq), Row(next(self._positions), data))
        if self.waking:
            self.wake_up(user)
        self._highest[envelope.stream] = max(row.position, self._highest.get(envelope.stream, 0))
        self._report(envelope, OutcomeStatus.STORED)

    def _report(self, envelope: Envelope, status: OutcomeStatus) -> None:
        binding = self.bindings.get(envelope.user)
        if binding is None or self.mute:
            return
        busy = status is OutcomeStatus.BUSY
        highest = self._highest.get(envelope.stream, 0)
        binding.link.push(
            Outcome(
                to=envelope.to,
                first=envelope.seq,
                last=envelope.seq,
                status=status,
                final=not busy,
                audience=0 if busy else 1,
                cookie=b"" if busy or not highest else b"%d" % highest,
            )
        )


class Device:
    """One state file, the processes that use it one after another, and the application."""

    _names = itertools.count(1)

    def __init__(self, folder: Path, user: int) -> None:
        self.user = user
        self.to_mesh: deque[bytes] = deque()
        self.persisted: list[int] = []
        """Messages in the state file, by seq: `send` has returned."""
        self.progress: dict[int, str] = {}
        """The state of each message by seq, as this process has seen it."""
        self.received: list[int] = []
        """The messages that the application got, in order."""
        self.handling: Received | None = None
        self._path = folder / f"{user}-{next(self._names)}.db"
        self._links = itertools.count(user << 40)
        self._ids = itertools.count(1)
        self.start(0.0)

    # ---------------------------------------------------------------- the process

    def start(self, now: float) -> None:
        self.state = StateFile(self._path)
        self.persists: deque[tuple[e.Persist, list[int]]] = deque()
        self.connected = False
        self.core = ClientCore(
            Identity(self.user, self.user * 10, self.state.epoch), OPTIONS, self.state.load(),
            lambda: next(self._ids).to_bytes(16), lambda: 0, now,
        )  # fmt: skip
        self._last_read = 0
        self._composed: list[int] = []

    def kill(self, now: float) -> None:
        """As with kill -9: unwritten changes are lost, and the application gets its current message again."""
        self.state.close()
        if self.handling is not None:
            self.received.pop()
            self.handling = None
        self.to_mesh.clear()
        self.start(now)

    # ---------------------------------------------------------------- the shell

    def step(self, event: e.Event | None, now: float) -> None:
        for action in self.core.tick(now) if event is None else self.core.receive(event, now):
            if isinstance(action, e.SendFrame):
                self.to_mesh.append(action.frame)
            elif isinstance(action, e.Persist):
                self.persists.append((action, self._composed))
                self._composed = []
            elif isinstance(action, e.Disconnect):
                self.connected = False
                self.to_mesh.clear()
            elif isinstance(action, e.StatusChanged) and action.to.type == DestinationType.USER:
                self.progress[action.seq] = action.state

    def connect(self, now: float) -> None:
        self.step(e.Connected(next(self._links), b"token"), now)
        self.connected = True  # the step may have ended an earlier connection

    def lose_connection(self, now: float) -> None:
        self.connected = False
        self.to_mesh.clear()
        self.step(e.ConnectionLost(), now)

    def persist(self, now: float) -> None:
        """Perform the oldest Persist."""
        if self.persists:
            action, composed = self.persists.popleft()
            self.state.apply(action.changes)
            self.persisted += composed
            self.step(e.Persisted(action.serial), now)

    @property
    def idle(self) -> bool:
        """Nothing is unsettled, waits for the disk or for the application."""
        core = self.core
        return not (core.unsettled or self.persists or self.handling or self.state.received(self._last_read, 1))

    # ---------------------------------------------------------------- the application

    def send(self, peer: int, now: float) -> None:
        to = Destination(DestinationType.USER, peer)
        if not self.core.outbox.full(to):
            seq, base = self.core.reserve(to)
            identity = self.core.identity
            self._composed.append(seq)
            envelope = Envelope(
                WIRE_VERSION,
                seq.to_bytes(16),
                identity.user,
                identity.device,
                identity.epoch,
                to,
                seq,
                base,
                Kind.TEXT,
                0,
                0,
                b"x",
            )
            self.step(e.Composed((envelope,)), now)

    def read(self, now: float, *, mark: bool) -> None:
        """Handle the current message, and take the next."""
        if self.handling is not None:
            if mark:
                self.step(e.MessagesRead(((self.handling.stream, self.handling.seq),)), now)
            self.state.handled((self.handling.number,))
            self.handling = None
        page = self.state.received(self._last_read, 1)
        if page:
            self.handling = page[0]
            self._last_read = page[0].number
            self.received.append(page[0].seq)


class World:
    """The devices of users 1 and 2, and the mesh between them."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.mesh = Mesh()
        self.devices = {user: Device(folder, user) for user in (1, 2)}
        self.wires: dict[int, deque[bytes]] = {1: deque(), 2: deque()}

    def carry_up(self, user: int) -> None:
        """Carry one frame from a device to the mesh."""
        device = self.devices[user]
        if device.to_mesh:
            frame = device.to_mesh.popleft()
            self.wires[user] += self.mesh.receive(user, frame, self.now)
        for each in self.wires:
            self.wires[each] += self.mesh.flush(each, self.now)

    def carry_down(self, user: int) -> None:
        """Carry one frame from the mesh to a device."""
        self.wires[user] += self.mesh.flush(user, self.now)
        if self.wires[user]:
            frame = self.wires[user].popleft()
            if self.devices[user].connected:
                self.devices[user].step(e.FramesReceived((frame,)), self.now)

    def connect(self, user: int) -> None:
        if not self.devices[user].connected:
            self.wires[user].clear()
            self.devices[user].connect(self.now)

    def disconnect(self, user: int) -> None:
        """The connection breaks: what is under way is lost."""
        self.wires[user].clear()
        self.devices[user].lose_connection(self.now)
        self.mesh.leave(user)

    def kill(self, user: int) -> None:
        self.wires[user].clear()
        self.devices[user].kill(self.now)
        self.mesh.leave(user)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for device in self.devices.values():
            device.step(None, self.now)

    def settle(self) -> None:
        """Run without faults until nothing is under way any more."""
        mesh = self.mesh
        mesh.busy = mesh.storing = mesh.mute = False
        mesh.waking = True
        for _ in range(200):
            for user, device in self.devices.items():
                self.connect(user)
                mesh.wake_up(user)
                while device.persists or device.to_mesh or self.wires[user]:
                    device.persist(self.now)
                    self.carry_up(user)
                    self.carry_down(user)
                device.read(self.now, mark=True)
            if mesh.empty and all(device.idle for device in self.devices.values()):
                return
            self.wait(0.5)
        raise AssertionError("it does not become idle")
