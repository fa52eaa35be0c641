"""How soon people talk again after something was broken, read from the history of a chaos run.

A *conversation* is what one device writes to one user.  It is affected when the broken process is the connector
of either end; when it is anything else, all conversations are.  Of an affected conversation the first message counts
that was handed to `send` within a second of the signal: the conversation goes on when a device of the recipient has
shown it.  One in which nothing was written in that second, or of which an end went away by itself, says nothing.

`talking_s` of a fault is the time from the signal until the last affected conversation goes on; `moved_s`, for a
connector, until the last of the devices that were on it was welcomed by another.  Since the first message may come
at any time within a second, `talking_s` is at least about a second where many talk, however quick the mesh is.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from statistics import median
from typing import Any, NamedTuple

from scripts.harness.chaos.injector import Strike
from scripts.harness.history.format import Record

WITHIN_S = 1.0


class Recovery(NamedTuple):
    """What became of one fault; None where there was nobody to tell."""

    strike: Strike
    talking_s: float | None
    conversations: int
    moved_s: float | None
    moved: int


class _Send(NamedTuple):
    at: float
    device: str
    to: str
    message: str


class Recoveries:
    """Takes in the records of a history in the order of time; then answers."""

    def __init__(self) -> None:
        self._sends: list[_Send] = []
        self._seen: dict[str, float] = {}
        self._to: dict[str, str] = {}
        self._stays: defaultdict[str, list[list[float]]] = defaultdict(list)
        """For each device, from when until when it was online."""
        self._places: defaultdict[str, list[tuple[float, str | None]]] = defaultdict(list)
        """For each device, since when it was on which connector."""
        self._devices: defaultdict[str, list[str]] = defaultdict(list)

    def take(self, record: Record) -> None:
        device, at = record.get("device", ""), record["at"]
        match record["type"]:
            case "device":
                self._devices[record["user"]].append(device)
            case "online":
                self._stays[device].append([at, inf])
            case "offline" | "killed":
                self._stays[device][-1][1] = at
                self._places[device].append((at, None))
            case "note" if "connector" in record:
                self._places[device].append((at, record["connector"]))
            case "send":
                self._sends.append(_Send(at, device, record["to"], record["message"]))
                self._to[record["message"]] = record["to"]
            case "seen" if self._to.get(record["message"]) == record["user"]:
                self._seen.setdefault(record["message"], at)

    def of(self, strike: Strike) -> Recovery:
        overs = list(self._conversations(strike))
        moves = list(self._moves(strike)) if strike.kind.endswith("-connector") else []
        return Recovery(strike, max(overs, default=None), len(overs), max(moves, default=None), len(moves))

    def _conversations(self, strike: Strike) -> Iterator[float]:
        on_it = self._on(strike) if strike.kind.endswith("-connector") else None
        begun: set[tuple[str, str]] = set()
        for send in self._sends[bisect_left(self._sends, (strike.at,)) :]:
            if send.at > strike.at + WITHIN_S:
                return
            theirs = self._devices[send.to]
            if (send.device, send.to) in begun or (on_it is not None and on_it.isdisjoint((send.device, *theirs))):
                continue
            begun.add((send.device, send.to))
            over = self._seen.get(send.message, inf)
            if self._stayed(send.device, strike.at, over) and any(self._stayed(d, strike.at, over) for d in theirs):
                yield over - strike.at

    def _moves(self, strike: Strike) -> Iterator[float]:
        for device in self._on(strike):
            later = (at for at, connector in self._places[device] if at > strike.at and connector)
            there = next(later, inf)
            if self._stayed(device, strike.at, there):
                yield there - strike.at

    def _on(self, strike: Strike) -> set[str]:
        """The devices that were on the connector when it was struck."""
        return {device for device, places in self._places.items() if _at(places, strike.at) == strike.endpoint}

    def _stayed(self, device: str, since: float, until: float) -> bool:
        return any(came <= since and until <= left for came, left in self._stays[device])


def _at(places: Sequence[tuple[float, str | None]], at: float) -> str | None:
    """Where a device was at a time."""
    index = bisect_left(places, (at,))
    return places[index - 1][1] if index else None


def by_kind(recoveries: Iterable[Recovery]) -> dict[str, dict[str, Any]]:
    """For each kind how often it happened, maximum and median in seconds, and what was `never` over, if anything."""
    kinds: defaultdict[str, list[Recovery]] = defaultdict(list)
    for recovery in recoveries:
        kinds[recovery.strike.kind].append(recovery)
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
