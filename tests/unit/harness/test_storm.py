"""What `bounds.py storm` says about a storm."""

from collections import Counter
from typing import Any

import pytest

from scripts.harness.abuse.storm import Return, figures


def storm(took_s: list[float], clients: int = 4) -> dict[str, Any]:
    """4 s without connectors, 6 s for all answers, 10 s for all greetings: 20 s are needed, and 30 s allowed."""
    back = Return(sorted(took_s), Counter({"200": 4}), Counter())
    return figures(clients, outage_s=4.0, ask_s=6.0, greet_s=10.0, back=back)


def test_all_were_back_in_time() -> None:
    found = storm([5.0, 12.0, 20.0, 29.0])
    assert found["broken"] == []
    assert (found["needed_s"], found["half_s"], found["all_s"], found["ratio"]) == (20.0, 20.0, 29.0, 1.45)


@pytest.mark.parametrize(
    ("took_s", "sentence"),
    [
        ([5.0, 12.0, 20.0, 30.1], "all were back after 30.1 s: 30.0 s are allowed"),
        ([5.0, 12.0, 20.0], "1 of 4 clients were not back after 300 s"),
        ([], "4 of 4 clients were not back after 300 s"),
    ],
)
def test_a_client_that_is_late_or_missing_breaks_the_bound(took_s: list[float], sentence: str) -> None:
    assert storm(took_s)["broken"] == [sentence]


def test_with_few_clients_the_pauses_of_their_back_off_are_allowed() -> None:
    back = Return([14.9], Counter(), Counter())
    assert figures(1, outage_s=3.0, ask_s=0.1, greet_s=0.1, back=back)["broken"] == []
