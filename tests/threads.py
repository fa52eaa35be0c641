"""The threads of a process as the kernel sees them: what it does after a signal or a line of output takes its time."""

import time
from contextlib import suppress
from pathlib import Path

_DEADLINE_S = 30.0


def wait_stopped(pid: int) -> None:
    """Wait until every thread has stopped after a SIGSTOP.

    The thread that gets the signal tells the others, once it has a core; until then they go on.
    """
    _wait(pid, "TtZX", "stop")


def wait_idle(pid: int) -> None:
    """Wait until every thread waits for something: after its last line of output, for its input, say."""
    _wait(pid, "STtZX", "come to rest")


def _wait(pid: int, states: str, what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while any(state not in states for state in _states(pid)):
        assert time.monotonic() < deadline, f"process {pid} does not {what}"
        time.sleep(0.001)


def _states(pid: int) -> list[str]:
    """As `ps` shows them: R runs or would, S waits, T is stopped."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states
