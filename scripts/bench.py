#!/usr/bin/env python3
"""How fast a mesh is, and what it costs."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

# isort: split
import click

from meshim.errors import MeshimError, UsageError
from scripts.harness.bench.benchmarks import CONNECTORS, TRANSFERS, USERS, Bench, Result, slope
from scripts.harness.bench.workloads import WINDOW, InvalidMeasurement
from scripts.harness.mesh.options import interrupt_on_sigterm

FILES = 20_000
"""Descriptors: a client's connection takes two here, and one in a connector."""
SCALE_BOUND = 1.15

Print = Callable[[Any, Callable[[], None]], None]

as_json = click.option("--json", "json_", is_flag=True, help="Print what was seen as one JSON object.")
plain = click.option("--plain", is_flag=True, help="Links without CURVE.")
seconds = click.option(
    "--seconds", type=click.FloatRange(1, 3600), default=8.0, show_default=True, help="MeasuredMesh."
)
connectors = click.option("--connectors", type=click.IntRange(1, 16), default=2, show_default=True)
transfers = click.option("--transfers", type=click.IntRange(1, 16), default=1, show_default=True)


@click.group(context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
def bench() -> None:
    """How fast a mesh is, and what it costs: CPU of all its processes together, with CURVE, every promise kept.

    Each command starts a mesh of its own on embedded backends, asks something of it, and prints what it saw. The
    load comes from this one process, which shares the machine with the mesh: do nothing else there meanwhile.

    Exit code 0: measured.  1: something was lost, came twice or broke a bound.  2: it could not be done.
    """


@bench.command()
@click.option("--pairs", type=click.IntRange(1, 2_500), default=50, show_default=True, help="Who talk, one way each.")
@click.option(
    "--window", type=click.IntRange(1, 256), default=WINDOW, show_default=True, help="Unconfirmed messages of each."
)
@seconds
@connectors
@transfers
@plain
@as_json
def online(
    pairs: int, window: int, seconds: float, connectors: int, transfers: int, plain: bool, json_: bool
) -> None:  # fmt: skip
    """As fast as it goes: messages a second, and what each costs."""
    result = Bench(curve=not plain).online(pairs, window, seconds, connectors, transfers)
    _print(result, json_, lambda: _cost("messages with their receipts", result))


@bench.command()
@click.option(
    "--rate", type=click.FloatRange(1, 100_000), default=1_000.0, show_default=True, help="Messages a second."
)
@click.option("--users", type=click.IntRange(2, 5_000), default=100, show_default=True, help="Half of them write.")
@seconds
@connectors
@transfers
@plain
@as_json
def latency(
    rate: float, users: int, seconds: float, connectors: int, transfers: int, plain: bool, json_: bool
) -> None:  # fmt: skip
    """At a rate that leaves time: how long a message takes."""
    result = Bench(curve=not plain).latency(users, rate, seconds, connectors, transfers)

    def show() -> None:
        click.echo(
            f"{result['p50_ms']:.2f} ms from one application to the other (median), "
            f"{result['p99_ms']:.2f} of 99 in 100, {result['max_ms']:.1f} at most"
        )
        _cost("messages with their receipts", result)

    _print(result, json_, show)


@bench.command()
@click.option("--messages", type=click.IntRange(1_000, 1_000_000), default=20_000, show_default=True)
@plain
@as_json
def offline(messages: int, plain: bool, json_: bool) -> None:
    """For people who are away: stored, written, and collected when they log in."""
    result = Bench(curve=not plain).offline(messages)

    def show() -> None:
        _cost("messages stored and fsynced", result["stored"])
        _cost("messages in the database", result["written"])
        _cost("messages collected (with the logins)", result["collected"])
        _cost("messages collected and marked as read", result["marked"])

    _print(result, json_, show)


@bench.command()
@click.option("--connections", type=click.IntRange(100, 5_000), default=2_000, show_default=True)
@plain
@as_json
def idle(connections: int, plain: bool, json_: bool) -> None:
    """Connections that say nothing: how many a second, and their memory."""
    result = Bench(curve=not plain).idle(connections)

    def show() -> None:
        _cost("connections with token and presence", result)
        click.echo(f"{result['kib']:.1f} KiB for each that is idle")

    _print(result, json_, show)


@bench.command()
@click.option("--minutes", type=click.FloatRange(1.5, 600), default=10.0, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(1, 100_000),
    default=20_000.0,
    show_default=True,
    help="About half of what `online` says.",
)
@plain
@as_json
def soak(minutes: float, rate: float, plain: bool, json_: bool) -> None:
    """Whether memory grows while it works; exits with 1 when it does by more than 5 %."""
    result = Bench(curve=not plain).soak(minutes, rate)

    def show() -> None:
        _cost("messages with their receipts", result)
        each = ", ".join(f"{name} {ratio:.3f}" for name, ratio in result["growth_by"].items())
        click.echo(f"memory at the end is {result['growth']:.3f} of that after a minute ({each})")

    _print(result, json_, show)
    if result["growth"] > 1.05:
        raise InvalidMeasurement("memory has grown by more than 5 %")


@bench.command()
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=6.0, show_default=True, help="MeasuredMesh in each case."
)
@click.option("--repetitions", type=click.IntRange(1, 20), default=1, show_default=True)
@plain
@as_json
def scale(seconds: float, repetitions: int, plain: bool, json_: bool) -> None:
    """What a message costs as users, connectors and transfers become more; exits with 1 beyond 15 %."""
    result = Bench(curve=not plain).scale(seconds, repetitions, lambda what: click.echo(what, err=True))
    beyond = []
    for name, counts in (("users", USERS), ("connectors", CONNECTORS), ("transfers", TRANSFERS)):
        costs = [case["cpu_us"] for case in result[name]]
        beyond += [f"{count} {name}" for count, us in zip(counts, costs, strict=True) if us > SCALE_BOUND * costs[0]]
    _print(result, json_, lambda: _scales(result))
    if beyond:
        raise InvalidMeasurement(f"more than {SCALE_BOUND} times the cost of the smallest case: {', '.join(beyond)}")


