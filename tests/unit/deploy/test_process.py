"""A child process: started, read, waited for, and not left behind when it cannot be watched."""

import asyncio
import errno
import os
import signal
import sys
import tempfile

import pytest

from meshim.deploy.process import Process


def started(code: str, *, reads_stdout: bool = False) -> Process:
    with tempfile.TemporaryFile() as log:
        return Process.start([sys.executable, "-c", code], log=log, reads_stdout=reads_stdout, pass_fds=())


async def test_its_output_and_its_code() -> None:
    process = started("print('one'); print('two'); raise SystemExit(3)", reads_stdout=True)
    assert await (await process.stdout()).read() == b"one\ntwo\n"
    assert await process.wait() == 3
    assert process.returncode == 3
    process.kill()  # it has ended: nothing happens


async def test_a_signal_ends_it_and_every_waiter_learns_that() -> None:
    process = started("import time; time.sleep(60)")
    waiting = [asyncio.create_task(process.wait()) for _ in range(3)]
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    assert await asyncio.gather(*waiting) == [-signal.SIGTERM] * 3


async def test_a_program_that_does_not_exist() -> None:
    with tempfile.TemporaryFile() as log, pytest.raises(FileNotFoundError):
        Process.start(["/no/such/program"], log=log, reads_stdout=False, pass_fds=())


async def test_a_process_that_cannot_be_watched_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[int] = []

    def refuse(pid: int, flags: int = 0) -> int:
        forked.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        started("import time; time.sleep(60)", reads_stdout=True)
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)
