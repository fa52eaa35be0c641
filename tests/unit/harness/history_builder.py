"""Builds histories for the tests of the judge, record by record."""

from collections import Counter
from pathlib import Path
from typing import Any

from scripts.harness.history.format import HistoryWriter, Record, digest_of
from scripts.harness.history.judge import PROMISES, judge

ALICE, TABLET, BOB, CAROL = ("alice", "phone"), ("alice", "tablet"), ("bob", "phone"), ("carol", "phone")


class HistoryBuilder:
    """A history in the making; every record is one second later than the one before."""

    def __init__(self, *devices: tuple[str, str]) -> None:
        self.records: list[Record] = []
        self._counters: Counter[tuple[tuple[str, str], str]] = Counter()
        for user in dict.fromkeys(user for user, _ in devices):
            self.add("user", user=user)
        for device in devices:
            self.at_device("device", device, state="1")

    def add(self, kind: str, **fields: object) -> Record:
        record: Record = {"type": kind, "at": len(self.records), **fields}
        self.records.append(record)
        return record

    def at_device(self, kind: str, device: tuple[str, str], **fields: object) -> Record:
        return self.add(kind, user=device[0], device=device[1], **fields)

    def send(self, device: tuple[str, str], to: str, *outcomes: str) -> str:
        self._counters[device, to] += 1
        name = f"m{sum(self._counters.values())}"
        n = self._counters[device, to]
        self.at_device("send", device, to=to, message=name, n=n, digest=digest_of(f"{name} hello"))
        for outcome in outcomes or ("queued", "sent"):
            self.outcome(name, outcome)
        return name

    def outcome(self, name: str, outcome: str) -> None:
        self.add("outcome", message=name, outcome=outcome, id=f"id-{name}")

    def see(self, device: tuple[str, str], name: str) -> Record:
        send = next(r for r in self.records if r["type"] == "send" and r["message"] == name)
        return self.at_device(
            "seen",
            device,
            message=name,
            id=f"id-{name}",
            **{"from": send["user"], "from_device": send["device"], "digest": send["digest"]},
        )


def write(path: Path, records: list[Record], **facts: object) -> Path:
    with HistoryWriter(path, lambda: 0.0, "test", **facts) as writer:
        for record in records:
            writer.write(dict(record))
    return path


def verdict_on(path: Path, records: list[Record], **facts: object) -> dict[str, Any]:
    return judge(write(path, records, **facts))


def broken(verdict: dict[str, Any]) -> dict[str, int]:
    return {name: verdict[name] for name in PROMISES if verdict[name]}
