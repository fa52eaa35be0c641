"""A process's log: one event per line on stderr, `time level role name event key=value ...`.

::

    log = log.get("connector", "c1")
    log.warning("lease lost", after_s=3.2)
    # 2024-05-17T09:30:00.123Z warning connector c1 lease-lost after_s=3.2

Nothing is logged per message: what happens often is counted, not logged.  What may come with every request
while a backend is away is bounded: `BURST_LINES` of one event in `BURST_S`, and the next one that
is written says how many were `left_out`.
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
    """One event: how often it was written since then, and how often it was not."""

    since: float
    written: int
    left_out: int


class Log:
    """The log of one role; lines are flushed, so that the last one before a crash is there."""

    def __init__(
        self, role: str, name: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` counts seconds."""
        self._who = f"{role} {name}"
        self._stream = stream
        self._clock = clock
        self._bursts: dict[str, _Burst] = {}  # as many as there are events in the code

    def info(self, event: str, /, **values: object) -> None:
        """Something that happens once in a while in a healthy mesh."""
        self._write("info", event, values)

    def warning(self, event: str, /, **values: object) -> None:
        """Something is not as it should be, and meshim deals with it."""
        self._write("warning", event, values)

    def error(self, event: str, /, **values: object) -> None:
        """Somebody has to look at it."""
        self._write("error", event, values)

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        left_out = self._left_out(event)
        if left_out is None:
            return
        if left_out:
            values = values | {"left_out": left_out}
        now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        pairs = "".join(f" {key}={_value(value)}" for key, value in values.items())
        # One write for one line: several processes may share the file.
        print(
            f"{now}Z {level} {self._who} {event.replace(' ', '-')}{pairs}\n",
            end="",
            file=self._stream or sys.stderr,
            flush=True,
        )

    def _left_out(self, event: str) -> int | None:
        """How many lines of this event were left out before this one; None when this one is too."""
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
    """The value on one line, quoted as in JSON where it would not be read back as one word."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _BARE.match(text) else json.dumps(text)