@bench.command()
@click.option("--repetitions", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--soak-minutes", type=click.FloatRange(1.5, 600), default=10.0, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs"),
    show_default=True,
    help="Folder of report.md, which needs what `scripts/setup test` installs.",
)
def report(repetitions: int, soak_minutes: float, out: Path) -> None:
    """Everything, and docs/performance.md with tables, plots and the machine (half an hour)."""
    try:
        from scripts.harness.bench import report  # here, as matplotlib takes a second
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: run `scripts/setup test` and this again") from error
    try:
        report.write(out, Bench(), repetitions, soak_minutes, lambda what: click.echo(what, err=True))
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror}): name another folder with --out") from error


def _print(result: Any, json_: bool, show: Callable[[], None]) -> None:
    if json_:
        click.echo(json.dumps(result))
    else:
        show()


def _cost(what: str, cost: Result) -> None:
    each = ", ".join(f"{name} {us:.1f}" for name, us in cost["cpu_us_by"].items() if us >= 0.05)
    click.echo(f"{cost['rate']:,.0f} {what} a second, {cost['cpu_us']:.1f} µs of CPU each ({each})")


def _scales(result: dict[str, list[Result]]) -> None:
    for name, field in (("users", "users"), ("connectors", "connectors"), ("transfers", "transfers")):
        cases = result[name]
        least = cases[0]["cpu_us"]
        for case in cases:
            click.echo(
                f"{case[field]:>6,.0f} {name:<10} {case['rate']:>7,.0f} messages/s "
                f"{case['cpu_us']:>7.1f} µs each, {case['cpu_us'] / least:.2f} of the smallest"
            )
        per = slope([(case[field], case["cpu_us"]) for case in cases])
        click.echo(f"       slope: {per:+.4f} µs for each more")


def _raise_files() -> None:
    """The mesh inherits the limit of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> int:
    interrupt_on_sigterm()
    _raise_files()
    try:
        bench(standalone_mode=False)
    except click.Abort:
        return _interrupted()
    except click.ClickException as error:
        error.show()
        return 2
    except MeshimError as error:
        click.echo(f"bench: {error.sentence}", err=True)
        return 2
    except InvalidMeasurement as error:
        click.echo(f"bench: {error}.", err=True)
        return 1
    except KeyboardInterrupt:
        return _interrupted()
    return 0


def _interrupted() -> int:
    click.echo("bench: interrupted; its mesh has ended.", err=True)
    return 130


if __name__ == "__main__":
    sys.exit(main())
