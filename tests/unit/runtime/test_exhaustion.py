"""What passes by itself is told from a bug."""

import errno

import pytest
import zmq

from meshim.runtime.exhaustion import is_exhausted


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (zmq.ZMQError(errno.EMFILE), True),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("dictionary changed size during iteration"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (zmq.ZMQError(errno.EINVAL), False),
        (ValueError(), False),
    ],
)
def test_errors(error: Exception, expected: bool) -> None:
    assert is_exhausted(error) is expected
