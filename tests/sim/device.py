"""A device: an application on the client's core, connection and persister, as a simulated process with a state file."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from meshim.client import events as e
from meshim.client.connection import Connection
from meshim.client.core import ClientCore, Identity
from meshim.client.options import DEFAULTS
from meshim.client.persister import Persister
from meshim.client.state import StateFile
from meshim.errors import BackendUnavailable, Code, Refused
from meshim.rest.backends import Backends as RestBackends
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.tokens import Tokens
from meshim.runtime import crypto
from meshim.runtime.driver import Driver
from meshim.runtime.log import Log
from meshim.stores.ports import Login
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Stream,
    Text,
    decode_envelope,
    encode_content,
)
from meshim.wire.rest import Connector
from tests.sim.judge import File, Judge, Key, key_of
from tests.sim.network import Network
from tests.sim.servers import Backends, ServerState, at_once
from tests.sim.state import State
from tests.sim.world import WALL_S, Process, World

TOKEN_TTL_S = 30 * 86400.0
BURST_MOST = 5
"""Messages that are sent one right after the other."""
MESSAGES_LEAST = 200
"""Of a run; where many were away for long, they talk on for a moment."""
READ_SHARE = 0.3
"""Of the messages that the application says it has read."""


class Plan:
    """What the application wants: to send this many messages to these users, and to be online or not."""

    def __init__(self, peers: Sequence[int], pause_s: float) -> None:
        self.peers = peers
        self.pause_s = pause_s
        """Between two messages, on average."""
        self.until = 0.0
        """Nothing is sent after that, once the whole mesh has sent `MESSAGES_LEAST`."""


class Device:
    """One device of a user: a process at times, a state file, and what it means to do."""

    def __init__(
        self, world: World, network: Network, backends: Backends, judge: Judge, user: int, name: str, plan: Plan
    ) -> None:
        self.world = world
        self.user = user
        self.name = name
        self.id = 0
        """Given at the first login."""
        self.plan = plan
        self.process: Process | None = None
        self.core: ClientCore | None = None
        self.connection: Connection | None = None
        self.wanted = False
        """Whether a supervisor starts the application again when it was killed."""
        self.last_endpoint = ""
        self._network = network
        self._backends = backends
        self._judge = judge
        self._state = State(world.random.getrandbits(63))
        self._file: File | None = None
        self.sent = 0
        """Messages that were written on it."""

    # ---- what happens to it

    def start(self) -> None:
        """Start the application, unless it runs."""
        self.wanted = True
        if self.process is not None:
            return
        world = self.world
        process = Process(world, self.name, rate=world.random.uniform(0.99, 1.01))
        process.wall_s = world.random.uniform(-60.0, 60.0)
        self.process = process
        app = Application(self, process, self._state)

        def ended() -> None:
            self._network.died(process)
            if self.process is process:
                self.process = self.core = None
                self._judge.offline(self.id)
                if self.wanted:
                    world.after(world.random.uniform(0.1, 1.0), self._restart)

        process.on_end = ended
        process.run(app.main)

    def _restart(self) -> None:
        if self.wanted:
            self.start()

    def kill(self) -> None:
        """kill -9 for the application, if it runs; it is started again."""
        if self.process is not None:
            self.process.kill()

    def leave(self) -> None:
        """End the application politely; it stays away until `start`."""
        self.wanted = False
        if self.process is not None:
            process = self.process
            process.loop.call_soon(lambda: self._farewell(process))

    def _farewell(self, process: Process) -> None:
        if self.core is not None and self.process is process:
            for action in self.core.farewell():
                if isinstance(action, e.SendFrame) and self.connection is not None:
                    self.connection.send(action.frame)
        self.world.after(0.01, process.kill)

    def lose_file(self, *, keep_running: bool) -> None:
        """Go on with a new state file; with `keep_running` the application on the old one does not know yet."""
        before = self.process
        waits = any(row.read_at is None for row in self._backends.database.devices[self.id].queue)
        self._judge.entered("R14", waits)
        self._state = State(self.world.random.getrandbits(63))
        self.process = self.core = None
        self._judge.offline(self.id)
        if before is not None and not keep_running:
            before.kill()
        elif before is not None:
            before.resume()
            before.on_end = lambda: self._network.died(before)
        self._file = self._judge.opened(self.user, self.id, self._state.epoch)

    def register(self) -> None:
        """Log in before anything runs: people expect messages on devices that the mesh knows."""
        token, epoch, ends = self.world.random.randbytes(32), self._state.epoch, WALL_S + TOKEN_TTL_S
        token_hash = crypto.hash_token(token)
        found, _ = at_once(self._backends.registry.log_in(self.user, self.name, epoch, token_hash, ends, WALL_S, 10))
        self.id = found.device_id
        at_once(self._backends.cache_data.put_login(token_hash, Login(self.user, self.id, epoch, ends)))
        self._state.token = token
        self._file = self._judge.opened(self.user, self.id, self._state.epoch)

    # ---- what the application is told

    @property
    def file(self) -> File:
        """The judge's notes on the state file."""
        assert self._file is not None, "register comes first"
        return self._file

    def went_online(self, endpoint: str) -> None:
        outbox = self.core.outbox if self.core is not None else None
        elsewhere = self.last_endpoint not in ("", endpoint)
        self._judge.entered("R12", elsewhere and outbox is not None and outbox.unsettled > 0)
        self.last_endpoint = endpoint
        self._judge.entered("R8", self._backends.sql.state is not ServerState.UP)
        self._judge.online(self.id)

    def went_offline(self) -> None:
        self._judge.offline(self.id)

    def next_text(self) -> bytes:
        self.sent += 1
        return encode_content(Text(f"{self.name} says {self.sent}"))


