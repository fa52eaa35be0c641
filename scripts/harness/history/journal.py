"""The file in which a process of players writes what happens: appended at once, and read again by the next process.

Each record is one `write` of one line, so that the file is whole up to the moment at which the process is killed.
"""

import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class Records:
    """The file of records: appended at once, and read again by the next process."""

    def __init__(self, path: Path, start: float) -> None:
        self._start = start
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        _cut_torn_line(self._file)

    def write(self, kind: str, **fields: object) -> None:
        record = {"type": kind, "at": round(time.monotonic() - self._start, 6), **fields}
        os.write(self._file, _encode(record) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def _cut_torn_line(file: int) -> None:
    """Who was killed in the middle of a write may have left a line without an end."""
    size = os.fstat(file).st_size
    tail = os.pread(file, 65_536, max(0, size - 65_536))
    os.ftruncate(file, size - (len(tail) - tail.rfind(b"\n") - 1))


class Memory:
    """What the records of earlier processes say of one device."""

    def __init__(self) -> None:
        self.written = 0
        self.numbers: Counter[str] = Counter()
        """The last `n` for each recipient."""
        self.unsettled: dict[str, str] = {}
        """Messages by the id of their envelope, of which no outcome but `queued` was learned."""


def remember(path: Path) -> dict[str, Memory]:
    """What is known of each device, by its id."""
    memories: defaultdict[str, Memory] = defaultdict(Memory)
    sender: dict[str, Memory] = {}
    ids: dict[str, str] = {}
    decode = msgspec.json.Decoder().decode
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        record: dict[str, Any] = decode(line)
        if record["type"] == "send":
            memory = sender[record["message"]] = memories[record["device"]]
            memory.written += 1
            memory.numbers[record["to"]] = record["n"]
        elif record["type"] == "outcome":
            memory = sender[record["message"]]
            if record["outcome"] == "queued":
                ids[record["message"]] = record["id"]
                memory.unsettled[record["id"]] = record["message"]
            else:
                memory.unsettled.pop(ids.get(record["message"], ""), None)
    return memories
