"""Figures of measurements, and the page that is made of them."""

from pathlib import Path
from typing import Any

import pytest

from scripts.harness.bench import report
from scripts.harness.bench.benchmarks import CONNECTORS, TRANSFERS, USERS, medians, memory_growth, slope
from scripts.harness.bench.workloads import percentiles_ms


def test_medians_of_nested_numbers() -> None:
    results = [{"what": "x", "rate": rate, "by": {"c1": by}} for rate, by in ((3.0, 1), (1.0, 5), (2.0, 9))]
    assert medians(results) == {"what": "x", "rate": 2.0, "by": {"c1": 5}}


def test_memory_growth_is_over_that_after_the_first_minute() -> None:
    seen = [(0.0, {"c1": 50, "t1": 50}), (61.0, {"c1": 100, "t1": 100}), (120.0, {"c1": 110, "t1": 100})]
    figures = memory_growth(seen)
    assert (figures["growth"], figures["growth_by"]) == (1.05, {"c1": 1.1, "t1": 1.0})


def test_the_slope_is_of_the_least_squares_line() -> None:
    assert slope([(1, 5), (2, 7), (3, 9)]) == pytest.approx(2.0)
    assert slope([(1, 0), (2, 3), (3, 0)]) == pytest.approx(0.0)
    assert slope([(1, 5), (1, 7)]) == 0.0


def test_percentiles_are_observed_values() -> None:
    assert percentiles_ms([]) == {}
    assert percentiles_ms([0.001]) == {"p50_ms": 1.0, "p99_ms": 1.0, "max_ms": 1.0}
    thousand = [number / 1000 for number in range(1000)]
    assert percentiles_ms(thousand[::-1]) == {"p50_ms": 500.0, "p99_ms": 990.0, "max_ms": 999.0}


def cost(**more: Any) -> dict[str, Any]:
    return {"rate": 1234.5, "cpu_us": 21.5, "cpu_us_by": {"c1": 20.0, "up": 0.0}} | more


def results() -> dict[str, Any]:
    latency = {f"latency {rate}": cost(rate_asked=rate, p50_ms=0.5, p99_ms=1.5) for rate in report.RATES}
    scale = {
        name: [cost(**{"users": 100, "connectors": 2, "transfers": 1, name: count}) for count in counts]
        for name, counts in (("users", USERS), ("connectors", CONNECTORS), ("transfers", TRANSFERS))
    }
    soak = {"minutes": 2.0, "rate_asked": 100.0, "rate": 99.0} | memory_growth(
        [(0.0, {"c1": 1024}), (60.0, {"c1": 2048}), (120.0, {"c1": 2048})]
    )
    return {
        "repetitions": 1, "online": cost(), "plain": cost(), "idle": cost(connections=2000, kib=33.3), **latency,
        "websocket online": cost(rate=2469.0), f"websocket latency {report.STEADY_RATE}": cost(p99_ms=1.2),
        "websocket idle": cost(connections=2000, kib=22.2),
        "offline": {"messages": 20_000, "away": 100, "came_again": 0} | dict.fromkeys(report.STEPS, cost()),
        "scale": scale, "soak": soak,
    }  # fmt: skip


def test_the_page_has_every_figure(tmp_path: Path) -> None:
    text = report.page(results(), report.machine(), "## Beside others\n\nThey are slower.\n")
    for words in (
        "1,234",
        "21.5",
        "33.3",
        "0.50",
        "1.50",
        "| c1 | 2.0 | 2.0 | 1.000 |",
        "| ratio | 2.00 | 1.00 | 0.80 | 1.00 | 1.00 | 0.67 |",
        "They are slower.",
        "processor",
    ):
        assert words in text, words
    assert "up 0.0" not in text, "what costs nothing is not listed"
    report.draw(tmp_path, results())
    shown = {line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert shown == {f"performance/{path.name}" for path in tmp_path.iterdir()}