class Application:
    """One process of a device."""

    def __init__(self, device: Device, process: Process, state: State) -> None:
        self._device = device
        self._process = process
        self._state = state
        self._judge = device._judge
        self._file: File
        self._core: ClientCore
        self._more = asyncio.Event()
        self._connectors: Sequence[Connector] = ()

    @property
    def _is_current(self) -> bool:
        return self._device.process is self._process

    async def main(self) -> None:
        device, loop = self._device, self._process.loop
        try:
            await self._until_logged_in()
            if not self._is_current:
                return
            random = self._process.world.random
            self._file = device.file
            self._core = core = ClientCore(
                Identity(device.user, device.id, self._state.epoch), DEFAULTS, self._state.load(),
                lambda: random.randbytes(16), lambda: int(self._process.wall() * 1000), loop.time(),
            )  # fmt: skip
            self._watch_duplicates(core)
            driver: Driver[e.Event, e.Action] = Driver(core, self._perform)
            self._driver = driver
            persister = Persister(
                cast("StateFile", self), asyncio.Lock(), lambda serial: driver.receive(e.Persisted(serial))
            )
            self._persister = persister
            self._connection = Connection(driver, self._living, self._token)
            device.core, device.connection = core, self._connection
            tasks = [asyncio.create_task(work) for work in (self._write(), self._read(), persister.run())]
            for future in (driver.failed, *tasks):
                future.add_done_callback(self._ended)
            await self._connection.run()
        except (Refused, BackendUnavailable):
            # Somebody else is this device now, or nobody answers: the application ends.
            return

    def _ended(self, future: "asyncio.Future[None]") -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._process.fail(error)

    def _watch_duplicates(self, core: ClientCore) -> None:
        """R10: what the device has is synced again."""
        receive = core.inbox.receive

        def watched(envelope: Envelope, data: bytes, *, stored: bool, now: float) -> Any:
            before = core.statistics.deduplicated
            arrival = receive(envelope, data, stored=stored, now=now)
            self._judge.entered("R10", stored and core.statistics.deduplicated > before)
            return arrival

        core.inbox.receive = watched  # type: ignore[method-assign]  # the core's, with an ear at it

    # ---- REST

    async def _until_logged_in(self) -> None:
        wait_s = 0.2
        while self._state.token is None:
            try:
                await self._log_in()
            except BackendUnavailable:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, 2.0)

    async def _log_in(self) -> None:
        device, backends = self._device, self._device._backends
        token = self._process.world.random.randbytes(32)
        now = WALL_S + self._process.world.now
        rest = RestBackends(
            backends.accounts(), backends.leases(), backends.presence(), backends.cache(), backends.notifications(), {}
        )
        notifier = ChangeNotifier(rest, lambda: WALL_S + self._process.world.now, _Silent())
        login = await Tokens(rest, notifier, 10).issue(
            device.user, device.name, self._state.epoch, crypto.hash_token(token), now + TOKEN_TTL_S, now
        )
        device.id = login.device
        self._state.token = token

    async def _token(self, refused: bytes | None) -> bytes:
        if refused is not None and refused == self._state.token:
            if not self._is_current:
                raise Refused(Code.REPLACED, "it would take the device back: that is for people to decide")
            await self._log_in()
        assert self._state.token is not None
        return self._state.token

    async def _living(self, fresh: bool) -> Sequence[Connector]:
        if fresh or not self._connectors:
            try:
                living = await self._device._backends.leases().living("connector")
            except BackendUnavailable:
                return self._connectors
            if living:
                self._connectors = tuple(Connector(lease.name, lease.endpoint, lease.key) for lease in living)
        return self._connectors

    # ---- what the core wants

    def _perform(self, action: e.Action) -> None:
        match action:
            case e.SendFrame(frame):
                self._connection.send(frame)
            case e.Persist():
                self._persister.add(action)
            case e.Disconnect():
                if self._is_current:
                    self._device.went_offline()
                self._connection.ended(action)
            case e.Online():
                self._connection.welcomed()
                if self._is_current:
                    self._device.went_online(self._connection._last)
            case e.StatusChanged(to, seq, state):
                self._judge.progressed(self._key(to, seq), state)
            case e.MessagesAvailable():
                self._more.set()

    def _key(self, to: Destination, seq: int) -> Key:
        who = self._core.identity
        return who.user, who.device, who.epoch, to.type, to.id, to.device, seq

    def apply(self, changes: Sequence[e.Change]) -> None:
        """Writes to the state file, in a thread of the persister."""
        self._state.apply(changes)
        for change in changes:
            match change:
                case e.AddToOutbox(envelope=data):
                    self._judge.queued(self._file, decode_envelope(data))
                case e.AddToInbox(envelope=data, stored=stored):
                    self._judge.arrived(self._file, decode_envelope(data), stored=stored)
                case e.Release(stream, seq, flag):
                    self._judge.released(self._file, _key(stream, seq), flag)

    # ---- the application

    async def _write(self) -> None:
        plan, world = self._device.plan, self._process.world
        random = world.random
        while world.now < plan.until or len(self._judge.messages) < MESSAGES_LEAST:
            burst = random.randint(1, BURST_MOST)
            await asyncio.sleep(random.uniform(0.0, 2 * burst * plan.pause_s))
            to = Destination(DestinationType.USER, random.choice(plan.peers))
            for _ in range(burst):
                while self._core.outbox.full(to):
                    await asyncio.sleep(0.1)
                self._driver.receive(e.Composed((self._compose(to),)))
                await asyncio.sleep(random.uniform(0.0, 0.2))

    def _compose(self, to: Destination) -> Envelope:
        who = self._core.identity
        seq, base = self._core.reserve(to)
        return Envelope(
            WIRE_VERSION, self._process.world.random.randbytes(16), who.user, who.device, who.epoch, to, seq, base,
            Kind.TEXT, 0, int(self._process.wall() * 1000), self._device.next_text(),
        )  # fmt: skip

    async def _read(self) -> None:
        random = self._process.world.random
        turn = 0
        while True:
            row = self._state.next(turn)
            if row is None:
                self._more.clear()
                await self._more.wait()
                continue
            turn = row.number
            key = key_of(decode_envelope(row.envelope))
            self._judge.gave(self._file, key)
            await asyncio.sleep(random.uniform(0.0, 0.01))  # killed in here it is given again
            if random.random() < READ_SHARE:
                self._driver.receive(e.MessagesRead(((row.stream, row.seq),)))
            self._state.handled(turn)
            self._judge.handled(self._file, key)


class _Silent(Log):
    def __init__(self) -> None:
        super().__init__("rest", "r1")

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        """Nobody reads it."""


def _key(stream: Stream, seq: int) -> Key:
    to = stream.to
    return stream.user, stream.device, stream.epoch, to.type, to.id, to.device, seq
