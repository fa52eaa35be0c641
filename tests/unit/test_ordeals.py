"""What counts as a broken bound, and how latencies are summed up."""

from typing import Any

import pytest

from scripts.harness.abuse.background_clients import Latency, Talk, Talked
from scripts.harness.abuse.scenarios import GROUPS, Ordeal, broken

ORDEAL = Ordeal(
    "test", grown_mib=64.0, p50=4.0, p99=20.0, p99_after=3.0, expected=(("sent", 10),), at_most=(("sent", 90),)
)
WELL: dict[str, Any] = {
    "grown": {"c1": 10.0, "t1": 0.0},
    "before": Latency(100, 1.0, 10.0, 12.0),
    "during": Latency(100, 2.0, 40.0, 50.0),
    "after": Latency(100, 1.0, 11.0, 12.0),
    "cut": 0,
    "counts": {"sent": 50.0},
}


def test_every_bound_held() -> None:
    assert broken(ORDEAL, **WELL) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grown": {"c1": 10.0, "t1": 65.0}}, "t1 grew by 65 MiB"),
        ({"during": Latency(100, 5.0, 40.0, 50.0)}, "p50 during it is 5 ms"),
        ({"during": Latency(100, 2.0, 201.0, 210.0)}, "p99 during it is 201 ms"),
        ({"during": Latency(0, 0.0, 0.0, 0.0)}, "said nothing"),
        ({"after": Latency(100, 1.0, 31.0, 40.0)}, "p99 after it is 31 ms"),
        ({"cut": 1}, "a bystander was cut 1 times"),
        ({"counts": {"sent": 9.0}}, "only 9 sent"),
        ({"counts": {}}, "only 0 sent"),
        ({"counts": {"sent": 91.0}}, "91 sent were let through"),
    ],
)
def test_each_bound_can_break(change: dict[str, Any], words: str) -> None:
    (sentence,) = broken(ORDEAL, **(WELL | change))
    assert words in sentence


def test_latencies_are_those_of_a_time() -> None:
    talked = Talked([Talk(at, (at + 1) / 1_000) for at in range(200)], cut=0)
    assert talked.between(0, 100) == Latency(100, 51.0, 100.0, 100.0)
    assert talked.between(500, 600) == Latency(0, 0.0, 0.0, 0.0)


def test_every_ordeal_says_what_it_has_to_do_at_least() -> None:
    for ordeals in GROUPS.values():
        assert all(ordeal.expected for ordeal in ordeals)
