"""What a chaos run knows while it runs: the records of all processes, as far as they are written.

Only to know what to wait for, and who was there when a process was killed; the verdict is `check_history.py`'s.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from scripts.harness.chaos.users import Cast
from scripts.harness.history.format import SETTLED

_decode = msgspec.json.Decoder().decode


class _Message(msgspec.Struct):
    at: float
    missing: set[str]
    """Devices that it is owed to and that have not seen it."""
    returned: bool = False
    settled: bool = False
    in_one_go: bool = True
    """Its sender has been online ever since."""


class Follower:
    """Reads what is new in the files of records whenever `catch_up` is called."""

    def __init__(self, cast: Cast, processes: int) -> None:
        self.sent = 0
        self.max_settle_s = 0.0
        """From `send` to the news that it is safe, of messages whose sender was online all the time."""
        self.online: dict[int, set[str]] = {}
        """The devices of each process that are, or may be, online."""
        self.connected: set[str] = set()
        """Devices that a connector has welcomed."""
        self.problems: list[str] = []
        self.counted: Counter[str] = Counter()
        """What clients had counted when they were closed; those that were killed took it with them."""
        self.open: dict[str, _Message] = {}
        """Messages that are not settled, or not seen by everybody; not those that `send` may never have taken."""
        self._doubtful: dict[str, _Message] = {}
        self._known: set[str] = set()
        self._early: dict[str, set[str]] = {}
        self._devices: dict[str, set[str]] = {}
        self._sent_by: dict[str, list[str]] = {part.device_id: [] for part in cast.parts}
        self._files = [[cast.file_of(number), 0] for number in range(processes)]
        self._homes: dict[str, set[str]] = {}
        for part in cast.parts:
            self._devices.setdefault(part.user, set()).add(part.device_id)
            self._homes[part.device_id] = self.online.setdefault(part.process, set())

    def catch_up(self) -> None:
        for file in self._files:
            for record in _new_records(file):
                self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        match record["type"]:
            case "send":
                self._send(record)
            case "outcome":
                self._outcome(record)
            case "seen":
                self._seen(record)
            case "online":
                self._homes[record["device"]].add(record["device"])
            case "offline" | "killed":
                self._left(record)
            case "note" if "connector" in record:
                (self.connected.add if record["connector"] else self.connected.discard)(record["device"])
            case "note" if "counted" in record:
                self.counted.update(record["counted"])
            case "note" if "problem" in record:
                self.problems.append(f"{record['user']}: {record['problem']}")

    def _send(self, record: dict[str, Any]) -> None:
        self.sent += 1
        devices = self._devices
        owed = (devices[record["to"]] | devices[record["user"]]) - {record["device"]}
        name = record["message"]
        self._known.add(name)
        self.open[name] = _Message(record["at"], owed - self._early.pop(name, set()))
        self._sent_by[record["device"]].append(name)

    def _outcome(self, record: dict[str, Any]) -> None:
        name, outcome = record["message"], record["outcome"]
        if (message := self.open.get(name)) is None:
            return
        message.returned = True
        if outcome == "rejected":
            del self.open[name]
        elif outcome in SETTLED and not message.settled:
            message.settled = True
            if message.in_one_go:
                self.max_settle_s = max(self.max_settle_s, record["at"] - message.at)
            self._close(name, message)

    def _seen(self, record: dict[str, Any]) -> None:
        name, device = record["message"], record["device"]
        if name in self._doubtful:  # it was taken after all
            self.open[name] = message = self._doubtful.pop(name)
            message.settled = True  # nobody knows its envelope, to ask what became of it
        elif name in self.open:
            message = self.open[name]
        else:
            if name not in self._known:  # the file of its sender is read after this one
                self._early.setdefault(name, set()).add(device)
            return
        message.missing.discard(device)
        self._close(name, message)

    def _close(self, name: str, message: _Message) -> None:
        if message.settled and not message.missing:
            del self.open[name]

    def _left(self, record: dict[str, Any]) -> None:
        device = record["device"]
        self._homes[device].discard(device)
        self.connected.discard(device)
        for name in self._sent_by[device]:
            message = self.open.get(name)
            if message is not None:
                message.in_one_go = False
                if record["type"] == "killed" and not message.returned:
                    self._doubtful[name] = self.open.pop(name)
        self._sent_by[device].clear()


def _new_records(file: list[Any]) -> Iterator[dict[str, Any]]:
    """The records that were appended since the last time."""
    path, offset = file
    if not path.exists():
        return
    with path.open("rb") as lines:
        lines.seek(offset)
        data = lines.read()
    end = data.rfind(b"\n") + 1
    file[1] = offset + end
    for line in data[:end].splitlines():
        yield _decode(line)
