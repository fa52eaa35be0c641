"""Child processes that the kernel kills when their parent dies: `prctl(PR_SET_PDEATHSIG)`.

A supervisor that gets `kill -9` cannot end its children itself.  The child has to make the system call, and
`preexec_fn` is not safe beside threads.  So this file is also a program that makes the call and then becomes the
command::

    python pdeathsig.py PARENT_PID COMMAND [ARGUMENT ...]

The signal belongs to the *thread* that forked: start children from the main thread.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(command: list[str]) -> list[str]:
    """Return a command line that runs `command` under the same pid, and dies with this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _main(parent: str, *command: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # the parent died before the call
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  (that is the point)


if __name__ == "__main__":
    _main(*sys.argv[1:])
