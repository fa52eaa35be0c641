"""The processes of players of a chaos run: started, told what to do, killed, started again."""

import asyncio
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from meshim.client.rest import Api
from meshim.client.session import Credentials, Session
from meshim.client.state import StateFile
from meshim.deploy.pdeathsig import die_with_parent
from meshim.errors import MeshimError
from scripts.harness.chaos.observer import Follower
from scripts.harness.chaos.users import Cast, Part
from scripts.harness.history.format import HistoryWriter
from scripts.harness.history.journal import Records

_CLIENT_PROCESS = (sys.executable, "-P", "-m", "scripts.harness.chaos.client_process")
_REQUESTS = 8
"""To REST at a time while everybody is enrolled."""


async def enrol(cast: Cast, history: HistoryWriter) -> Cast:
    """Give everybody an account, friends, and devices that the mesh knows; return the cast with their ids.

    Raises MeshimError when REST refuses something.
    """
    users = list(cast.friends)
    async with Api(cast.api) as api:
        for imported in await api.import_users([(user, cast.password) for user in users]):
            if imported.user is None:
                raise MeshimError(f"{imported.name} cannot be registered: {imported.detail.rstrip('.')}.")
    for user in users:
        history.write({"type": "user", "user": user})

    async def befriend(user: str) -> None:
        async with Api(cast.api) as api:
            await api.login(user, cast.password)
            for friend in cast.friends[user]:
                await api.request(friend)

    numbered: dict[tuple[str, str], Part] = {}

    async def log_in(part: Part) -> None:
        state = await asyncio.to_thread(StateFile, Path(part.state))
        try:
            async with Api(cast.api) as api:
                credentials = Credentials(part.user, cast.password, part.device)
                identity = await Session(api, state, credentials).open()
        finally:
            await asyncio.to_thread(state.close)
        device = str(identity.device)
        numbered[part.user, part.device] = msgspec.structs.replace(part, device_id=device)
        state_name = f"{identity.epoch:016x}"
        history.write({"type": "device", "user": part.user, "device": device, "state": state_name, "name": part.device})

    await _each(users, befriend)
    await _each(cast.parts, log_in)
    parts = tuple(numbered[part.user, part.device] for part in cast.parts)
    return msgspec.structs.replace(cast, parts=parts)


async def _each(items: Iterable[object], do: Callable[..., Awaitable[None]]) -> None:
    todo = iter(list(items))

    async def work() -> None:
        for item in todo:
            await do(item)

    async with asyncio.TaskGroup() as workers:
        for _ in range(_REQUESTS):
            workers.create_task(work())


class Troupe:
    """The processes that play a cast."""

    def __init__(self, cast: Cast, folder: Path, follower: Follower) -> None:
        self._cast = cast
        self._folder = folder
        self._follower = follower
        self._processes: dict[int, Process] = {}
        self._commands: list[str] = []
        self._file = folder / "cast.json"
        self._file.write_bytes(msgspec.json.format(msgspec.json.encode(cast)))

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
            await self._tell(number, command_line)

    async def tell(self, command: str) -> None:
        """Tell every process, and those that are started later."""
        self._commands.append(command)
        for number in self._processes:
            await self._tell(number, command)

    async def _tell(self, number: int, command: str) -> None:
        stdin = self._processes[number].stdin
        assert stdin is not None
        stdin.write(f"{command}\n".encode())
        await stdin.drain()

    def living(self) -> list[int]:
        return [number for number, process in self._processes.items() if process.returncode is None]

    def check(self, away: Iterable[int]) -> None:
        """Raise MeshimError with its last words when a process has ended that nobody killed or told to."""
        if "leave" in self._commands:
            return
        for number, process in self._processes.items():
            if process.returncode is not None and number not in away:
                log = self._folder / f"process-{number}.log"
                said = log.read_text(errors="replace").strip().splitlines() or [f"code {process.returncode}"]
                raise MeshimError(f"Process {number} of the players ended by itself ({log}): {said[-1]}.")

    async def kill(self, number: int, hangs_s: float) -> None:
        """SIGKILL, after it stood still for a while; its devices are written down as killed once it is gone."""
        process = self._processes[number]
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(hangs_s)
        process.kill()
        await process.wait()
        self._follower.catch_up()
        records = Records(self._cast.file_of(number), self._cast.start)
        users = {part.device_id: part.user for part in self._cast.parts}
        for device in sorted(self._follower.online.get(number, ())):
            records.write("killed", user=users[device], device=device)
        records.close()

    async def start_again(self, number: int) -> None:
        await self._start(number)

    async def leave(self, within_s: float) -> None:
        """Have everybody go offline politely.  Raises MeshimError when a process does not get there."""
        await self.tell("leave")
        deadline = time.monotonic() + within_s
        for number, process in self._processes.items():
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    code = await process.wait()
            except TimeoutError:
                raise MeshimError(f"Process {number} of the players did not leave within {within_s:g} s.") from None
            if code != 0:
                raise MeshimError(f"Process {number} of the players failed: see {self._folder}/process-{number}.log.")

    async def end(self) -> None:
        """Kill what is left, without a word in the history."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
