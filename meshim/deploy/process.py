"""A child process, watched through its pidfd.

asyncio's own subprocesses need a thread (in Python 3.11) or a descriptor after the fork.  Where there is none left, it
raises and leaves a process that nothing waits for: a second server on one data folder.  Here such a process is killed
before the error is raised.
"""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from typing import IO, Self


class Process:
    """A process that was started; call its methods in the event loop that it was started in."""

    def __init__(self, process: "subprocess.Popen[bytes]", pidfd: int) -> None:
        self.pid = process.pid
        self._process = process
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._loop.add_reader(pidfd, self._ended)

    @classmethod
    def start(cls, command: Sequence[str], *, log: IO[bytes], reads_stdout: bool, pass_fds: tuple[int, ...]) -> Self:
        """Start a process in a session of its own; raises OSError, and then there is none.

        It writes into `log`.  What it prints goes there too, unless `stdout` will be called (`reads_stdout`).
        """
        process = subprocess.Popen(  # noqa: S603  (a server or a role: `Child._command`)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if reads_stdout else log,
            stderr=log,
            start_new_session=True,  # Ctrl-C must reach the supervisor alone, which stops its children in order
            pass_fds=pass_fds,
        )
        try:
            return cls(process, os.pidfd_open(process.pid))
        except OSError:
            process.kill()
            process.communicate()
            raise

    async def stdout(self) -> asyncio.StreamReader:
        """Return what it prints, once."""
        assert self._process.stdout is not None, "it was started without"
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await self._loop.connect_read_pipe(lambda: protocol, self._process.stdout)
        return reader

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end; return the code."""
        await self._gone.wait()
        assert self._process.returncode is not None
        return self._process.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL; nothing happens when the process has ended."""
        self._process.kill()

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()  # at once: the pidfd is readable when it has ended
        self._gone.set()
