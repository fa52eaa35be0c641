"""Section 16 of docs/protocol.md, "the smallest client", is extracted and run: it decides what the library decides."""

import random
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshim.errors import Code
from meshim.protocol.ordering import OrderingOptions, StreamOrder

ROOT = Path(__file__).parents[3]
STREAM = (7, 12, 99, 9)
TO = (1, 9, 0)


def page_rules() -> str:
    page = (ROOT / "docs" / "protocol.md").read_text()
    [block] = re.findall(r"```python rules\n(.*?)```", page, re.DOTALL)
    return str(block)


def make_rules(disk: dict[Any, Any]) -> Any:
    names: dict[str, Any] = {}
    exec(compile(page_rules(), "docs/protocol.md", "exec"), names)
    return names["Rules"](disk)


def test_the_example_contains_the_page() -> None:
    example = (ROOT / "examples" / "minimal_client.py").read_text()
    assert page_rules().strip() in example


@given(st.lists(st.tuples(st.sampled_from([0, 0, 1, 20, 35]), st.integers(1, 12), st.integers(0, 11)), max_size=40))
def test_the_order_is_that_of_the_library(steps: list[tuple[int, int, int]]) -> None:
    rules, order = make_rules({}), StreamOrder[int](OrderingOptions(gap_release_s=30, early_max=1024, holes_max=64))
    now = 0
    for passed, seq, behind in steps:
        now += passed
        assert rules.tick(now) == [released.item for released in order.tick(now)]
        base = max(1, seq - behind)
        released = order.receive(seq, base, seq, now)
        assert rules.deliver(STREAM, seq, base, seq, now) == [each.item for each in released or []]


@given(st.lists(st.sampled_from(["make", "final", "rejected", "busy", "stored", "restart", "connected"]), max_size=60))
def test_every_message_is_submitted_until_it_is_settled(steps: list[str]) -> None:
    disk: dict[Any, Any] = {}
    rules, now, made, settled = make_rules(disk), 0.0, 0, set[int]()
    choose = random.Random(len(steps))
    for step in steps:
        now += 1
        unsettled = rules.unsettled(TO)
        assert set(unsettled) == set(range(1, made + 1)) - settled
        if step == "make":
            made += 1
            assert rules.make(TO, lambda seq, base: (seq, base), now) == made
        elif step == "restart":
            rules = make_rules(disk)
        elif step == "connected":
            rules.connected(now)
            assert [envelope[0] for envelope, _ in rules.due(now)] == unsettled
        elif unsettled:
            seq = choose.choice(unsettled)
            status = {"final": 1, "rejected": 3, "busy": 4, "stored": 2}[step]
            done, _ = rules.outcome(now, TO, seq, seq, status, step == "final", 5, b"cookie")
            assert done == ([seq] if step in ("final", "rejected") else [])
            settled.update(done)
            if step in ("final", "stored"):
                assert disk["out", TO]["cookie"] == b"cookie"
    rules.connected(now)
    assert {envelope[0] for envelope, _ in rules.due(now)} == set(range(1, made + 1)) - settled


def test_a_base_update_is_owed_when_the_messages_of_a_run_had_different_fates() -> None:
    rules = make_rules({})
    for _ in range(3):
        rules.make(TO, lambda seq, base: (seq, base), 0)
    assert rules.outcome(0, TO, 1, 1, 1, True, 5) == ([1], False)
    assert rules.outcome(0, TO, 2, 2, 3) == ([2], False)
    assert rules.outcome(0, TO, 3, 3, 1, True, 5) == ([3], True)
    rules.make(TO, lambda seq, base: (seq, base), 0)
    assert rules.outcome(0, TO, 4, 4, 1, True, 6) == ([4], False), "a new run begins with a new fate"


def test_what_a_full_queue_refuses_is_submitted_seldom_and_before_a_recipient_gives_it_up() -> None:
    rules = make_rules({})
    rules.make(TO, lambda seq, base: (seq, base), 0)
    times = []
    for now in range(60):
        if rules.due(now):
            times.append(now)
            assert rules.outcome(now, TO, 1, 1, 4, False, 0, b"", Code.QUEUE_FULL, "full") == ([], False)
    assert times == [0, 10, 20, 30, 40, 50]
    assert rules.outcome(60, TO, 1, 1, 2, True, 5) == ([1], False)


def test_an_outcome_of_an_unknown_status_settles_nothing() -> None:
    rules = make_rules({})
    rules.make(TO, lambda seq, base: (seq, base), 0)
    assert rules.outcome(0, TO, 1, 1, 99, True, 5, b"cookie") == ([], False)
    assert rules.unsettled(TO) == [1]
    assert rules.disk["out", TO]["cookie"] == b""
