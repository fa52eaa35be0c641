"""Follows the journals of all client processes during a chaos run.

The run needs this only to know what to wait for, and which devices were online when a process was killed; the verdict
is that of `check_history.py`.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from scripts.harness.chaos.users import ClientsConfig, DeviceConfig
from scripts.harness.history.format import SETTLED

_decode = msgspec.json.Decoder().decode


class _Message(msgspec.Struct):
    at: float
    missing: set[str]
    """Devices that have to see the message and have not."""
    returned: bool = False
    settled: bool = False
    sender_stayed: bool = True
    """The sending device has been online since the `send`."""


class Observer:
    """Reads the new records of the journals at each `catch_up`."""

    def __init__(self, config: ClientsConfig, processes: int, minimal: Collection[DeviceConfig] = ()) -> None:
        """`minimal` are devices whose applications read all that they are shown, and learn what others read."""
        self.sent = 0
        self.max_settle_s = 0.0
        """Longest time from `send` to a settled outcome, of messages whose sender stayed online."""
        self.online: dict[int, set[str]] = {}
        """Devices of each process that are, or may be, online."""
        self.connected: set[str] = set()
        """Devices that a connector has welcomed."""
        self.problems: list[str] = []
        self.client_counters: Counter[str] = Counter()
        """Counters of closed clients; those of killed clients are lost."""
        self.open: dict[str, _Message] = {}
        """Messages that are not settled, or not seen by a device; without those that `send` may not have kept."""
        self.unread: set[str] = set()
        """Messages from one minimal client to another that were queued, and whose READ receipt has not come."""
        self._senders = {device.device_id for device in minimal}
        self._readers = {device.user for device in minimal}
        self._in_doubt: dict[str, _Message] = {}
        self._known: set[str] = set()
        self._to_read: set[str] = set()
        self._early: dict[str, set[str]] = {}
        self._devices: dict[str, set[str]] = {}
        self._sent_by: dict[str, list[str]] = {device.device_id: [] for device in config.devices}
        self._files = [[config.journal_of(number), 0] for number in range(processes)]
        self._online_of: dict[str, set[str]] = {}
        for device in config.devices:
            self._devices.setdefault(device.user, set()).add(device.device_id)
            self._online_of[device.device_id] = self.online.setdefault(device.process, set())

    @property
    def awaited(self) -> int:
        """How much is not over: messages that are open, and receipts."""
        return len(self.open) + len(self.unread)

    def catch_up(self) -> None:
        """Read the records that were appended since the last call."""
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
                self._online_of[record["device"]].add(record["device"])
            case "offline" | "killed":
                self._disconnected(record)
            case "note" if "connector" in record:
                (self.connected.add if record["connector"] else self.connected.discard)(record["device"])
            case "note" if "counted" in record:
                self.client_counters.update(record["counted"])
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
        if record["device"] in self._senders and record["to"] in self._readers:
            self._to_read.add(name)

    def _outcome(self, record: dict[str, Any]) -> None:
        name, outcome = record["message"], record["outcome"]
        if outcome == "queued" and name in self._to_read:
            self.unread.add(name)
        elif outcome in ("read", "rejected"):
            self.unread.discard(name)
        if (message := self.open.get(name)) is None:
            return
        message.returned = True
        if outcome == "rejected":
            del self.open[name]
        elif outcome in SETTLED and not message.settled:
            message.settled = True
            if message.sender_stayed:
                self.max_settle_s = max(self.max_settle_s, record["at"] - message.at)
            self._close(name, message)

    def _seen(self, record: dict[str, Any]) -> None:
        name, device = record["message"], record["device"]
        if name in self._in_doubt:  # `send` had kept it
            self.open[name] = message = self._in_doubt.pop(name)
            message.settled = True  # its envelope id, and so its outcome, is unknown
        elif name in self.open:
            message = self.open[name]
        else:
            if name not in self._known:  # the journal of its sender is read after this one
                self._early.setdefault(name, set()).add(device)
            return
        message.missing.discard(device)
        self._close(name, message)

    def _close(self, name: str, message: _Message) -> None:
        if message.settled and not message.missing:
            del self.open[name]

    def _disconnected(self, record: dict[str, Any]) -> None:
        device = record["device"]
        self._online_of[device].discard(device)
        self.connected.discard(device)
        for name in self._sent_by[device]:
            message = self.open.get(name)
            if message is not None:
                message.sender_stayed = False
                if record["type"] == "killed" and not message.returned:
                    self._in_doubt[name] = self.open.pop(name)
        self._sent_by[device].clear()


def _new_records(file: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the records that were appended since the last call."""
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
