"""The minimal clients of `examples/` in a chaos run: one process for each device, beside the client library."""

import asyncio
import json
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from enum import Enum, auto
from itertools import cycle, islice
from pathlib import Path
from random import Random

import msgspec

from meshim.client.connection import Transport
from meshim.deploy.pdeathsig import die_with_parent
from meshim.errors import MeshimError
from scripts.harness.chaos.minimal_application import MinimalApplication
from scripts.harness.chaos.minimal_mutations import REPLACEMENTS
from scripts.harness.chaos.users import TRANSPORTS, ClientsConfig, DeviceConfig
from scripts.harness.clients import minimal_example
from scripts.harness.clients.minimal_example import Language
from scripts.harness.history.format import HistoryWriter
from scripts.harness.history.journal import Journal

ONLINE_S, OFFLINE_S = 20.0, 4.0
"""Mean seconds that a client stays, and is gone after its user quit."""
_LOGIN_S = 30.0
_STEP_S = 0.05
_BACKLOG_S = 2.0


def language_of(transport: Transport) -> Language:
    """Return the language of the minimal client that speaks a transport."""
    return "python" if transport == "zeromq" else "javascript"


def transports_here(transport: str, count: int) -> tuple[Transport, ...]:
    """Return the transports of `count` minimal clients, in turn those of a key of `TRANSPORTS` that can run here.

    The JavaScript client, which speaks WebSocket, needs Node and a package.
    """
    here = [each for each in TRANSPORTS[transport] if each == "zeromq" or minimal_example.node() is not None]
    return tuple(islice(cycle(here), count))


class _Phase(Enum):
    RUNS = auto()
    QUITS = auto()
    GONE = auto()
    """Its user has quit."""
    KILLED = auto()


class _Client:
    """One client: its process, and what its user does."""

    def __init__(self, command: list[str], log: Path, application: MinimalApplication) -> None:
        self.phase = _Phase.GONE
        self.application = application
        self.login: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with the id of the device when it is online for the first time."""
        self.failed: str | None = None
        """Its last words, when it ended by itself."""
        self._command = command
        self._log = log
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process."""
        if self.login.done():
            self.application.write("online")
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *die_with_parent(self._command), stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True
            )
        self.phase = _Phase.RUNS
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.endswith(b"\n"):  # else it was killed within this line
                event = json.loads(line)
                if not self.login.done():
                    if event["event"] != "online":
                        continue
                    self.login.set_result(str(event["device"]))
                    continue  # `logged_in` goes on
                self.application.take(event)
        await process.wait()
        if self.phase is _Phase.RUNS:
            words = self._log.read_text(errors="replace").strip().splitlines() or [f"code {process.returncode}"]
            self.failed = f"{self._log}: {words[-1]}"

    def logged_in(self, device: DeviceConfig) -> None:
        """The history knows the device now."""
        self.application.device = device
        self.application.write("online")
        self.application.take({"event": "online"})

    def command(self, line: str) -> None:
        """Give it a command.  One that has ended does not get it; `_read` says so."""
        assert self._process is not None
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(f"{line}\n".encode())

    async def quit(self) -> None:
        """Let it settle everything and leave."""
        self.phase = _Phase.QUITS
        self.command("quit")
        code = await self._ended()
        if code != 0:
            self.failed = f"{self._log}: it quit with code {code}"
        self.application.left("offline")
        self.phase = _Phase.GONE

    async def kill(self, stopped_s: float) -> None:
        """Send SIGSTOP, and SIGKILL `stopped_s` later."""
        assert self._process is not None
        self.phase = _Phase.KILLED
        self._process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(stopped_s)
        self._process.kill()
        await self._ended()
        self.application.left("killed")

    async def _ended(self) -> int:
        assert self._process is not None
        assert self._reading is not None
        await asyncio.wait([self._reading])  # which goes on when this task is cancelled
        self._reading.result()
        return await self._process.wait()

    def check(self) -> None:
        """Raise MeshimError when the process ended by itself, and the error of a task that reads from it."""
        if self._reading is not None and self._reading.done():
            self._reading.result()
        if self.failed is not None:
            raise MeshimError(f"A minimal client ended by itself: {self.failed}.")

    async def give_up(self, problem: str) -> None:
        """Write a problem, and kill the process."""
        self.application.write("note", problem=problem)
        await self.kill(0.0)

    async def end(self) -> None:
        """End the process without a trace in the history."""
        if self._process is not None and self._process.returncode is None:
            self.phase = _Phase.KILLED
            self._process.kill()
            await self._ended()


