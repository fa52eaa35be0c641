"""The history format (`docs/history.md`): the fields of each record, and reading and writing files.

This module knows nothing of meshim, and uses the standard library only.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FORMAT = "meshim-history"
VERSION = 1

TEXT, SECONDS, COUNT = "a string", "seconds, 0 or more", "a whole number, 0 or more"
_PLACE = {"at": SECONDS, "user": TEXT, "device": TEXT}

FIELDS: dict[str, dict[str, str]] = {
    "header": {"format": TEXT, "version": COUNT, "harness": TEXT},
    "user": {"at": SECONDS, "user": TEXT},
    "device": {**_PLACE, "state": TEXT},
    "online": _PLACE,
    "offline": _PLACE,
    "killed": _PLACE,
    "send": {**_PLACE, "to": TEXT, "message": TEXT, "n": COUNT, "digest": TEXT},
    "outcome": {"at": SECONDS, "message": TEXT, "outcome": TEXT},
    "seen": {**_PLACE, "message": TEXT, "id": TEXT, "from": TEXT, "from_device": TEXT, "digest": TEXT},
    "note": {},
    "end": {"at": SECONDS, "records": COUNT},
}
"""The required fields of each type of record, and what each has to be."""

SETTLED = ("sent", "delivered", "read")
OUTCOMES = ("queued", *SETTLED, "rejected")

Record = dict[str, Any]


class BadHistory(Exception):
    """The file cannot be judged.  `line` counts from 1; None if the sentence is about the whole file."""

    def __init__(self, sentence: str, line: int | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.line = line


def fits(value: object, wanted: str) -> bool:
    """Return whether a value is what `FIELDS` requires."""
    if wanted == TEXT:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int if wanted == COUNT else int | float):
        return False
    return math.isfinite(value) and value >= 0


def read(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield every record of a file with its line, after checking it; check that the file is complete.

    Raises BadHistory, and OSError when the file cannot be read.
    """
    number = 0
    ended: int | None = None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            record = _parse(line, number)
            if (number == 1) != (record["type"] == "header"):
                raise BadHistory("a history begins with its header, and has only one", number)
            if ended is not None:
                raise BadHistory("nothing may follow the end record", number)
            if record["type"] == "end":
                ended = record["records"]
            yield number, record
    if ended is None:
        raise BadHistory("the history is truncated: its last line is not an end record", number or None)
    if ended != number:
        raise BadHistory(f"the end record counts {ended} records, and the file has {number}", number)


def _parse(line: bytes, number: int) -> Record:
    if not line.endswith(b"\n"):
        raise BadHistory("the history is truncated: the line has no end", number)
    try:
        record: object = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise BadHistory("the line is not JSON", number) from None
    kind = record.get("type") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(kind, str) or kind not in FIELDS:
        raise BadHistory(f'the line is not an object with a "type" out of {", ".join(FIELDS)}', number)
    for name, wanted in FIELDS[kind].items():
        if not fits(record.get(name), wanted):
            raise BadHistory(f'"{name}" of the {kind} record is not {wanted}', number)
    return record


def digest_of(text: str) -> str:
    """Return the digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class HistoryWriter:
    """Writes one history: the header when created, a record at each call, the end record when closed.

    Every record has `at`, the seconds since the header.  In a harness of several processes, each adds `at` itself and
    sends its records to the process with the writer.
    """

    def __init__(self, path: Path, clock: Callable[[], float], harness: str, **facts: object) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._clock = clock
        self.start = clock()
        """Start of the history by this clock: other processes subtract it to get `at`."""
        self._records = 0
        self.write({"type": "header", "format": FORMAT, "version": VERSION, "harness": harness, **facts})

    def write(self, record: Record) -> None:
        """Append a record; `at` is added if it is missing."""
        record.setdefault("at", round(self._clock() - self.start, 6))
        self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        self._records += 1

    def close(self) -> None:
        """Write the end record.  A history without it shows that its harness failed."""
        self.write({"type": "end", "records": self._records + 1})
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()
