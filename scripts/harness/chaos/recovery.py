"""How soon users talk again after a fault, read from the history of a chaos run.

A *conversation* is one device writing to one user.  A fault of a connector affects the conversations with a device on
that connector; any other fault affects all.  The first message of an affected conversation that was handed to `send`
within a second of the fault is measured: the conversation has recovered when a device of the recipient has shown that
message.  Conversations without such a message, or with an end that disconnected by itself, do not count.

`talking_s` of a fault is the time until the last affected conversation has recovered; `moved_s`, for a connector, until
the last device of that connector was welcomed by another.  The first message may come at any time within the second:
with many conversations `talking_s` is at least about a second, however fast the mesh is.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from statistics import median
from typing import Any, NamedTuple

from scripts.harness.chaos.injector import Injection
from scripts.harness.history.format import Record

WITHIN_S = 1.0
"""Time after a fault in which the measured message has to be sent."""


class Recovery(NamedTuple):
    """Recovery from one fault; None where no device or conversation was affected."""

    injection: Injection
    talking_s: float | None
    conversations: int
    moved_s: float | None
    moved: int


class _Send(NamedTuple):
    at: float
    device: str
    to: str
    message: str


class RecoveryTimes:
    """Collects the records of a history in the order of time, then returns the recovery from each fault."""

    def __init__(self) -> None:
        self._sends: list[_Send] = []
        self._seen: dict[str, float] = {}
        self._to: dict[str, str] = {}
        self._online: defaultdict[str, list[list[float]]] = defaultdict(list)
        """By device, the intervals in which it was online."""
        self._connectors: defaultdict[str, list[tuple[float, str | None]]] = defaultdict(list)
        """By device, the times at which its connector changed."""
        self._devices: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, record: Record) -> None:
        """Take in the next record."""
        device, at = record.get("device", ""), record["at"]
        match record["type"]:
            case "device":
                self._devices[record["user"]].append(device)
            case "online":
                self._online[device].append([at, inf])
            case "offline" | "killed":
                self._online[device][-1][1] = at
                self._connectors[device].append((at, None))
            case "note" if "connector" in record:
                self._connectors[device].append((at, record["connector"]))
            case "send":
                self._sends.append(_Send(at, device, record["to"], record["message"]))
                self._to[record["message"]] = record["to"]
            case "seen" if self._to.get(record["message"]) == record["user"]:
                self._seen.setdefault(record["message"], at)

    def of(self, injection: Injection) -> Recovery:
        """Return the recovery from a fault."""
        times = list(self._conversations(injection))
        moves = list(self._moves(injection)) if injection.kind.endswith("-connector") else []
        return Recovery(injection, max(times, default=None), len(times), max(moves, default=None), len(moves))

    def _conversations(self, injection: Injection) -> Iterator[float]:
        on_connector = self._on(injection) if injection.kind.endswith("-connector") else None
        counted: set[tuple[str, str]] = set()
        for send in self._sends[bisect_left(self._sends, (injection.at,)) :]:
            if send.at > injection.at + WITHIN_S:
                return
            recipient_devices = self._devices[send.to]
            if (send.device, send.to) in counted or (
                on_connector is not None and on_connector.isdisjoint((send.device, *recipient_devices))
            ):
                continue
            counted.add((send.device, send.to))
            seen_at = self._seen.get(send.message, inf)
            if self._stayed(send.device, injection.at, seen_at) and any(
                self._stayed(d, injection.at, seen_at) for d in recipient_devices
            ):
                yield seen_at - injection.at

    def _moves(self, injection: Injection) -> Iterator[float]:
        for device in self._on(injection):
            later = (at for at, connector in self._connectors[device] if at > injection.at and connector)
            moved_at = next(later, inf)
            if self._stayed(device, injection.at, moved_at):
                yield moved_at - injection.at

    def _on(self, injection: Injection) -> set[str]:
        """Return the devices that were on the connector at the time of the fault."""
        return {
            device
            for device, connectors in self._connectors.items()
            if _at(connectors, injection.at) == injection.endpoint
        }

    def _stayed(self, device: str, since: float, until: float) -> bool:
        return any(came <= since and until <= left for came, left in self._online[device])


def _at(connectors: Sequence[tuple[float, str | None]], at: float) -> str | None:
    """Return the connector of a device at a time."""
    index = bisect_left(connectors, (at,))
    return connectors[index - 1][1] if index else None


def by_kind(recoveries: Iterable[Recovery]) -> dict[str, dict[str, Any]]:
    """Return by kind `times`, `max` and `median` in seconds, and `never`: recoveries that did not happen, if any."""
    kinds: defaultdict[str, list[Recovery]] = defaultdict(list)
    for recovery in recoveries:
        kinds[recovery.injection.kind].append(recovery)
    return {kind: _summary(each) for kind, each in sorted(kinds.items())}


def _summary(recoveries: Sequence[Recovery]) -> dict[str, Any]:
    talking = [each.talking_s for each in recoveries if each.talking_s is not None]
    moved = [each.moved_s for each in recoveries if each.moved_s is not None]
    summary: dict[str, Any] = {"times": len(recoveries)}
    for name, times in (("", talking), ("moved_", moved)):
        if ended := [time for time in times if time < inf]:
            summary |= {f"{name}max": round(max(ended), 2), f"{name}median": round(median(ended), 2)}
    if never := sum(time == inf for time in (*talking, *moved)):
        summary["never"] = never
    return summary
