"""The judge on random histories: any correct one passes, and any single fault in it is found."""

from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scripts.harness.history.format import Record
from tests.unit.harness.history_builder import HistoryBuilder, broken, verdict_on


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def correct(random: Random) -> HistoryBuilder:
    """Return the history of three or four random users on a mesh that keeps every promise."""
    devices = [
        (user, device) for user in "abcd"[: random.randint(3, 4)] for device in ("x", "y")[: random.randint(1, 2)]
    ]
    history = HistoryBuilder(*devices)
    users = sorted({user for user, _ in devices})
    waiting: dict[tuple[str, str], dict[tuple[tuple[str, str], str], list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    online: set[tuple[str, str]] = set()

    def see(device: tuple[str, str]) -> None:
        streams = [names for names in waiting[device].values() if names]
        if streams:
            history.see(device, random.choice(streams).pop(0))

    for _ in range(random.randint(20, 80)):
        device = random.choice(devices)
        match random.choice(["send", "send", "see", "see", "move"]):
            case "send":
                to = random.choice([user for user in users if user != device[0]])
                name = history.send(device, to)
                for other in devices:
                    if other[0] in (device[0], to) and other != device:
                        waiting[other][device, to].append(name)
            case "see" if device in online:
                see(device)
            case "move":
                history.at_device("offline" if device in online else "online", device)
                online ^= {device}
    for device in devices:
        if device not in online:
            history.at_device("online", device)
        while any(waiting[device].values()):
            see(device)
    return history


def lose(random: Random, records: list[Record]) -> None:
    records.remove(random.choice([r for r in records if r["type"] == "seen"]))


def duplicate(random: Random, records: list[Record]) -> None:
    index = random.choice([i for i, r in enumerate(records) if r["type"] == "seen"])
    again = dict(records[index])
    later = random.randint(index + 1, len(records))
    again["at"] = records[later - 1]["at"]
    records.insert(later, again)


def swap(random: Random, records: list[Record]) -> None:
    sends = {r["message"]: r for r in records if r["type"] == "send"}
    streams: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for r in records:
        if r["type"] == "seen":
            send = sends[r["message"]]
            streams[r["user"], r["device"], send["user"], send["device"], send["to"]].append(r)
    long = [seen for seen in streams.values() if len(seen) > 1]
    assume(long)
    one, other = random.sample(random.choice(long), 2)
    for field in ("message", "id", "digest"):
        one[field], other[field] = other[field], one[field]


def misdeliver(random: Random, records: list[Record]) -> None:
    seen = random.choice([r for r in records if r["type"] == "seen"])
    send = next(r for r in records if r["type"] == "send" and r["message"] == seen["message"])
    stranger = random.choice(
        [r for r in records if r["type"] == "device" and r["user"] not in (send["user"], send["to"])]
    )
    records.append(dict(seen, user=stranger["user"], device=stranger["device"], at=records[-1]["at"]))


def alter(random: Random, records: list[Record]) -> None:
    seen = random.choice([r for r in records if r["type"] == "seen"])
    seen[random.choice(["digest", "id", "from", "from_device"])] += "0"


def invent(random: Random, records: list[Record]) -> None:
    seen = random.choice([r for r in records if r["type"] == "seen"])
    records.append(dict(seen, message="m0", at=records[-1]["at"]))


MUTATIONS = {
    "lost": lose,
    "duplicated": duplicate,
    "reordered": swap,
    "misdelivered": misdeliver,
    "altered": alter,
    "unknown": invent,
}

any_random = st.randoms(use_true_random=False)
thorough = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@thorough
@given(any_random)
def test_any_correct_history_passes(path: Path, random: Random) -> None:
    history = correct(random)
    sends = sum(record["type"] == "send" for record in history.records)
    verdict = verdict_on(path, history.records, expected_sent=sends)
    assert verdict["ok"]
    assert verdict["delivered"] == verdict["sent"] == sends


@thorough
@given(any_random, st.sampled_from(sorted(MUTATIONS)))
def test_any_single_mutation_is_found(path: Path, random: Random, kind: str) -> None:
    history = correct(random)
    assume(any(record["type"] == "seen" for record in history.records))
    MUTATIONS[kind](random, history.records)
    verdict = verdict_on(path, history.records)
    assert not verdict["ok"]
    assert set(broken(verdict)) == {kind}
