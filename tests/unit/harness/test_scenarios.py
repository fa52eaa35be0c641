"""The bounds of the abuse scenarios, and the latencies of the background clients."""

from typing import Any

import pytest

from scripts.harness.abuse.background_clients import Conversation, Latency, MessageTiming
from scripts.harness.abuse.scenarios import GROUPS, Scenario, broken_bounds

SCENARIO = Scenario(
    "test", grown_mib=64.0, p50=4.0, p99=20.0, p99_after=3.0, expected=(("sent", 10),), at_most=(("sent", 90),)
)
HELD: dict[str, Any] = {
    "grown": {"c1": 10.0, "t1": 0.0},
    "before": Latency(100, 1.0, 10.0, 12.0),
    "during": Latency(100, 2.0, 40.0, 50.0),
    "after": Latency(100, 1.0, 11.0, 12.0),
    "cut": 0,
    "counts": {"sent": 50.0},
}


def test_no_sentence_while_every_bound_holds() -> None:
    assert broken_bounds(SCENARIO, **HELD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grown": {"c1": 10.0, "t1": 65.0}}, "t1 grew by 65 MiB"),
        ({"during": Latency(100, 5.0, 40.0, 50.0)}, "p50 during the attack is 5 ms"),
        ({"during": Latency(100, 2.0, 201.0, 210.0)}, "p99 during the attack is 201 ms"),
        ({"during": Latency(0, 0.0, 0.0, 0.0)}, "sent nothing"),
        ({"after": Latency(100, 1.0, 31.0, 40.0)}, "p99 after the attack is 31 ms"),
        ({"cut": 1}, "a background client was cut 1 times"),
        ({"counts": {"sent": 9.0}}, "only 9 sent"),
        ({"counts": {}}, "only 0 sent"),
        ({"counts": {"sent": 91.0}}, "91 sent were let through"),
    ],
)
def test_each_broken_bound_is_one_sentence(change: dict[str, Any], words: str) -> None:
    (sentence,) = broken_bounds(SCENARIO, **(HELD | change))
    assert words in sentence


def test_latencies_are_of_the_messages_of_an_interval() -> None:
    conversation = Conversation([MessageTiming(at, (at + 1) / 1_000) for at in range(200)], cut=0)
    assert conversation.between(0, 100) == Latency(100, 51.0, 100.0, 100.0)
    assert conversation.between(500, 600) == Latency(0, 0.0, 0.0, 0.0)


def test_every_ordeal_says_what_it_has_to_do_at_least() -> None:
    for scenarios in GROUPS.values():
        assert all(scenario.expected for scenario in scenarios)
