"""The bounds of measurements: what `bench.py soak` and `bench.py scale` exit with 1 for."""

from scripts.harness.bench.benchmarks import CONNECTORS, TRANSFERS, USERS, Result
from scripts.harness.bench.workloads import InvalidMeasurement

GROWTH_MAX = 1.05
SCALE_MAX = 1.15


def check_growth(result: Result) -> None:
    """Raise InvalidMeasurement when memory has grown by more than 5 % after the first minute."""
    if result["growth"] > GROWTH_MAX:
        raise InvalidMeasurement("memory has grown by more than 5 %")


def check_scale(result: dict[str, list[Result]]) -> None:
    """Raise InvalidMeasurement when a message costs more than 1.15 times that of the smallest case."""
    beyond = []
    for name, counts in (("users", USERS), ("connectors", CONNECTORS), ("transfers", TRANSFERS)):
        costs = [case["cpu_us"] for case in result[name]]
        beyond += [f"{count} {name}" for count, us in zip(counts, costs, strict=True) if us > SCALE_MAX * costs[0]]
    if beyond:
        raise InvalidMeasurement(f"more than {SCALE_MAX} times the cost of the smallest case: {', '.join(beyond)}")
