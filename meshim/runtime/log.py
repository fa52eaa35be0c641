"""A process's log: one event per line on stderr, `time level role name event key=value ...`.

::

    log = log.get("connector", "c1")
    log.warning("lease lost", after_s=3.2)
    # 2024-05-17T09:30:00.123Z warning connector c1 lease-lost after_s=3.2

Nothing is logged per message: what happens often is counted, not logged.
"""

import json
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

_BARE = re.compile(r"[\w.:/@+-]+\Z", re.ASCII)


class Log:
    """The log of one role; lines are flushed, so that the last one before a crash is there."""

    def __init__(self, role: str, name: str, stream: TextIO | None = None) -> None:
        self._who = f"{role} {name}"
        self._stream = stream

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
        now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        pairs = "".join(f" {key}={_value(value)}" for key, value in values.items())
        # One write for one line: several processes may share the file.
        print(
            f"{now}Z {level} {self._who} {event.replace(' ', '-')}{pairs}\n",
            end="",
            file=self._stream or sys.stderr,
            flush=True,
        )


def get(role: str, name: str) -> Log:
    """Return the log of a role, on stderr."""
    return Log(role, name)


def _value(value: object) -> str:
    """The value on one line, quoted as in JSON where it would not be read back as one word."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _BARE.match(text) else json.dumps(text)
