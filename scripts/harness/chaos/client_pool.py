"""Seeds the users of a chaos run, and starts, commands, kills and restarts its client processes."""

import asyncio
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from meshim.client.rest import Api
from meshim.client.session import Credentials
from meshim.deploy.pdeathsig import die_with_parent
from meshim.errors import MeshimError
from scripts.harness.chaos.minimal_clients import MinimalClients
from scripts.harness.chaos.observer import Observer
from scripts.harness.chaos.users import ClientsConfig, DeviceConfig
from scripts.harness.clients.devices import for_each, log_in_device
from scripts.harness.history.format import HistoryWriter
from scripts.harness.history.journal import Journal

_CLIENT_PROCESS = (sys.executable, "-P", "-m", "scripts.harness.chaos.client_process")
_REQUESTS_MAX = 8
"""Requests to REST at a time."""


async def seed_users(config: ClientsConfig, history: HistoryWriter) -> ClientsConfig:
    """Register the users with their friendships and devices; return the configuration with the ids of devices.

    Raises MeshimError when REST refuses a user.
    """
    users = list(config.friends)
    async with Api(config.api) as api:
        for imported in await api.import_users([(user, config.password) for user in users]):
            if imported.user is None:
                raise MeshimError(f"{imported.name} cannot be registered: {imported.detail.rstrip('.')}.")
    for user in users:
        history.write({"type": "user", "user": user})
    ids: dict[DeviceConfig, str] = {}

    async def befriend(user: str) -> None:
        async with Api(config.api) as api:
            await api.login(user, config.password)
            for friend in config.friends[user]:
                await api.request(friend)

    async def log_in(device: DeviceConfig) -> None:
        async with Api(config.api) as api:
            credentials = Credentials(device.user, config.password, device.name)
            identity = await log_in_device(api, credentials, Path(device.state))
        ids[device] = str(identity.device)
        record = {"type": "device", "user": device.user, "device": ids[device], "state": f"{identity.epoch:016x}"}
        history.write({**record, "name": device.name})

    await for_each(users, befriend, _REQUESTS_MAX)
    await for_each(config.devices, log_in, _REQUESTS_MAX)
    devices = tuple(msgspec.structs.replace(device, device_id=ids[device]) for device in config.devices)
    return msgspec.structs.replace(config, devices=devices)


class ClientPool:
    """The client processes of a run: those of the client library, and `minimal`, which run already."""

    def __init__(self, config: ClientsConfig, folder: Path, observer: Observer, minimal: MinimalClients) -> None:
        self._config = config
        self._folder = folder
        self._observer = observer
        self._minimal = minimal
        self._processes: dict[int, Process] = {}
        self._commands: list[str] = []
        self._file = folder / "clients.json"
        self._file.write_bytes(msgspec.json.format(msgspec.json.encode(config)))

    async def start(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            await self._start(number)

    async def _start(self, number: int) -> None:
        with (self._folder / f"process-{number}.log").open("ab") as log:
            command = [*_CLIENT_PROCESS, str(self._file), str(number)]
            self._processes[number] = await asyncio.create_subprocess_exec(
                *die_with_parent(command), stdin=PIPE, stdout=DEVNULL, stderr=log, start_new_session=True
            )
        for command_line in self._commands:
            await self._send(number, command_line)

    async def send(self, command: str) -> None:
        """Send a command to every process, also to those that start later."""
        self._commands.append(command)
        if command == "start":
            self._minimal.start()
        if command == "stop":
            self._minimal.stop()
        for number in self._processes:
            await self._send(number, command)

    async def _send(self, number: int, command: str) -> None:
        stdin = self._processes[number].stdin
        assert stdin is not None
        stdin.write(f"{command}\n".encode())
        await stdin.drain()

    def living(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the processes that run: of the client library, and minimal clients."""
        running = [number for number, process in self._processes.items() if process.returncode is None]
        return running, self._minimal.living()

    def check(self, away: Iterable[int]) -> None:
        """Raise MeshimError with the last line of a process that ended by itself; `away` are the killed ones."""
        self._minimal.check()
        if "disconnect" in self._commands:
            return
        for number, process in self._processes.items():
            if process.returncode is not None and number not in away:
                log = self._folder / f"process-{number}.log"
                last_words = log.read_text(errors="replace").strip().splitlines() or [f"code {process.returncode}"]
                raise MeshimError(f"Client process {number} ended by itself ({log}): {last_words[-1]}.")

    async def kill(self, number: int, stopped_s: float) -> None:
        """Send SIGSTOP, and SIGKILL `stopped_s` later; then write `killed` for each device that was online."""
        if number in self._minimal:
            await self._minimal.kill(number, stopped_s)
            return
        process = self._processes[number]
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(stopped_s)
        process.kill()
        await process.wait()
        self._observer.catch_up()
        journal = Journal(self._config.journal_of(number), self._config.start)
        users = {device.device_id: device.user for device in self._config.devices}
        for device in sorted(self._observer.online.get(number, ())):
            journal.write("killed", user=users[device], device=device)
        journal.close()

    async def restart(self, number: int) -> None:
        await (self._minimal.restart(number) if number in self._minimal else self._start(number))

    async def disconnect(self, within_s: float) -> None:
        """Make all clients disconnect cleanly; raises MeshimError when a process fails or takes over `within_s`."""
        await self._minimal.disconnect(within_s)
        await self.send("disconnect")
        deadline = time.monotonic() + within_s
        for number, process in self._processes.items():
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    code = await process.wait()
            except TimeoutError:
                raise MeshimError(f"Client process {number} did not disconnect within {within_s:g} s.") from None
            if code != 0:
                raise MeshimError(f"Client process {number} failed: see {self._folder}/process-{number}.log.")

    async def kill_all(self) -> None:
        """Kill the processes that still run, without `killed` records."""
        await self._minimal.end()
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
