"""The counters of a role as a file: `run/counters/ROLE-NAME.json` in its data folder.

The role replaces the file at most once a second, and a last time when it ends; `meshim status --json` shows it as
`counters`.  A file can be read while Redis or NATS is down, and after the process was stopped or killed.  Counters
start at zero with each process.  `statistics.py` of the role and the clients of its backends define them.  The
message path does nothing for this file.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from meshim.runtime.log import Log

_PERIOD_S = 1.0


class _File(msgspec.Struct):
    pid: int
    counters: dict[str, int]


def prefixed(prefix: str, statistics: msgspec.Struct) -> dict[str, int]:
    """Return the counters of a struct, each under the name `PREFIX_FIELD`."""
    return {f"{prefix}_{name}": count for name, count in msgspec.structs.asdict(statistics).items()}


async def write_periodically(
    data: Path, role: str, name: str, log: Log, count: Callable[[], Mapping[str, int]]
) -> None:
    """Write what `count` returns once a second if it has changed, until cancelled."""
    writer = _Writer(_path(data, role, name), log)
    try:
        while True:
            writer.write(count())
            await asyncio.sleep(_PERIOD_S)
    finally:
        writer.write(count())


def read(data: Path, role: str, name: str, pid: int | None) -> dict[str, int]:
    """Return the counters that the process `pid` has written; empty when it has written none yet."""
    try:
        counted = msgspec.json.decode(_path(data, role, name).read_bytes(), type=_File)
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    return counted.counters if counted.pid == pid else {}


def _path(data: Path, role: str, name: str) -> Path:
    return data / "run" / "counters" / f"{role}-{name}.json"


class _Writer:
    def __init__(self, file: Path, log: Log) -> None:
        self._file = file
        self._log = log
        self._written: dict[str, int] | None = None
        self._failing = False

    def write(self, counters: Mapping[str, int]) -> None:
        """Write the file if the counters have changed.  A full disk is logged once and does not end the role."""
        if counters == self._written:
            return
        new = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_bytes(msgspec.json.encode(_File(os.getpid(), dict(counters))))
            new.replace(self._file)
        except OSError as error:
            if not self._failing:
                self._log.warning("counters not written", file=self._file, reason=error.strerror)
            self._failing = True
        else:
            self._failing = False
            self._written = dict(counters)
