"""The judge of a history: did every device see every message that it is owed, once, in order and unchanged?

`docs/history.md` defines the format and each promise.  The judge knows nothing of meshim, and uses the standard library
only: it compares what applications handed to `send` with what applications saw.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scripts.harness.history.format import (
    COUNT,
    FORMAT,
    OUTCOMES,
    SETTLED,
    TEXT,
    VERSION,
    BadHistory,
    Record,
    fits,
    read,
)

PROMISES = ("lost", "duplicated", "reordered", "misdelivered", "altered", "unknown")
"""The ways to break a promise; `docs/history.md` defines each."""


class DeviceKey(NamedTuple):
    user: str
    device: str

    def __str__(self) -> str:
        return f"{self.user}/{self.device}"


class Stream(NamedTuple):
    """The messages of one state file of one device to one user, which are seen in the order sent."""

    sender: DeviceKey
    state: str
    to: str


@dataclass(eq=False)
class Message:
    """One message that was handed to `send`."""

    name: str
    line: int
    at: float
    stream: Stream
    n: int
    digest: str
    id: str | None = None
    """Id of its envelope: from `queued`, otherwise from the first device that saw it."""
    outcomes: dict[str, float] = field(default_factory=dict)
    returned: bool = True
    """False when the sender was killed while `send` ran: `send` may or may not have kept the message."""
    given_up: bool = False
    """The sender lost its state file, and the outbox in it, before the message was settled."""
    seen_by: set[DeviceKey] = field(default_factory=set)

    @property
    def sender(self) -> DeviceKey:
        return self.stream.sender

    @property
    def counts_as_sent(self) -> bool:
        """Whether the message is owed, by the rule **Sent** of `docs/history.md`."""
        if self.settled_at is not None:
            return True  # also with a later `rejected`: no outcome may take `sent` back
        if "rejected" in self.outcomes or self.given_up:
            return False
        return self.returned or bool(self.seen_by)

    @property
    def settled_at(self) -> float | None:
        """Time of the first settled outcome, or None."""
        return min((at for outcome, at in self.outcomes.items() if outcome in SETTLED), default=None)


@dataclass(eq=False)
class Device:
    """One device: when it was away, and its records of the types seen, offline, killed and device (`events`)."""

    key: DeviceKey
    state: str
    known_at: float
    latest: float
    away: list[tuple[float, float]] = field(default_factory=list)
    """Intervals; the last one may have no end."""
    events: list[tuple[int, Record]] = field(default_factory=list)
    sends: list[Message] = field(default_factory=list)
    """Messages from the current state file."""

    def was_away(self, since: float, until: float) -> bool:
        """Return whether the device was away all the time from `since` to `until`."""
        return any(left <= since and until <= back for left, back in self.away)


class History:
    """The records of a history by device and message.  Raises BadHistory where records contradict one another."""

    def __init__(self, records: Iterator[tuple[int, Record]]) -> None:
        self.expected: int | None = None
        self.users: set[str] = set()
        self.devices: dict[DeviceKey, Device] = {}
        self.messages: dict[str, Message] = {}
        self._sent: Counter[tuple[DeviceKey, str]] = Counter()
        take: dict[str, Callable[[int, Record], None]] = {
            "header": self._header,
            "user": self._user,
            "device": self._device,
            "online": self._online,
            "offline": self._left,
            "killed": self._left,
            "send": self._send,
            "outcome": self._outcome,
            "seen": self._seen,
        }
        for line, record in records:
            if record["type"] in take:
                take[record["type"]](line, record)
        for message in self.messages.values():
            if message.stream.to not in self.users and "rejected" not in message.outcomes:
                raise BadHistory(f"{message.stream.to} is not a user of this history", message.line)

    def _header(self, line: int, record: Record) -> None:
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise BadHistory(f"this is not a {FORMAT} of version {VERSION}", line)
        if "expected_sent" in record:
            if not fits(record["expected_sent"], COUNT):
                raise BadHistory(f'"expected_sent" of the header is not {COUNT}', line)
            self.expected = record["expected_sent"]

    def _user(self, line: int, record: Record) -> None:
        if record["user"] in self.users:
            raise BadHistory(f"{record['user']} is a user already", line)
        self.users.add(record["user"])

    def _device(self, line: int, record: Record) -> None:
        key = DeviceKey(record["user"], record["device"])
        if key.user not in self.users:
            raise BadHistory(f"{key.user} is not a user of this history", line)
        if key not in self.devices:
            at = record["at"]
            self.devices[key] = Device(key, record["state"], known_at=at, latest=at, away=[(at, math.inf)])
            return
        device = self._at(line, record)
        if record["state"] == device.state:
            raise BadHistory(f"{key} has this state file already", line)
        device.state = record["state"]
        for message in device.sends:
            message.given_up = message.settled_at is None
        device.sends.clear()
        device.events.append((line, record))

    def _at(self, line: int, record: Record) -> Device:
        """Return the device of a record, whose time must not be before that of the last record of this device."""
        key = DeviceKey(record["user"], record["device"])
        device = self.devices.get(key)
        if device is None:
            raise BadHistory(f"{key} is not a device of this history", line)
        if record["at"] < device.latest:
            raise BadHistory(f"{key} is at {record['at']} s here and was at {device.latest} s before", line)
        device.latest = record["at"]
        return device

    def _online(self, line: int, record: Record) -> None:
        away = self._at(line, record).away
        if away and away[-1][1] == math.inf:
            away[-1] = (away[-1][0], record["at"])

    def _left(self, line: int, record: Record) -> None:
        device = self._at(line, record)
        if not device.away or device.away[-1][1] < math.inf:
            device.away.append((record["at"], math.inf))
        device.events.append((line, record))
        if record["type"] == "killed":
            for message in device.sends:
                message.returned = bool(message.outcomes)

    def _send(self, line: int, record: Record) -> None:
        device, to, name = self._at(line, record), record["to"], record["message"]
        if name in self.messages:
            raise BadHistory(f"message {name} was sent before, on line {self.messages[name].line}", line)
        self._sent[device.key, to] += 1
        if record["n"] != self._sent[device.key, to]:
            raise BadHistory(
                f'"n" is {record["n"]}, and {self._sent[device.key, to]} is next from {device.key} to {to}', line
            )
        message = Message(name, line, record["at"], Stream(device.key, device.state, to), record["n"], record["digest"])
        self.messages[name] = message
        device.sends.append(message)

    def _outcome(self, line: int, record: Record) -> None:
        message, outcome = self.messages.get(record["message"]), record["outcome"]
        if message is None:
            raise BadHistory(f"message {record['message']} was not sent before", line)
        if outcome not in OUTCOMES:
            raise BadHistory(f'"outcome" is not one of {", ".join(OUTCOMES)}', line)
        message.outcomes.setdefault(outcome, record["at"])
        message.returned = True
        if outcome == "queued":
            if not fits(record.get("id"), TEXT):
                raise BadHistory(f'"id" of the queued outcome is not {TEXT}', line)
            message.id = record["id"]

    def _seen(self, line: int, record: Record) -> None:
        self._at(line, record).events.append((line, record))


class Violation(NamedTuple):
    """A broken promise, and the line of the record that shows it."""

    line: int
    kind: str
    message: str
    sentence: str


class Judge:
    """Judges a history; `violations` and `counts` hold what it found."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._devices: dict[str, list[Device]] = defaultdict(list)
        for device in history.devices.values():
            self._devices[device.key.user].append(device)
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        for device in history.devices.values():
            self._judge_device(device)
        for message in history.messages.values():
            self._judge_message(message)
        self.violations.sort()

    def _judge_device(self, device: Device) -> None:
        """Check once and in order.  One exception: a killed application may be handed its last message again."""
        lines: dict[str, int] = {}
        furthest: dict[Stream, Message] = {}
        handling = handed_again = ""
        for line, record in device.events:
            if record["type"] == "killed":
                handed_again = handling
                continue
            if record["type"] != "seen":
                handling = handed_again = ""
                if record["type"] == "device":  # a new state file has seen nothing
                    lines.clear()
                    furthest.clear()
                continue
            message = self._recognise(line, device, record)
            if message is None:
                continue
            repeated, handling, handed_again = handed_again, message.name, ""
            if message.name in lines:
                if message.name == repeated:
                    self.counts["handed_again"] += 1
                else:
                    sentence = f"{device.key} saw it on line {lines[message.name]} too"
                    self._violated(line, "duplicated", message.name, sentence)
                continue
            lines[message.name] = line
            before = furthest.setdefault(message.stream, message)
            if before.n > message.n:
                sentence = f"{device.key} saw {before.name}, sent later, before it"
                self._violated(line, "reordered", message.name, sentence)
            else:
                furthest[message.stream] = message

    def _recognise(self, line: int, device: Device, record: Record) -> Message | None:
        """Return the message of a `seen` record; None if it was never sent, or not to this device."""
        message = self._history.messages.get(record["message"])
        if message is None:
            self._violated(line, "unknown", record["message"], f"{device.key} saw it, and it was never sent")
            return None
        if device.key == message.sender or device.key.user not in (message.stream.to, message.sender.user):
            sentence = f"{device.key} saw it, and it went from {message.sender} to {message.stream.to}"
            self._violated(line, "misdelivered", message.name, sentence)
            return None
        message.seen_by.add(device.key)
        if message.id is None:
            message.id = record["id"]
        compared = {
            "text": (record["digest"], message.digest),
            "sender": (record["from"], message.sender.user),
            "sending device": (record["from_device"], message.sender.device),
            "envelope id": (record["id"], message.id),
        }
        differs = [what for what, (seen, sent) in compared.items() if seen != sent]
        if differs:
            self._violated(line, "altered", message.name, f"{device.key} saw it with another {' and '.join(differs)}")
        return message

    def _judge_message(self, message: Message) -> None:
        if not message.counts_as_sent:
            self.counts["rejected" if "rejected" in message.outcomes else "in_doubt"] += 1
            return
        self.counts["sent"] += 1
        self.counts["settled"] += message.settled_at is not None
        recipients = self._owed(message, message.stream.to)
        own = self._owed(message, message.sender.user) if message.sender.user != message.stream.to else []
        for device in recipients + own:
            if device.key not in message.seen_by:
                self._violated(message.line, "lost", message.name, f"{device.key} never saw it")
        reached = [device for device in recipients if device.key in message.seen_by]
        self.counts["delivered"] += len(reached) == len(recipients) > 0
        settled_at = message.settled_at
        if settled_at is not None:
            self.counts["via_offline"] += any(device.was_away(message.at, settled_at) for device in reached)

    def _owed(self, message: Message, user: str) -> list[Device]:
        """Return the devices of a user that are owed the message: known when it was sent, and not its sender."""
        return [d for d in self._devices[user] if d.known_at <= message.at and d.key != message.sender]

    def _violated(self, line: int, kind: str, message: str, sentence: str) -> None:
        self.counts[kind] += 1
        self.violations.append(Violation(line, kind, message, sentence))


def judge(path: Path, limit: int = 20) -> dict[str, Any]:
    """Return the verdict on a history: `ok`, the counts, and the first `limit` violations.

    Raises BadHistory, and OSError when the file cannot be read.
    """
    history = History(read(path))
    found = Judge(history)
    expected = history.expected
    return {
        "ok": not found.violations and expected in (None, found.counts["sent"]),
        "users": len(history.users),
        "devices": len(history.devices),
        "expected": expected,
        **{name: found.counts[name] for name in ("sent", "settled", "delivered", "via_offline")},
        **{name: found.counts[name] for name in PROMISES},
        **{name: found.counts[name] for name in ("rejected", "in_doubt", "handed_again")},
        "violations": [violation._asdict() for violation in found.violations[:limit]],
    }
