#!/usr/bin/env python3
"""Judge a history: did everyone see every message meant for them, once, in order, unchanged, and nobody else?

`docs/history.md` describes the format and defines each promise.  The judge knows nothing of meshim
(standard library only): it believes what was handed to `send`, and what applications saw.

Exit code 0: every promise was kept.  1: at least one was broken.  2: the file cannot be judged.
"""

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
"""What must not happen; `docs/history.md` defines each."""


class DeviceKey(NamedTuple):
    user: str
    device: str

    def __str__(self) -> str:
        return f"{self.user}/{self.device}"


class Stream(NamedTuple):
    """What one state file of one sending device sends to one user: seen in the order sent."""

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
    """Of its envelope: from `queued`, otherwise from whoever saw it first."""
    outcomes: dict[str, float] = field(default_factory=dict)
    returned: bool = True
    """False when the sender was killed while `send` ran: it may have been kept, or not."""
    given_up: bool = False
    """The sender lost its state file, its outbox with it, before the message was settled."""
    seen_by: set[DeviceKey] = field(default_factory=set)

    @property
    def sender(self) -> DeviceKey:
        return self.stream.sender

    @property
    def counts_as_sent(self) -> bool:
        if self.settled_at is not None:
            return True  # whatever came after it: nobody may take `sent` back
        if "rejected" in self.outcomes or self.given_up:
            return False
        return self.returned or bool(self.seen_by)

    @property
    def settled_at(self) -> float | None:
        return min((at for outcome, at in self.outcomes.items() if outcome in SETTLED), default=None)


@dataclass(eq=False)
class Device:
    """One device: when it was away, and what its application went through (`events`: seen, offline, killed, device)."""

    key: DeviceKey
    state: str
    known_at: float
    latest: float
    away: list[tuple[float, float]] = field(default_factory=list)
    """From, until; the last one may have no end."""
    events: list[tuple[int, Record]] = field(default_factory=list)
    sends: list[Message] = field(default_factory=list)
    """Of the current state file."""

    def was_away(self, since: float, until: float) -> bool:
        """Say whether it was away without a break from `since` to `until`."""
        return any(left <= since and until <= back for left, back in self.away)


class History:
    """What a file says happened.  Raises BadHistory where its records contradict one another."""

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
        """Return the device a record is about; its records must stand in the order in which they happened."""
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
    line: int
    kind: str
    message: str
    sentence: str


class Judge:
    """Goes through a history once; `violations` and `tally` hold what it found."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._devices: dict[str, list[Device]] = defaultdict(list)
        for device in history.devices.values():
            self._devices[device.key.user].append(device)
        self.violations: list[Violation] = []
        self.tally: Counter[str] = Counter()
        for device in history.devices.values():
            self._judge_device(device)
        for message in history.messages.values():
            self._judge_message(message)
        self.violations.sort()

    def _judge_device(self, device: Device) -> None:
        """Once and in order, with one exception: a killed application is handed again what it was handling."""
        lines: dict[str, int] = {}
        furthest: dict[Stream, Message] = {}
        handling = handed_again = ""
        for line, record in device.events:
            if record["type"] == "killed":
                handed_again = handling
                continue
            if record["type"] != "seen":
                handling = handed_again = ""
                if record["type"] == "device":  # a new state file knows of nothing
                    lines.clear()
                    furthest.clear()
                continue
            message = self._recognise(line, device, record)
            if message is None:
                continue
            repeated, handling, handed_again = handed_again, message.name, ""
            if message.name in lines:
                if message.name == repeated:
                    self.tally["handed_again"] += 1
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
        """Return what was seen, unless it was never sent, or was not for this device."""
        message = self._history.messages.get(record["message"])
        if message is None:
            self._violated(line, "unknown", record["message"], f"{device.key} saw it, and nobody sent it")
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
            self.tally["rejected" if "rejected" in message.outcomes else "in_doubt"] += 1
            return
        self.tally["sent"] += 1
        self.tally["settled"] += message.settled_at is not None
        recipients = self._owed(message, message.stream.to)
        own = self._owed(message, message.sender.user) if message.sender.user != message.stream.to else []
        for device in recipients + own:
            if device.key not in message.seen_by:
                self._violated(message.line, "lost", message.name, f"{device.key} never saw it")
        reached = [device for device in recipients if device.key in message.seen_by]
        self.tally["delivered"] += len(reached) == len(recipients) > 0
        settled_at = message.settled_at
        if settled_at is not None:
            self.tally["via_offline"] += any(device.was_away(message.at, settled_at) for device in reached)

    def _owed(self, message: Message, user: str) -> list[Device]:
        """Return the devices of a user that were known when the message was sent, but for the one that sent it."""
        return [d for d in self._devices[user] if d.known_at <= message.at and d.key != message.sender]

    def _violated(self, line: int, kind: str, message: str, sentence: str) -> None:
        self.tally[kind] += 1
        self.violations.append(Violation(line, kind, message, sentence))


def judge(path: Path, limit: int = 20) -> dict[str, Any]:
    """Return the verdict on a history: `ok`, the counts, and the first `limit` violations.

    Raises BadHistory, and OSError when the file cannot be read.
    """
    history = History(read(path))
    found = Judge(history)
    expected = history.expected
    return {
        "ok": not found.violations and expected in (None, found.tally["sent"]),
        "users": len(history.users),
        "devices": len(history.devices),
        "expected": expected,
        **{name: found.tally[name] for name in ("sent", "settled", "delivered", "via_offline")},
        **{name: found.tally[name] for name in PROMISES},
        **{name: found.tally[name] for name in ("rejected", "in_doubt", "handed_again")},
        "violations": [violation._asdict() for violation in found.violations[:limit]],
    }


def _describe(verdict: dict[str, Any]) -> Iterator[str]:
    for name, value in verdict.items():
        if name not in ("ok", "violations") and value is not None:
            yield f"{name:>13} {value}"
    for violation in verdict["violations"]:
        yield "line {line}: {kind}: message {message!r}: {sentence}.".format_map(violation)
    found = sum(verdict[name] for name in PROMISES)
    if found > len(verdict["violations"]):
        yield f"... and {found - len(verdict['violations'])} more."
    if verdict["expected"] not in (None, verdict["sent"]):
        yield f"{verdict['sent']} messages were sent, and {verdict['expected']} should have been."
    yield "Every promise was kept." if verdict["ok"] else "NOT every promise was kept."


def main() -> int:
    parser = argparse.ArgumentParser(description="Judge a history (docs/history.md).")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="show N violations at most (20)")
    options = parser.parse_args()
    try:
        verdict = judge(options.file, options.limit)
    except BadHistory as bad:
        place = "" if bad.line is None else f", line {bad.line}"
        print(f"{options.file}{place}: {bad.sentence}.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.file} cannot be read: {error.strerror}.", file=sys.stderr)
        return 2
    print(json.dumps(verdict, indent=2) if options.json else "\n".join(_describe(verdict)))
    return 0 if verdict["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
