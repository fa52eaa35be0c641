"""A device of a user: its state files, and the processes of its applications (`application.py`)."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from meshim.client import events as e
from meshim.client.connection import Connection, Transport
from meshim.client.core import ClientCore
from meshim.errors import BackendUnavailable, Code
from meshim.runtime import crypto
from meshim.stores.ports import Login
from meshim.topology import Topology
from meshim.wire.envelope import Destination, DestinationType, Text, encode_content
from meshim.wire.link import Close
from tests.sim.application import TOKEN_TTL_S, Application
from tests.sim.judge import Judge
from tests.sim.network import Network
from tests.sim.raw_connection import RawConnection
from tests.sim.records import File
from tests.sim.remote_calls import ServerState, result_of
from tests.sim.rest import Rest
from tests.sim.scheduler import WALL_S, Process, Scheduler
from tests.sim.servers import Backends
from tests.sim.state_file import MemoryStateFile

if TYPE_CHECKING:
    from tests.sim.holders import Holders

LOGOUT_AGAIN_S = 0.5
"""Pause before a logout that failed is repeated."""


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
        self, scheduler: Scheduler, network: Network, backends: Backends, judge: Judge, topology: Topology, user: int,
        name: str, plan: Plan, transport: Transport,
    ) -> None:  # fmt: skip
        self.scheduler = scheduler
        self.topology = topology
        self.user = user
        self.name = name
        self.id = 0
        """Given by the mesh at the first login."""
        self.plan = plan
        self.transport = transport
        self.holders: Holders
        self.process: Process | None = None
        self.core: ClientCore | None = None
        self.application: Application | None = None
        self.connection: Connection | None = None
        self.wanted = False
        """Whether the application is started again after its process was killed."""
        self.last_endpoint = ""
        self.rests_s = 0.0
        """How long it stays away after its first login; it does not connect before."""
        self.online_at = 0.0
        """When its application was welcomed last."""
        self.earlier: list[tuple[Process, ClientCore]] = []
        """Applications that ran on when their state file lost the device."""
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

    def rests(self) -> bool:
        """Whether the application has only registered its device, and begins later."""
        rests_s, self.rests_s = self.rests_s, 0.0
        if rests_s:
            self.wanted = False
            self.scheduler.after(rests_s, self.start)
        return rests_s > 0.0

    def flood(self, user: int, count: int, every_s: float) -> None:
        """Let the application, if it runs, send so many messages to a user beside what it sends by its plan."""
        if self.application is not None and self.core is not None:
            flood = self.application.flood(Destination(DestinationType.USER, user), count, every_s)
            self.application.run(flood)

    def lose_file(self, *, keep_running: bool) -> MemoryStateFile:
        """Go on with a new state file, and return the old one.

        With `keep_running` the application on the old file runs on beside it.
        """
        before, lost, core = self.process, self._state, self.core
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
            if core is not None:
                self.earlier.append((before, core))
        self._file = self._judge.opened(self.user, self.id, self._state.epoch)
        return lost

    def wake(self, state: MemoryStateFile) -> None:
        """Log in with an earlier state file, as an application does whose token is refused when it wakes up."""
        process = Process(self.scheduler, self.name, rate=1.0)
        process.on_end = lambda: self._network.died(process)
        process.run(Application(self, process, state).wake)

    def log_out(self) -> bool:
        """Log out with the token of the state file; False when it has none.  The application logs in again."""
        token = self._state.token
        if token is None:
            return False
        process = Process(self.scheduler, "r1")
        process.run(lambda: self._log_out(crypto.hash_token(token)))
        return True

    async def _log_out(self, token_hash: bytes) -> None:
        """A logout that fails is repeated, as REST asks for (docs/rest.md)."""
        while True:
            try:
                await Rest(self.scheduler, self._backends, self.topology).sessions.logout(token_hash)
            except BackendUnavailable:
                await asyncio.sleep(LOGOUT_AGAIN_S)
            else:
                self.holders.logged_out(token_hash)
                return

    def connect_again(self, stays_s: float, *, silent: bool) -> bool:
        """Connect a second time with the token of the application, for so long; False when it has none.

        The second connection acknowledges no message.  It ends with a Close, or, if `silent`, without a word.
        """
        token, epoch = self._state.token, self._state.epoch
        if token is None:
            return False
        process = Process(self.scheduler, self.name)
        process.connect = self._network.streams.connect
        process.on_end = lambda: self._network.died(process)
        process.run(lambda: self._second(process, token, epoch, stays_s, silent=silent))
        return True

    async def _second(self, process: Process, token: bytes, epoch: int, stays_s: float, *, silent: bool) -> None:
        connection = RawConnection(process, self._network, self._backends, self.transport)
        asked_at = self.scheduler.now
        with suppress(BackendUnavailable):
            if await connection.open() and await connection.greet(token, epoch):
                self.holders.welcomed(f"a second connection of {self.name}", crypto.hash_token(token), asked_at)
                await connection.ends_within(stays_s)
        if not silent:
            connection.send(Close(connection.link, Code.QUIT))
            connection.close()
            await asyncio.sleep(0.05)

    def register(self) -> None:
        """Log in before the run begins, so that the mesh stores messages for the device from the start."""
        token, epoch, ends = self.scheduler.random.randbytes(32), self._state.epoch, WALL_S + TOKEN_TTL_S
        token_hash = crypto.hash_token(token)
        found, _ = result_of(self._backends.registry.log_in(self.user, self.name, epoch, token_hash, ends, WALL_S, 10))
        self.id = found.device_id
        result_of(self._backends.cache_data.put_login(token_hash, Login(self.user, self.id, epoch, ends)))
        self._state.token = token
        self.logged_in(self._state, token_hash)

    def logged_in(self, state: MemoryStateFile, token_hash: bytes) -> None:
        """A login with one of its state files has returned."""
        self.holders.logged_in(self.id, token_hash)
        if self._file is None and state is self._state:
            self._file = self._judge.opened(self.user, self.id, state.epoch)

    def was_taken_from(self, state: MemoryStateFile) -> bool:
        """Whether the mesh gives the device to this file, although a newer one has logged in since."""
        newer = self._state is not state and self._state.token is not None
        return newer and self._backends.database.devices[self.id].epoch == state.epoch

    # ---- reports of the application

    @property
    def identity(self) -> tuple[int, int, int]:
        """Its user, id and the epoch of its state file."""
        return self.user, self.id, self._state.epoch

    @property
    def file(self) -> File:
        """The record of the judge about the current state file."""
        assert self._file is not None, "register comes first"
        return self._file

    def went_online(self, endpoint: str) -> None:
        outbox = self.core.outbox if self.core is not None else None
        elsewhere = self.last_endpoint not in ("", endpoint)
        self.online_at = self.scheduler.now
        self._judge.entered("R12", elsewhere and outbox is not None and outbox.unsettled > 0)
        self.last_endpoint = endpoint
        self._judge.entered("R8", self._backends.sql.state is not ServerState.UP)
        self._judge.online(self.id)

    def went_offline(self) -> None:
        self._judge.offline(self.id)

    def next_text(self) -> bytes:
        self.sent += 1
        return encode_content(Text(f"{self.name} says {self.sent}"))
