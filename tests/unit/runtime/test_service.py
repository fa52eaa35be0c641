"""A process prints its ready line and ends: 0 after a signal, 1 for a backend, 70 for a bug or a slow shutdown."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROLOGUE = """
import asyncio, sys, time
import uvloop
from meshim.errors import BackendUnavailable
from meshim.runtime.driver import Driver
from meshim.runtime.service import Service

async def fail(error):
    raise error

def code_of(module):  # a function of that module, which divides by zero
    return eval("lambda *_: 1 // 0", {{"__name__": module}})

async def main():
    async with Service("transfer", "t1", shutdown_s={shutdown_s}) as service:
{body}

uvloop.run(main())
"""


class Process:
    """A process that runs a `Service`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def line(self) -> str:
        """The next line on stdout."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and what it wrote to stderr."""
        _, log = self._process.communicate(timeout=20)
        return self._process.returncode, log


@contextmanager
def started(body: str, shutdown_s: float = 5.0) -> Iterator[Process]:
    """Run a process whose code within `async with Service` is `body`."""
    code = PROLOGUE.format(shutdown_s=shutdown_s, body=textwrap.indent(textwrap.dedent(body), " " * 8))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def end_of(body: str, shutdown_s: float = 5.0) -> tuple[int, str]:
    """Run such a process to its end."""
    with started(body, shutdown_s) as process:
        return process.end()


WAIT = """
service.ready("tcp://127.0.0.1:1234")
await service.stopping()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_the_process_with_0(number: signal.Signals) -> None:
    with started(WAIT + "print('drained', flush=True)") as process:
        assert process.line() == "ready transfer t1 tcp://127.0.0.1:1234\n"
        process.signal(number)
        assert process.line() == "drained\n"
        code, log = process.end()
    assert code == 0
    assert f"stopping signal={number.name}" in log
    assert "Traceback" not in log


def test_background_work_is_cancelled_at_the_end() -> None:
    work = """
        async def forever():
            try:
                await asyncio.Event().wait()
            finally:
                print("cancelled", flush=True)
        service.start(forever())
    """
    with started(textwrap.dedent(work) + WAIT) as process:
        process.line()
        process.signal(signal.SIGTERM)
        assert process.line() == "cancelled\n"
        assert process.end()[0] == 0


@pytest.mark.parametrize(
    "bug",
    [
        "1 // 0",
        "service.start(fail(ZeroDivisionError()))",
        "asyncio.get_running_loop().call_soon(code_of('meshim.runtime.bug'))",
        "asyncio.get_running_loop().call_soon(lambda: code_of('meshim')())",
        "task = asyncio.ensure_future(fail(ZeroDivisionError())); service.watch(task)",
    ],
    ids=["body", "background", "callback", "called by a library", "watched"],
)
def test_a_bug_anywhere_ends_the_process_with_70_and_a_traceback(bug: str) -> None:
    code, log = end_of(bug + WAIT + "print('must not drain')")
    assert code == 70
    assert "ZeroDivisionError" in log
    assert log.count("Traceback") == 1
    assert "error transfer t1 crashed" in log


@pytest.mark.parametrize(
    "noise",
    [
        "asyncio.get_running_loop().call_soon(code_of('redis.asyncio.connection'))",
        "asyncio.get_running_loop().call_exception_handler({'message': 'Task was destroyed but it is pending!'})",
        "asyncio.ensure_future(fail(ZeroDivisionError())); import gc; await asyncio.sleep(0); gc.collect()",
    ],
    ids=["callback", "message", "future"],
)
def test_what_a_library_leaves_to_the_loop_is_logged_and_ends_nothing(noise: str) -> None:
    with started(noise + WAIT) as process:
        assert process.line() == "ready transfer t1 tcp://127.0.0.1:1234\n"
        process.signal(signal.SIGTERM)
        code, log = process.end()
    assert code == 0
    assert log.count("error transfer t1 exception-of-a-library-in-the-event-loop message=") == 1
    assert ("ZeroDivisionError" in log) == ("message" not in noise)


def test_a_bug_while_draining_ends_the_process_with_70() -> None:
    drain = "asyncio.get_running_loop().call_soon(code_of('meshim.bug')); await asyncio.Event().wait()"
    with started(WAIT + drain) as process:
        process.line()
        process.signal(signal.SIGTERM)
        code, log = process.end()
    assert code == 70
    assert "ZeroDivisionError" in log


def test_an_unavailable_backend_ends_the_process_with_1_and_its_error() -> None:
    code, log = end_of('service.start(fail(BackendUnavailable("Redis does not answer")))' + WAIT)
    assert code == 1
    assert "BackendUnavailable: Redis does not answer" in log
    assert "crashed" not in log


@pytest.mark.parametrize("hang", ["time.sleep(60)", "await asyncio.Event().wait()"], ids=["loop", "task"])
def test_a_shutdown_that_hangs_is_ended(hang: str) -> None:
    with started(WAIT + hang, shutdown_s=0.2) as process:
        process.line()
        process.signal(signal.SIGTERM)
        code, log = process.end()
    assert code == 70
    assert "shutdown-took-too-long" in log


def test_a_crash_that_hangs_is_ended() -> None:
    code, log = end_of(
        """
        service.start(fail(ZeroDivisionError()))
        try:
            await service.stopping()
        finally:
            await asyncio.Event().wait()
        """,
        shutdown_s=0.2,
    )
    assert code == 70
    assert "shutdown-took-too-long" in log


def test_the_descriptor_limit_is_raised_as_far_as_allowed() -> None:
    code, log = end_of("""
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard, 1 << 20) or hard == resource.RLIM_INFINITY
    """)
    assert code == 0, log
