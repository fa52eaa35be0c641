"""Processes that never outlive the one that started them.

`kill -9` gives a supervisor no chance to end its children, so the kernel does it:
`prctl(PR_SET_PDEATHSIG)`.  That has to be asked for by the child itself.  `preexec_fn` is not safe
beside threads, so this file is also a program that asks, and then becomes the command::

    python pdeathsig.py PARENT_PID COMMAND [ARGUMENT ...]

The signal belongs to the *thread* that forked: start children from the main thread.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(command: list[str]) -> list[str]:
    """Return the command line that runs `command` (same pid) until this process ends, however it ends."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _main(parent: str, *command: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before we asked
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  (that is the point)


if __name__ == "__main__":
    _main(*sys.argv[1:])
