"""Whether an error means that the system has run out of something: it passes, so the work is tried again later."""

import errno

_NUMBERS = frozenset(
    {
        errno.EAGAIN,  # no process or thread more, where a call does not wait for anything else
        errno.EDQUOT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
    }
)
_NO_THREAD = "can't start new thread"
"""The text of the RuntimeError of `threading`, which has no class or number of its own."""


def is_exhausted(error: BaseException) -> bool:
    """Whether disk, descriptors, processes, threads or memory are used up."""
    if isinstance(error, RuntimeError):
        return str(error) == _NO_THREAD
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _NUMBERS
