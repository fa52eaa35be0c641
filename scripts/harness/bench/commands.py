"""The commands of `bench.py`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meshim.errors import UsageError
from scripts.harness.bench.benchmarks import Bench
from scripts.harness.bench.bounds import check_growth, check_scale
from scripts.harness.bench.text import TEXTS
from scripts.harness.bench.workloads import WINDOW
from scripts.harness.clients.connections import Transport

as_json = click.option("--json", "json_", is_flag=True, help="Print the figures as one JSON object.")
plain = click.option("--plain", is_flag=True, help="Links without CURVE (clients over WebSocket never have it).")
transport = click.option(
    "--transport", type=click.Choice(["zeromq", "websocket"]), default="zeromq", show_default=True, help="Of clients."
)
seconds = click.option("--seconds", type=click.FloatRange(1, 3600), default=8.0, show_default=True, help="Measured.")
connectors = click.option("--connectors", type=click.IntRange(1, 16), default=2, show_default=True)
transfers = click.option("--transfers", type=click.IntRange(1, 16), default=1, show_default=True)
pairs = click.option(
    "--pairs", type=click.IntRange(1, 2_500), default=50, show_default=True, help="Senders, each with a recipient."
)
window = click.option(
    "--window", type=click.IntRange(1, 256), default=WINDOW, show_default=True, help="Unconfirmed messages of each."
)
Rate = click.FloatRange(1, 100_000)


@click.group(context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure how fast a mesh is, and its cost: CPU of all its processes together, with CURVE, every promise kept.

    Each command starts a mesh of its own on embedded backends and prints what it measured. This one process makes the
    load, on the same machine as the mesh: run nothing else there meanwhile.

    Exit code 0: measured.  1: a message was lost or came twice, or a bound was broken.  2: it could not be done.
    """


@bench.command()
@pairs
@window
@seconds
@connectors
@transfers
@plain
@transport
@as_json
def online(
    pairs: int,
    window: int,
    seconds: float,
    connectors: int,
    transfers: int,
    plain: bool,
    transport: Transport,
    json_: bool,
) -> None:
    """Throughput: messages a second, and the CPU of each."""
    _print(
        "online",
        Bench(curve=not plain, transport=transport).online(pairs, window, seconds, connectors, transfers),
        json_,
    )


@bench.command()
@click.option("--rate", type=Rate, default=1_000.0, show_default=True, help="Messages a second.")
@click.option("--users", type=click.IntRange(2, 5_000), default=100, show_default=True, help="Half of them send.")
@seconds
@connectors
@transfers
@plain
@transport
@as_json
def latency(
    rate: float,
    users: int,
    seconds: float,
    connectors: int,
    transfers: int,
    plain: bool,
    transport: Transport,
    json_: bool,
) -> None:
    """Latency of a message at a rate below saturation."""
    _print(
        "latency",
        Bench(curve=not plain, transport=transport).latency(users, rate, seconds, connectors, transfers),
        json_,
    )


@bench.command()
@click.option("--messages", type=click.IntRange(1_000, 1_000_000), default=20_000, show_default=True)
@plain
@transport
@as_json
def offline(messages: int, plain: bool, transport: Transport, json_: bool) -> None:
    """Messages to offline users: stored, written, and collected when they log in."""
    _print("offline", Bench(curve=not plain, transport=transport).offline(messages), json_)


@bench.command()
@click.option("--connections", type=click.IntRange(100, 5_000), default=2_000, show_default=True)
@plain
@transport
@as_json
def idle(connections: int, plain: bool, transport: Transport, json_: bool) -> None:
    """Idle connections: how many are made in a second, and their memory."""
    _print("idle", Bench(curve=not plain, transport=transport).idle(connections), json_)


@bench.command()
@click.option("--minutes", type=click.FloatRange(1.5, 600), default=10.0, show_default=True)
@click.option("--rate", type=Rate, default=20_000.0, show_default=True, help="About half of the rate of `online`.")
@plain
@transport
@as_json
def soak(minutes: float, rate: float, plain: bool, transport: Transport, json_: bool) -> None:
    """Growth of memory under load; exits with 1 above 5 %."""
    result = Bench(curve=not plain, transport=transport).soak(minutes, rate)
    _print("soak", result, json_)
    check_growth(result)


@bench.command()
@click.option("--seconds", type=click.FloatRange(1, 600), default=6.0, show_default=True, help="Measured in each case.")
@click.option("--repetitions", type=click.IntRange(1, 20), default=1, show_default=True)
@plain
@transport
@as_json
def scale(seconds: float, repetitions: int, plain: bool, transport: Transport, json_: bool) -> None:
    """Cost of a message with more users, connectors and transfers; exits with 1 above 15 %."""
    result = Bench(curve=not plain, transport=transport).scale(seconds, repetitions, _on_stderr)
    _print("scale", result, json_)
    check_scale(result)


@bench.command()
@click.option("--repetitions", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--soak-minutes", type=click.FloatRange(1.5, 600), default=10.0, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs"),
    show_default=True,
    help="Folder of performance.md.  Plots need what `scripts/setup test` installs.",
)
def report(repetitions: int, soak_minutes: float, out: Path) -> None:
    """Everything, and docs/performance.md with tables, plots and the machine (half an hour)."""
    try:
        from scripts.harness.bench import report  # here, as matplotlib takes a second
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: run `scripts/setup test` and this again") from error
    try:
        report.write(out, Bench(), repetitions, soak_minutes, _on_stderr)
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror}): name another folder with --out") from error


def _print(command: str, result: Any, json_: bool) -> None:
    text: Callable[[Any], Any] = TEXTS[command]
    click.echo(json.dumps(result) if json_ else "\n".join(text(result)))


def _on_stderr(line: str) -> None:
    click.echo(line, err=True)
