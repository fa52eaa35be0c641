"""Child processes that never outlive their parent.

`kill -9` of a supervisor gives it no chance to end its children, so the kernel does it:
`prctl(PR_SET_PDEATHSIG)`, set between fork and exec.  The signal belongs to the *thread*
that forked: spawn children from the main thread only.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None]:
    """Return what to pass as `preexec_fn`: the child is killed when the calling process ends, however it ends."""
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: after fork nothing may be imported
    parent = os.getpid()

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return ask_the_kernel
