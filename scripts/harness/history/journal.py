"""The journal of a client process: records are appended at once, and the next process of the same number reads them.

Each record is one `write` of one line, so that the journal is complete up to the moment of a SIGKILL.
"""

import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class Journal:
    """Appends records to a journal.  `start` is the start of the history by CLOCK_MONOTONIC."""

    def __init__(self, path: Path, start: float) -> None:
        self._start = start
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        _cut_torn_line(self._file)

    def write(self, kind: str, **fields: object) -> None:
        """Append a record with the time of this call."""
        record = {"type": kind, "at": round(time.monotonic() - self._start, 6), **fields}
        os.write(self._file, _encode(record) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def _cut_torn_line(file: int) -> None:
    """Cut off an incomplete last line, which a kill within a write may leave."""
    size = os.fstat(file).st_size
    tail = os.pread(file, 65_536, max(0, size - 65_536))
    os.ftruncate(file, size - (len(tail) - tail.rfind(b"\n") - 1))


class DeviceRecord:
    """The state of one device, as its journal has it."""

    def __init__(self) -> None:
        self.written = 0
        self.numbers: Counter[str] = Counter()
        """Last `n` by recipient."""
        self.unsettled: dict[str, str] = {}
        """Names of messages by the id of their envelope, with no outcome but `queued`."""


def read_journal(path: Path) -> dict[str, DeviceRecord]:
    """Return the record of each device in a journal, by the id of the device."""
    devices: defaultdict[str, DeviceRecord] = defaultdict(DeviceRecord)
    sender: dict[str, DeviceRecord] = {}
    ids: dict[str, str] = {}
    decode = msgspec.json.Decoder().decode
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        entry: dict[str, Any] = decode(line)
        if entry["type"] == "send":
            record = sender[entry["message"]] = devices[entry["device"]]
            record.written += 1
            record.numbers[entry["to"]] = entry["n"]
        elif entry["type"] == "outcome":
            record = sender[entry["message"]]
            if entry["outcome"] == "queued":
                ids[entry["message"]] = entry["id"]
                record.unsettled[entry["id"]] = entry["message"]
            else:
                record.unsettled.pop(ids.get(entry["message"], ""), None)
    return devices
