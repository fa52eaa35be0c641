"""One supervised process: started, watched, restarted when it ends, stopped.

A role is ready when it prints its `ready` line, a backend when it answers a probe.  The first start has to succeed, so
that the operator sees a mistake at once.  After it a child that ends is restarted, without limit, with a growing
pause.
"""

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from meshim.deploy.embedded import Embedded
from meshim.deploy.pdeathsig import die_with_parent
from meshim.deploy.probe import probe
from meshim.deploy.process import Process
from meshim.deploy.state import Phase
from meshim.errors import BackendUnavailable, MeshimError, UsageError
from meshim.runtime.log import get as get_log

_READY_S = 30.0
_PROBE_EVERY_S = 0.02
_KILL_S = 5.0
_PAUSE_FIRST_S = 0.2
_PAUSE_MAX_S = 10.0
_STEADY_S = 30.0
"""A child that ran this long started well: its next pause is `_PAUSE_FIRST_S` again."""
_PORT_ATTEMPTS = 3
_EXIT_USAGE = 2
"""The exit code of a role that a person can correct (cli/main.py)."""
_LOG_MAX_BYTES = 16 << 20


class Child(ABC):
    """A supervised process.  Use it in the event loop of the main thread only (see pdeathsig.py)."""

    def __init__(self, kind: str, name: str, log: Path, lock: int, changed: Callable[[], None]) -> None:
        """`lock` is a descriptor that the process inherits; `changed` is called when an attribute below changes."""
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
        """The pid of the process; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process and return when it is ready.

        Raises `MeshimError` with the reason when it is not; `UsageError` when it ended because of wrong usage.
        """
        self._set_state(Phase.STARTING)
        self._started_at = time.monotonic()  # also of a start that fails: the next pause must be longer
        try:
            reason = await self._reason_not_started()
        except OSError as error:  # the disk is full, or a limit of processes or descriptors is reached: it may pass
            reason = str(error)
        if reason is None:
            self._set_state(Phase.RUNNING)
            return
        await self.stop(_KILL_S)
        code = self._process.returncode if self._process is not None else None
        kind = UsageError if self._prints_ready and code == _EXIT_USAGE else MeshimError
        raise kind(f"The {self.kind} {self.name} did not start: {reason.rstrip('.')} (log: {self._log}).")

    async def _reason_not_started(self) -> str | None:
        """Start the process; return None when it is ready, else why it is not."""
        log_offset = self._rotate_log()
        command = self._command()
        with self._log.open("ab") as log:
            self._process = Process.start(
                die_with_parent(command), log=log, reads_stdout=self._prints_ready, pass_fds=(self._lock,)
            )
        try:
            async with asyncio.timeout(_READY_S):
                self.endpoint = await self._until_ready(self._process)
        except TimeoutError:
            return f"it was not ready within {_READY_S:g} s"
        if self.endpoint is not None:
            return None
        return self._last_log_line(log_offset) or f"it ended with code {await self._process.wait()}"

    async def supervise(self) -> None:
        """Restart the process whenever it ends, until cancelled."""
        pause_s = _PAUSE_FIRST_S
        while True:
            assert self._process is not None
            await self._process.wait()
            if time.monotonic() - self._started_at > _STEADY_S:
                pause_s = _PAUSE_FIRST_S
            self.restarts += 1
            self._set_state(Phase.RESTARTING)
            self._events.warning("ended", code=self._process.returncode, starts_again_in_s=pause_s, log=self._log)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            try:
                await self.start()
            except MeshimError as error:
                self._events.error("did not start", reason=error.sentence)

    async def stop(self, grace_s: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace_s`; return when the process is gone."""
        if self._process is not None and self._process.returncode is None:
            if self.state is Phase.RUNNING:
                self._set_state(Phase.STOPPING)
            await self._end(self._process, grace_s)
        self._set_state(Phase.STOPPED)

    async def restart(self, grace_s: float) -> None:
        """End the process as `stop` does; `supervise` starts it again."""
        if self._process is not None and self._process.returncode is None:
            await self._end(self._process, grace_s)

    async def _end(self, process: Process, grace_s: float) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    @abstractmethod
    def _prints_ready(self) -> bool:
        """Whether its standard output is read here; otherwise it goes to the log."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line; called before each start."""

    @abstractmethod
    async def _until_ready(self, process: Process) -> str | None:
        """Return its endpoint when it is ready; None when it ended before."""

    def _set_state(self, state: Phase) -> None:
        self.state = state
        self._changed()

    def _rotate_log(self) -> int:
        """Rotate a log above `_LOG_MAX_BYTES`; return the offset at which the lines of this start begin."""
        try:
            size = self._log.stat().st_size
        except FileNotFoundError:
            return 0
        if size <= _LOG_MAX_BYTES:
            return size
        self._log.replace(self._log.with_suffix(".log.1"))
        return 0

    def _last_log_line(self, since: int) -> str:
        """Return the last line that the process logged behind the offset `since`: the reason why it ended."""
        with self._log.open("rb") as log:
            log.seek(max(since, os.fstat(log.fileno()).st_size - 4_096))
            lines = log.read().decode(errors="replace").split("\n")
        filled = [line.strip() for line in lines if line.strip()]
        return filled[-1].removeprefix("meshim: ") if filled else ""


class RoleChild(Child):
    """A connector, transfer, writer or rest: prints `ready ROLE NAME ENDPOINT`."""

    _prints_ready = True

    def __init__(
        self, kind: str, name: str, command: list[str], log: Path, lock: int, changed: Callable[[], None]
    ) -> None:
        super().__init__(kind, name, log, lock, changed)
        self._arguments = command
        self._reader: asyncio.Task[None] | None = None

    def _command(self) -> list[str]:
        return self._arguments

    async def _until_ready(self, process: Process) -> str | None:
        self.endpoint = None
        stdout = await process.stdout()
        while line := await stdout.readline():
            match line.decode(errors="replace").split():
                case ["ready", self.kind, self.name, endpoint]:
                    # No other output is expected, but a full pipe would block the role.
                    self._reader = asyncio.create_task(_discard(stdout))
                    return endpoint
        await process.wait()
        return None


class BackendChild(Child):
    """An embedded server: ready when it answers under its URL."""

    _prints_ready = False

    def __init__(self, backend: Embedded, log: Path, lock: int, changed: Callable[[], None]) -> None:
        super().__init__("backend", backend.name, log, lock, changed)
        self._backend = backend

    async def start(self) -> None:
        """Start as any child does, with another port when one is taken between our choice and its bind."""
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            try:
                await super().start()
            except MeshimError:
                if attempts_left == 0:
                    raise
            else:
                break
        self._backend.keep_port()

    def _command(self) -> list[str]:
        return self._backend.command()

    async def _until_ready(self, process: Process) -> str | None:
        while process.returncode is None:
            url = self._backend.url(process.pid)
            if url is not None and await _is_answering(url):
                return url
            await asyncio.sleep(_PROBE_EVERY_S)
        return None


async def _is_answering(url: str) -> bool:
    try:
        await probe(url, timeout_s=1.0)
    except BackendUnavailable:
        return False
    return True


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass
