"""One process that is kept running: started, watched, started again when it ends, stopped.

A child is ready when it says so (a role prints one line) or answers (a backend is probed).  The
first start has to succeed, so that a mistake is told at once; after that a child that ends is
started again, for ever, with a growing pause.
"""

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

from meshim.deploy.embedded import Embedded
from meshim.deploy.pdeathsig import die_with_parent
from meshim.deploy.probe import probe
from meshim.deploy.state import Phase
from meshim.errors import BackendUnavailable, MeshimError
from meshim.runtime.log import get as get_log

_READY_S = 30.0
_PROBE_EVERY_S = 0.02
_KILL_S = 5.0
_PAUSE_FIRST_S = 0.2
_PAUSE_MAX_S = 10.0
_STEADY_S = 30.0
"""Whoever ran so long had a good start: the next pause is the first again."""
_PORT_ATTEMPTS = 3
_LOG_MAX_BYTES = 16 << 20


class Child(ABC):
    """A process under supervision.  Everything here happens in the event loop of the main thread (see pdeathsig.py)."""

    def __init__(self, kind: str, name: str, log: Path, lock: int, changed: Callable[[], None]) -> None:
        """`lock` is a descriptor that the process inherits; `changed` is called when any of the attributes below is."""
        self.kind = kind
        self.name = name
        self.state = Phase.STOPPED
        self.endpoint: str | None = None
        self.restarts = 0
        self._log = log
        self._events = get_log(kind, name)
        self._lock = lock
        self._changed = changed
        self._process: Process | None = None
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and return when it is ready; raise `MeshimError` with the reason when it does not get there."""
        self._become(Phase.STARTING)
        said_before = self._rotate_log()
        command = self._command()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *die_with_parent(command),
                stdin=DEVNULL,
                stdout=PIPE if self._speaks else log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends its children in order
                pass_fds=(self._lock,),
            )
        self._started_at = time.monotonic()
        try:
            async with asyncio.timeout(_READY_S):
                self.endpoint = await self._until_ready(self._process)
        except TimeoutError:
            reason = f"it was not ready within {_READY_S:g} s"
        else:
            if self.endpoint is not None:
                self._become(Phase.RUNNING)
                return
            reason = self._last_words(said_before) or f"it ended with code {await self._process.wait()}"
        await self.stop(_KILL_S)
        raise MeshimError(f"{self.kind} {self.name} did not start: {reason.rstrip('.')} (log: {self._log}).")

    async def keep(self) -> None:
        """Start it again whenever it ends; returns only by cancellation."""
        pause_s = _PAUSE_FIRST_S
        while True:
            assert self._process is not None
            await self._process.wait()
            if time.monotonic() - self._started_at > _STEADY_S:
                pause_s = _PAUSE_FIRST_S
            self.restarts += 1
            self._become(Phase.RESTARTING)
            self._events.warning("ended", code=self._process.returncode, starts_again_in_s=pause_s, log=self._log)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            try:
                await self.start()
            except MeshimError as error:
                self._events.error("did not start", reason=error.sentence)

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, wait, and end it after `grace_s`; return when it is gone."""
        if self._process is not None and self._process.returncode is None:
            if self.state is Phase.RUNNING:
                self._become(Phase.STOPPING)
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._become(Phase.STOPPED)

    @property
    @abstractmethod
    def _speaks(self) -> bool:
        """Whether its standard output is read here; otherwise it goes to the log."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What to run; asked before each start."""

    @abstractmethod
    async def _until_ready(self, process: Process) -> str | None:
        """Return its endpoint when it is ready, None when it ended before."""

    def _become(self, state: Phase) -> None:
        self.state = state
        self._changed()

    def _rotate_log(self) -> int:
        """Keep the log bounded; return where this start's lines begin."""
        try:
            size = self._log.stat().st_size
        except FileNotFoundError:
            return 0
        if size <= _LOG_MAX_BYTES:
            return size
        self._log.replace(self._log.with_suffix(".log.1"))
        return 0

    def _last_words(self, since: int) -> str:
        """The last line that it logged since then: the reason why it ended."""
        with self._log.open("rb") as log:
            log.seek(max(since, os.fstat(log.fileno()).st_size - 4_096))
            lines = log.read().decode(errors="replace").split("\n")
        spoken = [line.strip() for line in lines if line.strip()]
        return spoken[-1].removeprefix("meshim: ") if spoken else ""


class RoleChild(Child):
    """A connector, transfer, writer or rest: prints `ready ROLE NAME ENDPOINT`."""

    _speaks = True

    def __init__(
        self, kind: str, name: str, command: list[str], log: Path, lock: int, changed: Callable[[], None]
    ) -> None:
        super().__init__(kind, name, log, lock, changed)
        self._arguments = command
        self._listener: asyncio.Task[None] | None = None

    def _command(self) -> list[str]:
        return self._arguments

    async def _until_ready(self, process: Process) -> str | None:
        assert process.stdout is not None
        self.endpoint = None
        while line := await process.stdout.readline():
            match line.decode(errors="replace").split():
                case ["ready", self.kind, self.name, endpoint]:
                    # Nothing else is expected there, but a full pipe would stop the role.
                    self._listener = asyncio.create_task(_discard(process.stdout))
                    return endpoint
        await process.wait()
        return None


class BackendChild(Child):
    """An embedded server: ready when it answers under its URL."""

    _speaks = False

    def __init__(self, backend: Embedded, log: Path, lock: int, changed: Callable[[], None]) -> None:
        super().__init__("backend", backend.name, log, lock, changed)
        self._backend = backend

    async def start(self) -> None:
        """As for any child, but a port may be taken between our choice and its bind: then it is chosen anew."""
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            try:
                await super().start()
            except MeshimError:
                if attempts_left == 0:
                    raise
            else:
                break
        self._backend.settle()

    def _command(self) -> list[str]:
        return self._backend.command()

    async def _until_ready(self, process: Process) -> str | None:
        while process.returncode is None:
            url = self._backend.url(process.pid)
            if url is not None and await _answers(url):
                return url
            await asyncio.sleep(_PROBE_EVERY_S)
        return None


async def _answers(url: str) -> bool:
    try:
        await probe(url, timeout_s=1.0)
    except BackendUnavailable:
        return False
    return True


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass
