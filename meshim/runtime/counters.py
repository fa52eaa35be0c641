"""What a role has counted, for whoever asks: `run/counters/ROLE-NAME.json` in its data folder.

Written at most once a second, whole or not at all, and a last time when the role ends; `meshim status --json`
shows it as `counters`.  A file, because it can be read when Redis or NATS is what is wrong, and when the process
that wrote it is stopped or dead.  Counters begin anew with each process; which ones there are is said by the
`statistics.py` of the role, and by the clients of its backends.  Nothing is done for them on the way of a message.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from meshim.runtime.log import Log

_EVERY_S = 1.0


class _Counted(msgspec.Struct):
    pid: int
    counters: dict[str, int]


async def keep(data: Path, role: str, name: str, log: Log, count: Callable[[], Mapping[str, int]]) -> None:
    """Write what `count` returns whenever it has changed, until cancelled."""
    writer = _Writer(_file(data, role, name), log)
    try:
        while True:
            writer.write(count())
            await asyncio.sleep(_EVERY_S)
    finally:
        writer.write(count())


def read(data: Path, role: str, name: str, pid: int | None) -> dict[str, int]:
    """What the process `pid` has counted; empty when it has not written anything (yet)."""
    try:
        counted = msgspec.json.decode(_file(data, role, name).read_bytes(), type=_Counted)
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    return counted.counters if counted.pid == pid else {}


def _file(data: Path, role: str, name: str) -> Path:
    return data / "run" / "counters" / f"{role}-{name}.json"


class _Writer:
    def __init__(self, file: Path, log: Log) -> None:
        self._file = file
        self._log = log
        self._written: dict[str, int] | None = None
        self._failing = False

    def write(self, counters: Mapping[str, int]) -> None:
        """A disk that is full must not end a role that does not need it: that is logged, once."""
        if counters == self._written:
            return
        new = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_bytes(msgspec.json.encode(_Counted(os.getpid(), dict(counters))))
            new.replace(self._file)
        except OSError as error:
            if not self._failing:
                self._log.warning("counters not written", file=self._file, reason=error.strerror)
            self._failing = True
        else:
            self._failing = False
            self._written = dict(counters)
