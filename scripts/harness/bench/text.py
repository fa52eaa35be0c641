"""The figures of `bench.py` as text for a terminal."""

from collections.abc import Callable, Iterator

from scripts.harness.bench.benchmarks import Result, slope


def online(result: Result) -> Iterator[str]:
    """Yield the lines of `bench.py online`."""
    yield _cost("messages with their receipts", result)


def latency(result: Result) -> Iterator[str]:
    """Yield the lines of `bench.py latency`."""
    yield (
        f"{result['p50_ms']:.2f} ms from one application to the other (median), "
        f"{result['p99_ms']:.2f} of 99 in 100, {result['max_ms']:.1f} at most"
    )
    yield _cost("messages with their receipts", result)


def offline(result: Result) -> Iterator[str]:
    """Yield the lines of `bench.py offline`."""
    yield _cost("messages stored and fsynced", result["stored"])
    yield _cost("messages in the database", result["written"])
    yield _cost("messages collected (with the logins)", result["collected"])
    yield _cost("messages collected and marked as read", result["marked"])


def idle(result: Result) -> Iterator[str]:
    """Yield the lines of `bench.py idle`."""
    yield _cost("connections with token and presence", result)
    yield f"{result['kib']:.1f} KiB for each that is idle"


def soak(result: Result) -> Iterator[str]:
    """Yield the lines of `bench.py soak`."""
    yield _cost("messages with their receipts", result)
    each = ", ".join(f"{name} {ratio:.3f}" for name, ratio in result["growth_by"].items())
    yield f"memory at the end is {result['growth']:.3f} of that after a minute ({each})"


def scale(result: dict[str, list[Result]]) -> Iterator[str]:
    """Yield the lines of `bench.py scale`."""
    for name in ("users", "connectors", "transfers"):
        cases = result[name]
        smallest = cases[0]["cpu_us"]
        for case in cases:
            yield (
                f"{case[name]:>6,.0f} {name:<10} {case['rate']:>7,.0f} messages/s "
                f"{case['cpu_us']:>7.1f} µs each, {case['cpu_us'] / smallest:.2f} of the smallest"
            )
        yield f"       slope: {slope([(case[name], case['cpu_us']) for case in cases]):+.4f} µs for each more"


def _cost(what: str, cost: Result) -> str:
    each = ", ".join(f"{name} {us:.1f}" for name, us in cost["cpu_us_by"].items() if us >= 0.05)
    return f"{cost['rate']:,.0f} {what} a second, {cost['cpu_us']:.1f} µs of CPU each ({each})"


TEXTS: dict[str, Callable[..., Iterator[str]]] = {
    "online": online,
    "latency": latency,
    "offline": offline,
    "idle": idle,
    "soak": soak,
    "scale": scale,
}
"""The text of each command."""
