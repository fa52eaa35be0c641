"""IRC logs as a schedule of steps: who is online when, and who sends what to whom.  Pure: no files, no clock, no mesh.

A line of a log is `[HH:MM] <nick> text`, `[HH:MM]  * nick action` or `=== event`.  Times have minutes only, and lines
are in order.

**The rule.**  A message is a `<nick>` line.  It is addressed to a user when its text begins with the exact nick of
another user who speaks in the same log, followed by `:` or `,`.  An action only shows that its nick is online; events
are ignored.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

QUIET_MINUTES = 10
"""A nick that is quiet for longer goes offline."""

NAME_LENGTH_MAX = 64
"""Limit of a user name of meshim."""

_LINE = re.compile(r"\[(\d\d):(\d\d)\] (?:<([^>]+)> ?| \* (\S+) ?)(.*)", re.DOTALL)
_ADDRESSED = re.compile(r"([^:,]+)[:,]")
_HALF_DAY = 12 * 60
"""Some logs have a 12-hour clock."""
_SET_BACK_MAX = 60
"""A clock that goes back by at most this was set back, and stands until that time is past; otherwise it wrapped."""


@dataclass(frozen=True)
class LogLine:
    """A message or an action.  `minute` counts from the midnight before the log, and has a fraction."""

    minute: float
    nick: str
    text: str
    is_message: bool


class Action(Enum):
    CONNECT = "connects"
    SEND = "sends"
    DISCONNECT = "disconnects"


@dataclass(frozen=True)
class Step:
    """An action of a nick, `minute` minutes after the start of the first log."""

    minute: float
    nick: str
    action: Action
    to: str = ""
    text: str = ""


def parse(log: bytes) -> list[LogLine]:
    """Return the messages and actions of a log in order; those of one minute are spread over it evenly."""
    matches: list[tuple[int, re.Match[str]]] = []
    wrapped = latest = 0
    for line in log.split(b"\n"):
        match = _LINE.fullmatch(_decode(line.removesuffix(b"\r")))
        if match is None:
            continue
        minute = int(match[1]) * 60 + int(match[2])
        while minute + wrapped < latest - _SET_BACK_MAX:
            wrapped += _HALF_DAY
        latest = max(latest, minute + wrapped)
        matches.append((latest, match))
    return list(_spread_over_minutes(matches))


def _spread_over_minutes(matches: Sequence[tuple[int, re.Match[str]]]) -> Iterator[LogLine]:
    in_minute: defaultdict[int, int] = defaultdict(int)
    for minute, _ in matches:
        in_minute[minute] += 1
    so_far: defaultdict[int, int] = defaultdict(int)
    for minute, match in matches:
        fraction = so_far[minute] / in_minute[minute]
        so_far[minute] += 1
        yield LogLine(minute + fraction, match[3] or match[4], match[5], is_message=match[3] is not None)


def _decode(line: bytes) -> str:
    """Decode a line as most IRC clients do: as UTF-8, or else as Latin-1."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def addressee(line: LogLine, nicks: Iterable[str]) -> str | None:
    """Return the nick that a message is addressed to by the rule, or None."""
    match = _ADDRESSED.match(line.text) if line.is_message else None
    return match[1] if match and match[1] in nicks and match[1] != line.nick else None


def nicks_of(lines: Iterable[LogLine]) -> set[str]:
    """Return the nicks that speak in a log."""
    return {line.nick for line in lines}


def plan(logs: Iterable[bytes], quiet_minutes: float = QUIET_MINUTES) -> list[Step]:
    """Return the steps of some logs, in order of time.

    A log begins when all nicks of the one before it are offline: the same nick on another day is the same user, who was
    offline in between.
    """
    steps: list[Step] = []
    begins = 0.0
    for log in logs:
        lines = parse(log)
        if not lines:
            continue
        shift = begins - lines[0].minute
        steps += _plan_one(lines, shift, quiet_minutes)
        begins = lines[-1].minute + shift + quiet_minutes + 1
    return steps


def _plan_one(lines: Sequence[LogLine], shift: float, quiet_minutes: float) -> list[Step]:
    nicks = nicks_of(lines)
    last_spoke: dict[str, float] = {}
    steps: list[Step] = []
    for line in lines:
        nick, minute = line.nick, line.minute + shift
        if nick in last_spoke and minute - last_spoke[nick] > quiet_minutes:
            steps.append(Step(last_spoke.pop(nick) + quiet_minutes, nick, Action.DISCONNECT))
        if nick not in last_spoke:
            steps.append(Step(minute, nick, Action.CONNECT))
        last_spoke[nick] = minute
        to = addressee(line, nicks)
        if to is not None:
            steps.append(Step(minute, nick, Action.SEND, to, line.text))
    steps += [Step(minute + quiet_minutes, nick, Action.DISCONNECT) for nick, minute in last_spoke.items()]
    return sorted(steps, key=lambda step: step.minute)


def count_addressed(log: bytes) -> int:
    """Count the addressed messages of a log by the rule alone, on the raw bytes: a check of `plan`."""
    lines = re.findall(rb"^\[\d\d:\d\d\] <([^>]+)> ?(.*)", log, re.MULTILINE)
    nicks = {nick for nick, _ in lines} | set(re.findall(rb"^\[\d\d:\d\d\]  \* (\S+)", log, re.MULTILINE))
    return sum(any(text.startswith((other + b":", other + b",")) for other in nicks - {nick}) for nick, text in lines)


def user_name(nick: str, tag: str = "") -> str:
    """Return the user name of a nick, different for different nicks.

    Lower-case letters, digits and `_` stay; a capital letter becomes `.` and its lower case; any other byte becomes
    `..` and two hexadecimal digits.  A name that would be too long becomes `...` and a digest.
    """
    name = "".join(map(_escape, nick))
    if len(name) + len(tag) > NAME_LENGTH_MAX:
        name = "..." + hashlib.sha256(nick.encode()).hexdigest()[:40]
    return tag + name


def _escape(character: str) -> str:
    if re.fullmatch("[a-z0-9_]", character):
        return character
    if re.fullmatch("[A-Z]", character):
        return "." + character.lower()
    return "".join(f"..{byte:02x}" for byte in character.encode())
