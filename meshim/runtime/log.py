"""The log of a process: one event per line on stderr, `time level role name event key=value ...`.

::

    log = log.get("connector", "c1")
    log.warning("lease lost", after_s=3.2)
    # 2024-05-17T09:30:00.123Z warning connector c1 lease-lost after_s=3.2

Chat messages are not logged; frequent events are counted.  Events that may come with every request while a backend
is down are limited to `BURST_LINES` lines of one event in `BURST_S` seconds; the next line of that event says in
`left_out` how many were dropped.

Logging never raises: the disk under the log may be full, and the mesh goes on.  The next line that can be written says
in `not_written` how many could not.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

BURST_LINES = 20
BURST_S = 60.0

_BARE = re.compile(r"[\w.:/@+-]+\Z", re.ASCII)


class _Burst(NamedTuple):
    """How many lines of one event were written and left out since a time."""

    since: float
    written: int
    left_out: int


class Log:
    """The log of one role.  Each line is flushed, so that the last one before a crash is there."""

    def __init__(
        self, role: str, name: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` returns seconds of a monotonic clock; `stream` is stderr by default."""
        self._source = f"{role} {name}"
        self._stream = stream
        self._clock = clock
        self._bursts: dict[str, _Burst] = {}  # bounded by the number of events in the code
        self._not_written = 0

    def info(self, event: str, /, **values: object) -> None:
        """Log an event that is rare and normal in a healthy mesh."""
        self._write("info", event, values)

    def warning(self, event: str, /, **values: object) -> None:
        """Log a fault that meshim handles by itself."""
        self._write("warning", event, values)

    def error(self, event: str, /, **values: object) -> None:
        """Log a fault that the operator has to look at."""
        self._write("error", event, values)

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        left_out = self._left_out(event)
        if left_out is None:
            return
        if left_out:
            values = values | {"left_out": left_out}
        if self._not_written:
            values = values | {"not_written": self._not_written}
        now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        pairs = "".join(f" {key}={_value(value)}" for key, value in values.items())
        line = f"{now}Z {level} {self._source} {event.replace(' ', '-')}{pairs}\n"
        try:
            # One write per line, because several processes may share the file.
            print(line, end="", file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError):  # a full disk, a pipe without a reader, a stream that is closed
            self._not_written += 1
        else:
            self._not_written = 0

    def _left_out(self, event: str) -> int | None:
        """Return how many lines of this event were left out before this one; None when this one is left out too."""
        now = self._clock()
        since, written, left_out = self._bursts.get(event, _Burst(now, 0, 0))
        if now - since >= BURST_S:
            since, written = now, 0
        if written >= BURST_LINES:
            self._bursts[event] = _Burst(since, written, left_out + 1)
            return None
        self._bursts[event] = _Burst(since, written + 1, 0)
        return left_out


def get(role: str, name: str) -> Log:
    """Return the log of a role, on stderr."""
    return Log(role, name)


def _value(value: object) -> str:
    """Return the value on one line, quoted as in JSON unless it is one word."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _BARE.match(text) else json.dumps(text)
