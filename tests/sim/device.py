"""A device: an application on the client's core, connection and persister, as a simulated process with a state file."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, cast

from meshim.client import events as e
from meshim.client.connection import Connection, Transport
from meshim.client.core import ClientCore
from meshim.client.identity import Identity
from meshim.client.options import DEFAULTS
from meshim.client.persister import Persister
from meshim.client.state import StateFile
from meshim.errors import BackendUnavailable, Code, DeviceInUse, Refused
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
from tests.sim.remote_calls import ServerState, result_of
from tests.sim.scheduler import WALL_S, Process, Scheduler
from tests.sim.servers import Backends
from tests.sim.state_file import MemoryStateFile

TOKEN_TTL_S = 30 * 86400.0
BURST_MOST = 5
"""Most messages in one burst."""
MESSAGES_LEAST = 200
"""Messages of a run: where devices were away for long, they go on sending until there are so many."""
READ_SHARE = 0.3
"""Share of the messages for which the application sends a read receipt."""


class Plan:
    """The behaviour of the application: to which users it sends, and how often."""

    def __init__(self, peers: Sequence[int], pause_s: float) -> None:
        self.peers = peers
        self.pause_s = pause_s
        """Average pause between two messages."""
        self.until = 0.0
        """The application stops sending at this time, if the whole mesh has sent `MESSAGES_LEAST` by then."""


class Device:
    """One device of a user: its state file, its plan, and the process of its application while that runs."""

    def __init__(
        self, scheduler: Scheduler, network: Network, backends: Backends, judge: Judge, user: int, name: str,
        plan: Plan, transport: Transport,
    ) -> None:  # fmt: skip
        self.scheduler = scheduler
        self.user = user
        self.name = name
        self.id = 0
        """Given by the mesh at the first login."""
        self.plan = plan
        self.transport = transport
        self.process: Process | None = None
        self.core: ClientCore | None = None
        self.application: Application | None = None
        self.connection: Connection | None = None
        self.wanted = False
        """Whether the application is started again after its process was killed."""
        self.last_endpoint = ""
        self._network = network
        self._backends = backends
        self._judge = judge
        self._state = MemoryStateFile(scheduler.random.getrandbits(53))
        self._file: File | None = None
        self.sent = 0
        """Messages that its applications have sent."""

    # ---- start, stop, faults

    def start(self) -> None:
        """Start the application, unless it runs already."""
        self.wanted = True
        if self.process is not None:
            return
        scheduler = self.scheduler
        process = Process(scheduler, self.name, rate=scheduler.random.uniform(0.99, 1.01))
        process.wall_s = scheduler.random.uniform(-60.0, 60.0)
        process.connect = self._network.streams.connect
        self.process = process
        app = self.application = Application(self, process, self._state)

        def ended() -> None:
            self._network.died(process)
            if self.process is process:
                self.process = self.core = None
                self._judge.offline(self.id)
                if self.wanted:
                    scheduler.after(scheduler.random.uniform(0.1, 1.0), self._restart)

        process.on_end = ended
        process.run(app.main)

    def _restart(self) -> None:
        if self.wanted:
            self.start()

    def kill(self) -> None:
        """kill -9 for the application, if it runs; it starts again within a second."""
        if self.process is not None:
            self.process.kill()

    def leave(self) -> None:
        """End the application with a CLOSE; it stays away until `start`."""
        self.wanted = False
        if self.process is not None:
            process = self.process
            process.loop.call_soon(lambda: self._say_goodbye(process))

    def _say_goodbye(self, process: Process) -> None:
        if self.core is not None and self.process is process:
            for action in self.core.farewell():
                if isinstance(action, e.SendFrame) and self.connection is not None:
                    self.connection.send(action.frame)
        self.scheduler.after(0.01, process.kill)

    def flood(self, user: int, count: int, every_s: float) -> None:
        """Let the application, if it runs, send so many messages to a user beside what it sends by its plan."""
        if self.application is not None and self.core is not None:
            flood = self.application.flood(Destination(DestinationType.USER, user), count, every_s)
            self.application.run(flood)

    def lose_file(self, *, keep_running: bool) -> MemoryStateFile:
        """Go on with a new state file, and return the old one.

        With `keep_running` the application on the old file runs on beside it.
        """
        before, lost = self.process, self._state
        waits = any(row.read_at is None for row in self._backends.database.devices[self.id].queue)
        self._judge.entered("R14", waits)
        self._state = MemoryStateFile(self.scheduler.random.getrandbits(53))
        self.process = self.core = None
        self._judge.offline(self.id)
        if before is not None and not keep_running:
            before.kill()
        elif before is not None:
            before.resume()
            before.on_end = lambda: self._network.died(before)
        self._file = self._judge.opened(self.user, self.id, self._state.epoch)
        return lost

    def wake(self, state: MemoryStateFile) -> None:
        """Log in with an earlier state file, as an application does whose token is refused when it wakes up."""
        process = Process(self.scheduler, self.name, rate=1.0)
        process.on_end = lambda: self._network.died(process)
        process.run(Application(self, process, state).wake)

    def register(self) -> None:
        """Log in before the run begins, so that the mesh stores messages for the device from the start."""
        token, epoch, ends = self.scheduler.random.randbytes(32), self._state.epoch, WALL_S + TOKEN_TTL_S
        token_hash = crypto.hash_token(token)
        found, _ = result_of(self._backends.registry.log_in(self.user, self.name, epoch, token_hash, ends, WALL_S, 10))
        self.id = found.device_id
        result_of(self._backends.cache_data.put_login(token_hash, Login(self.user, self.id, epoch, ends)))
        self._state.token = token
        self._file = self._judge.opened(self.user, self.id, self._state.epoch)

    def was_taken_from(self, state: MemoryStateFile) -> bool:
        """Whether the mesh gives the device to this file, although a newer one has logged in since."""
        newer = self._state is not state and self._state.token is not None
        return newer and self._backends.database.devices[self.id].epoch == state.epoch

    # ---- reports of the application

    @property
    def file(self) -> File:
        """The record of the judge about the current state file."""
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

    def __init__(self, device: Device, process: Process, state: MemoryStateFile) -> None:
        self._device = device
        self._process = process
        self._state = state
        self._judge = device._judge
        self._file: File
        self._core: ClientCore
        self._more = asyncio.Event()
        self._flood: asyncio.Task[None]
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
            random = self._process.scheduler.random
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
            self._connection = Connection(driver, self._living, self._token, device.transport, insecure=True)
            device.core, device.connection = core, self._connection
            tasks = [asyncio.create_task(work) for work in (self._write(), self._read(), persister.run())]
            for future in (driver.failed, *tasks):
                future.add_done_callback(self._ended)
            await self._connection.run()
        except (Refused, BackendUnavailable):
            # The device was taken over, or REST does not answer: the application ends.
            return

    def _ended(self, future: "asyncio.Future[None]") -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._process.fail(error)

    def _watch_duplicates(self, core: ClientCore) -> None:
        """R10: count stored messages that the device gets again."""
        receive = core.inbox.receive

        def watched(envelope: Envelope, data: bytes, *, stored: bool, now: float) -> Any:
            before = core.statistics.deduplicated
            arrival = receive(envelope, data, stored=stored, now=now)
            self._judge.entered("R10", stored and core.statistics.deduplicated > before)
            return arrival

        core.inbox.receive = watched  # type: ignore[method-assign]  # wraps the method of the core

    # ---- REST

    async def _until_logged_in(self) -> None:
        wait_s = 0.2
        while self._state.token is None:
            try:
                await self._log_in()
            except BackendUnavailable:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, 2.0)

    async def wake(self) -> None:
        """Log in once."""
        with suppress(Refused, BackendUnavailable):
            await self._log_in()

    async def _log_in(self) -> None:
        device, backends = self._device, self._device._backends
        token = self._process.scheduler.random.randbytes(32)
        now = WALL_S + self._process.scheduler.now
        rest = RestBackends(
            backends.accounts(), backends.leases(), backends.presence(), backends.cache(), backends.notifications(),
            probes={}, storing={},
        )  # fmt: skip
        notifier = ChangeNotifier(rest, lambda: WALL_S + self._process.scheduler.now, _Silent())
        takeover = self._state.token is None  # as the client library: only the first login of a state file
        try:
            login = await Tokens(rest, notifier, 10).issue(
                device.user, device.name, self._state.epoch, crypto.hash_token(token), now + TOKEN_TTL_S, now, takeover
            )
        except DeviceInUse as error:
            raise Refused(Code.REPLACED, error.sentence) from None
        device.id = login.device
        self._state.token = token
        if device.was_taken_from(self._state):
            self._judge.violated("taken over", f"{device.name} logged in with the state file that had lost the device")

    async def _token(self, refused: bytes | None) -> bytes:
        if refused is not None and refused == self._state.token:
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
                self._connectors = tuple(
                    Connector(lease.name, lease.endpoint, lease.key, lease.url) for lease in living
                )
        return self._connectors

    # ---- the actions of the core

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
                case e.DropFromInbox(stream, seq, flag):
                    self._judge.dropped(self._file, _key(stream, seq), flag)
                case e.PutReceipts():
                    self._judge.agreement.knows(self._file, change)

    # ---- the application

    async def _write(self) -> None:
        plan, scheduler = self._device.plan, self._process.scheduler
        random = scheduler.random
        while scheduler.now < plan.until or len(self._judge.messages) < MESSAGES_LEAST:
            burst = random.randint(1, BURST_MOST)
            await asyncio.sleep(random.uniform(0.0, 2 * burst * plan.pause_s))
            to = Destination(DestinationType.USER, random.choice(plan.peers))
            for _ in range(burst):
                while self._core.outbox.full(to):
                    await asyncio.sleep(0.1)
                self._driver.receive(e.Composed((self._compose(to),)))
                await asyncio.sleep(random.uniform(0.0, 0.2))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this beside the rest of the application."""

        def begin() -> None:
            self._flood = self._process.loop.create_task(work)
            self._flood.add_done_callback(self._ended)

        self._process.loop.call_soon(begin)

    async def flood(self, to: Destination, count: int, every_s: float) -> None:
        """Send so many messages."""
        for _ in range(count):
            while self._core.outbox.full(to):
                await asyncio.sleep(0.1)
            self._driver.receive(e.Composed((self._compose(to),)))
            await asyncio.sleep(every_s)

    def _compose(self, to: Destination) -> Envelope:
        who = self._core.identity
        seq, base = self._core.reserve(to)
        return Envelope(
            WIRE_VERSION, self._process.scheduler.random.randbytes(16), who.user, who.device, who.epoch, to, seq, base,
            Kind.TEXT, 0, int(self._process.wall() * 1000), self._device.next_text(),
        )  # fmt: skip

    async def _read(self) -> None:
        random = self._process.scheduler.random
        last = 0
        while True:
            row = self._state.next(last)
            if row is None:
                self._more.clear()
                await self._more.wait()
                continue
            last = row.number
            key = key_of(decode_envelope(row.envelope))
            self._judge.gave(self._file, key)
            await asyncio.sleep(random.uniform(0.0, 0.01))  # a process that is killed here gets the message again
            if random.random() < READ_SHARE:
                self._driver.receive(e.MessagesRead(((row.stream, row.seq),)))
            self._state.handled(last)
            self._judge.handled(self._file, key)


class _Silent(Log):
    def __init__(self) -> None:
        super().__init__("rest", "r1")

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        """Drop the line."""


def _key(stream: Stream, seq: int) -> Key:
    to = stream.to
    return stream.user, stream.device, stream.epoch, to.type, to.id, to.device, seq
