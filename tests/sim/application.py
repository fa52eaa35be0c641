"""The application of a device: the client's core, connection and persister, in one simulated process."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from meshim.client import events as e
from meshim.client.connection import Connection
from meshim.client.core import ClientCore
from meshim.client.identity import Identity
from meshim.client.options import DEFAULTS
from meshim.client.persister import Persister
from meshim.client.state import StateFile
from meshim.errors import BackendUnavailable, Code, DeviceInUse, Refused
from meshim.runtime import crypto
from meshim.runtime.driver import Driver
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Stream,
    decode_envelope,
)
from meshim.wire.rest import Connector
from tests.sim.records import File, Key, key_of
from tests.sim.rest import Rest
from tests.sim.scheduler import WALL_S, Process
from tests.sim.state_file import MemoryStateFile

if TYPE_CHECKING:
    from tests.sim.device import Device

TOKEN_TTL_S = 30 * 86400.0
BURST_MOST = 5
"""Most messages in one burst."""
MESSAGES_LEAST = 200
"""Messages of a run: where devices were away for long, they go on sending until there are so many."""
READ_SHARE = 0.3
"""Share of the messages for which the application sends a read receipt."""


class Application:
    """One process of a device."""

    def __init__(self, device: "Device", process: Process, state: MemoryStateFile) -> None:
        self._device = device
        self._process = process
        self._state = state
        self._judge = device._judge
        self._file: File
        self._core: ClientCore
        self._more = asyncio.Event()
        self._flood: asyncio.Task[None]
        self._greets = b"", 0.0
        """The hash of the token that it greets with, and since when."""
        self._connectors: Sequence[Connector] = ()

    @property
    def _is_current(self) -> bool:
        return self._device.process is self._process

    async def main(self) -> None:
        device, loop = self._device, self._process.loop
        try:
            await self._until_logged_in()
            if not self._is_current or device.rests():
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
        tokens = Rest(device.scheduler, backends, device.topology).tokens
        takeover = self._state.token is None  # as the client library: only the first login of a state file
        try:
            login = await tokens.issue(
                device.user, device.name, self._state.epoch, crypto.hash_token(token), now + TOKEN_TTL_S, now, takeover
            )
        except DeviceInUse as error:
            raise Refused(Code.REPLACED, error.sentence) from None
        device.id = login.device
        self._state.token = token
        device.logged_in(self._state, crypto.hash_token(token))
        if device.was_taken_from(self._state):
            self._judge.violated("taken over", f"{device.name} logged in with the state file that had lost the device")

    async def _token(self, refused: bytes | None) -> bytes:
        if refused is not None and refused == self._state.token:
            await self._log_in()
        assert self._state.token is not None
        self._greets = crypto.hash_token(self._state.token), self._process.scheduler.now
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
                self._device.holders.welcomed(self._device.name, *self._greets)
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


def _key(stream: Stream, seq: int) -> Key:
    to = stream.to
    return stream.user, stream.device, stream.epoch, to.type, to.id, to.device, seq