class MinimalClients:
    """All minimal clients of a run.  Numbers of their processes begin at `first`; `devices` are in their order."""

    def __init__(self, config: ClientsConfig, devices: Sequence[DeviceConfig], folder: Path) -> None:
        self._clients: dict[int, _Client] = {}
        self._config = config
        self._folder = folder
        self._devices = devices
        self._random = Random(f"minimal {config.seed}")
        self._start, self._stop = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def log_in(self, writer: HistoryWriter) -> ClientsConfig:
        """Start all clients; return the configuration with their devices once all were online.

        Raises MeshimError when one does not come online.
        """
        for device in self._devices:
            journal = Journal(self._config.journal_of(device.process), self._config.start)
            friends = self._config.friends[device.user]
            application = MinimalApplication(device, friends, journal, self._config.seed)
            client = _Client(self._command(device), self._folder / f"process-{device.process}.log", application)
            self._clients[device.process] = client
            await client.start()
        devices = [await self._logged_in(device, writer) for device in self._devices]
        self._tasks = [asyncio.create_task(self._come_and_go(client)) for client in self._clients.values()]
        self._tasks.append(asyncio.create_task(self._send()))
        return msgspec.structs.replace(self._config, devices=(*self._config.devices, *devices))

    def _command(self, device: DeviceConfig) -> list[str]:
        language = language_of(device.transport)
        replacements = REPLACEMENTS.get(self._config.mutation, {}).get(language)
        command = minimal_example.command(language, self._folder / language, replacements)
        return [*command, self._config.api, device.user, self._config.password, device.state]

    async def _logged_in(self, device: DeviceConfig, writer: HistoryWriter) -> DeviceConfig:
        client = self._clients[device.process]
        try:
            async with asyncio.timeout(_LOGIN_S):
                device = msgspec.structs.replace(device, device_id=await client.login)
        except TimeoutError:
            raise MeshimError(f"The minimal client of {device.user} did not come online: {client.failed}.") from None
        state = Path(device.state).name
        writer.write({"type": "device", "user": device.user, "device": device.device_id, "state": state})
        client.logged_in(device)
        return device

    # ---------------------------------------------------------------- what the users do

    def start(self) -> None:
        """Send messages, come and go from now on."""
        self._start.set()

    def stop(self) -> None:
        """Send no more, and stay."""
        self._stop.set()

    async def _come_and_go(self, client: _Client) -> None:
        await self._start.wait()
        while not await self._stopped_within(self._random.expovariate(1 / ONLINE_S)):
            if client.phase is _Phase.RUNS:
                await client.quit()
                await self._stopped_within(self._random.expovariate(1 / OFFLINE_S))
                await client.start()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass
        return self._stop.is_set()

    async def _send(self) -> None:
        """Send this share of the configured rate."""
        await self._start.wait()
        rate = self._config.rate * len(self._devices) / (len(self._config.devices) + len(self._devices))
        due, last = 0.0, time.monotonic()
        while not await self._stopped_within(_STEP_S):
            now = time.monotonic()
            due, last = min(due + rate * (now - last), rate * _BACKLOG_S), now
            free = [c for c in self._clients.values() if c.phase is _Phase.RUNS and not c.application.busy]
            while free and due >= 1:
                client = free.pop(self._random.randrange(len(free)))
                client.command(client.application.compose())
                due -= 1

    # ---------------------------------------------------------------- faults and the end

    def living(self) -> list[int]:
        """Return the numbers of the processes that run and whose user does not quit."""
        return [number for number, client in self._clients.items() if client.phase is _Phase.RUNS]

    def __contains__(self, number: int) -> bool:
        return number in self._clients

    async def kill(self, number: int, stopped_s: float) -> None:
        """Send SIGSTOP, and SIGKILL `stopped_s` later."""
        await self._clients[number].kill(stopped_s)

    async def restart(self, number: int) -> None:
        await self._clients[number].start()

    def check(self) -> None:
        """Raise MeshimError with the last words of a client that ended by itself, or the error of a task here."""
        for client in self._clients.values():
            client.check()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def disconnect(self, within_s: float) -> None:
        """Let all clients quit.  One that has not settled everything and left `within_s` later has a problem."""
        if not self._clients:
            return
        await asyncio.wait(self._tasks, timeout=within_s)  # who was about to quit quits, and comes back
        clients = [client for client in self._clients.values() if client.phase is _Phase.RUNS]
        leaving = [asyncio.create_task(client.quit()) for client in clients]
        if leaving:
            await asyncio.wait(leaving, timeout=within_s)
        for task in (*self._tasks, *leaving):
            task.cancel()
        for client in self._clients.values():
            if client.phase is _Phase.QUITS:
                await client.give_up(f"it did not quit within {within_s:g} s")
            client.check()

    async def end(self) -> None:
        """End the processes that still run, without `killed` records."""
        for task in self._tasks:
            task.cancel()
        for client in self._clients.values():
            await client.end()
