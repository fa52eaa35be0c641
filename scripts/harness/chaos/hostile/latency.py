"""How long messages take between devices that stay online, from the history of a chaos run.

A message counts in the phase in which it was handed to `send`, if the device that sent it and the device of the
recipient that showed it first have been online since `SETTLED_S` before, and until then.  So devices that come and go
by themselves do not count; a device whose connection was cut does, and so does a message that was stored although both
were there.
"""

from collections import defaultdict
from math import inf
from typing import NamedTuple

from scripts.harness.history.format import Record

SETTLED_S = 2.0
"""A device that has been online for so long has got what was stored for it."""


class Percentiles(NamedTuple):
    """Of the latencies of `messages` messages, in milliseconds."""

    messages: int
    p50_ms: float
    p99_ms: float
    cut: int = 0
    """How many times a device lost its connection, other than because its user left."""


class Latencies:
    """Collects the records of a history, in any order; then returns the latencies of a phase."""

    def __init__(self) -> None:
        self._sends: dict[str, tuple[float, str, str]] = {}
        """By message: when, from which device, to which user."""
        self._seen: defaultdict[str, list[tuple[float, str, str]]] = defaultdict(list)
        """By message: when, on which device, of which user."""
        self._online: defaultdict[str, list[list[float]]] = defaultdict(list)
        """By device, the intervals in which it was online."""
        self._cut: list[float] = []

    def add(self, record: Record) -> None:
        """Take in a record; those of one device have to come in their order."""
        match record["type"]:
            case "send":
                self._sends[record["message"]] = record["at"], record["device"], record["to"]
            case "seen":
                self._seen[record["message"]].append((record["at"], record["device"], record["user"]))
            case "note" if "connector" in record and record["connector"] is None:
                self._cut.append(record["at"])
            case "online":
                self._online[record["device"]].append([record["at"], inf])
            case "offline" | "killed":
                self._online[record["device"]][-1][1] = record["at"]

    def between(self, began: float, ended: float) -> Percentiles:
        """Return the percentiles of the messages that were sent from `began` until `ended`."""
        took_s = []
        for message, (at, device, to) in self._sends.items():
            seen = min((each for each in self._seen[message] if each[2] == to), default=None)
            if seen is None or not began <= at < ended:
                continue  # that a message is missing is for the judge
            if self._stayed(device, at, seen[0]) and self._stayed(seen[1], at, seen[0]):
                took_s.append(seen[0] - at)
        return _percentiles(sorted(took_s), sum(began <= at < ended for at in self._cut))

    def _stayed(self, device: str, since: float, until: float) -> bool:
        return any(came <= since - SETTLED_S and until <= left for came, left in self._online[device])


def _percentiles(ordered_s: list[float], cut: int) -> Percentiles:
    def at(share: float) -> float:
        return round(1_000 * ordered_s[min(len(ordered_s) - 1, int(share * len(ordered_s)))], 1) if ordered_s else 0.0

    return Percentiles(len(ordered_s), at(0.5), at(0.99), cut)
