"""One chaos run, from the start of the mesh to the verdict."""

import asyncio
import heapq
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from meshim.deploy.state import DataFolder
from meshim.errors import MeshimError
from meshim.topology import Topology
from scripts.harness.chaos.client_pool import Troupe, enrol
from scripts.harness.chaos.counters import Tally
from scripts.harness.chaos.fault_plan import plan, too_few
from scripts.harness.chaos.injector import Strikes
from scripts.harness.chaos.mutations import mesh_command
from scripts.harness.chaos.observer import Follower
from scripts.harness.chaos.recovery import Recoveries, Recovery, by_kind
from scripts.harness.chaos.users import Cast, friends_of, parts_of
from scripts.harness.history.format import HistoryWriter, Record
from scripts.harness.mesh import local_mesh

PROCESSES = 4
"""Of players.  Python takes a core for each, and they share the machine with the mesh."""
RATE_LEAST = 500.0
PROVING_S = 120.0
"""A run that lasts so long has to show something: a fault of each kind twice, every counter, enough traffic."""
PROMISED_S = (
    ("kill-connector", "", "talked again", 5.0),
    ("kill-transfer", "", "talked again", 5.0),
    ("term-connector", "moved_", "had moved", 1.0),
)
"""What is promised of recovery, at default settings: kind, what is measured, in words, and seconds at most."""

_ONLINE_S = 30.0
_HEAL_S = 60.0
QUIET_S = 90.0
"""Until everything is settled and seen: a sweep, a gap given up, the longest pause of a client, and some more."""
_STUCK_S = 45.0
"""Whatever moves at all moves within a sweep."""
_LINGER_S = 2.0
"""After that, for what comes twice."""
_LEAVE_S = 30.0
_LOOK_S = 0.25
_TELL_S = 5.0
_SHM = Path("/dev/shm")  # noqa: S108  (not a temporary file: memory, where a sync costs nothing)


class Settings(msgspec.Struct, frozen=True):
    """What was asked for.  `everything` says that no kind of fault was left out on purpose."""

    seed: int
    seconds: float
    rate: float
    users: int
    kinds: tuple[str, ...]
    everything: bool
    breaks: str


class Run:
    """One run; `perform` does it."""

    def __init__(self, settings: Settings, mesh: Topology, folder: Path) -> None:
        self._settings = settings
        self._mesh = mesh
        self._folder = folder
        self._history = folder / "history.jsonl"
        self._notes: list[Record] = []
        self._start = 0.0
        self._facts: dict[str, Any] = {}
        self._phase = "everybody comes online"

    def perform(self) -> dict[str, Any]:
        """Return the answer, `ok` first.  Raises MeshimError when the run cannot be done."""
        settings = self._settings
        with ExitStack() as stack:
            writer = stack.enter_context(
                HistoryWriter(self._history, time.monotonic, "chaos", seed=settings.seed, seconds=settings.seconds)
            )
            self._start = writer.start
            api = stack.enter_context(local_mesh.running(self._folder, self._mesh, mesh_command(settings.breaks)))
            states = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshim-", dir=_memory()))
            uvloop.run(self._perform(api, Path(states), writer))
            recoveries = self._merge(writer)
        return self._answer(_judge(self._history), recoveries)

    def _clock(self) -> float:
        return time.monotonic() - self._start

    def _note(self, **fields: object) -> None:
        self._notes.append({"type": "note", "at": round(self._clock(), 6), **fields})

    # ---------------------------------------------------------------- the run

    async def _perform(self, api: str, states: Path, writer: HistoryWriter) -> None:
        settings = self._settings
        users = [f"u{at}.{secrets.token_hex(3)}" for at in range(settings.users)]
        records = self._folder / "records"
        records.mkdir()
        self._cast = cast = await enrol(
            Cast(
                api, secrets.token_hex(16), self._start, settings.seed, settings.rate, str(records), friends_of(users),
                parts_of(users, states, PROCESSES, settings.seed), settings.breaks,
            ),
            writer,
        )  # fmt: skip
        data = DataFolder(self._folder / "data")
        self._follower = follower = Follower(cast, PROCESSES)
        self._tally = Tally(data)
        troupe = Troupe(cast, self._folder, follower)
        self._strikes = strikes = Strikes(data, troupe, self._clock, self._note)
        looking = asyncio.create_task(self._look(troupe, strikes))
        try:
            await _either(self._act(troupe, strikes), looking)
        finally:
            looking.cancel()
            strikes.release()
            await troupe.end()

    async def _act(self, troupe: Troupe, strikes: Strikes) -> None:
        settings, follower = self._settings, self._follower
        await troupe.start(range(PROCESSES))
        parts = len(self._cast.parts)
        await self._until(lambda: len(follower.connected) == parts, _ONLINE_S, "Not everybody came online")
        await troupe.tell("go")
        began = self._clock()
        until = began + settings.seconds
        self._phase = f"traffic until {until:.0f} s"
        await strikes.perform(plan(settings.seed, settings.seconds, settings.kinds), began, until)
        await asyncio.sleep(max(0.0, until - self._clock()))
        sent, ended = follower.sent, self._clock()
        await strikes.over()
        await troupe.tell("hush")
        self._phase = "mending"
        await strikes.healed(_HEAL_S)
        healed = self._clock()
        self._note(healed=True)
        self._phase = f"waiting for quiet, {QUIET_S:g} s at most"
        quiet = await self._quiet(healed)
        await asyncio.sleep(_LINGER_S)
        self._tally.look()
        await troupe.leave(_LEAVE_S)
        follower.catch_up()
        self._tally.add("client", follower.counted)
        self._facts = {
            "rate": round(sent / (ended - began), 1),
            "quiet_s": quiet,
            "unfinished": len(follower.open),
            "max_settle_s": round(follower.max_settle_s, 2),
        }

    async def _quiet(self, since: float) -> float | None:
        """Wait until everything is settled and seen by everybody; how long that took, or None if it did not happen."""
        fewest, changed_at = len(self._follower.open), since
        while self._follower.open:
            now = self._clock()
            if len(self._follower.open) < fewest:
                fewest, changed_at = len(self._follower.open), now
            if now - since > QUIET_S or now - changed_at > _STUCK_S:
                return None  # the judge will say what it means
            await asyncio.sleep(_LOOK_S)
        return round(self._clock() - since, 1)

    async def _until(self, condition: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = self._clock() + within_s
        while not condition():
            if self._clock() > deadline:
                raise MeshimError(f"{otherwise} within {within_s:g} s (logs: {self._folder}).")
            await asyncio.sleep(_LOOK_S)

    async def _look(self, troupe: Troupe, strikes: Strikes) -> None:
        """Follow what happens, and tell it on stderr now and then.  Raises when a process ends that nobody killed."""
        told_at = self._clock()
        while True:
            await asyncio.sleep(_LOOK_S)
            self._follower.catch_up()
            self._tally.look()
            troupe.check(strikes.away)
            if self._clock() - told_at >= _TELL_S:
                told_at = self._clock()
                online, sent = len(self._follower.connected), self._follower.sent
                text = f"{online} devices online, {sent} sent, {len(self._follower.open)} under way"
                when = f"{self._clock():.0f} s, {self._phase}"
                print(f"chaos: {when}: {text}, {len(strikes.happened)} faults", file=sys.stderr, flush=True)

    # ---------------------------------------------------------------- afterwards

    def _merge(self, writer: HistoryWriter) -> list[Recovery]:
        """Put the records of all processes into the history, in the order of time; return what they say of recovery."""
        recoveries = Recoveries()
        for part in self._cast.parts:
            recoveries.take({"type": "device", "user": part.user, "device": part.device_id, "at": 0.0})
        files = [_records(self._cast.file_of(number)) for number in range(PROCESSES)]
        for record in heapq.merge(self._notes, *files, key=lambda record: record["at"]):
            writer.write(record)
            recoveries.take(record)
        return [recoveries.of(strike) for strike in self._strikes.happened]

    def _answer(self, verdict: dict[str, Any], recoveries: list[Recovery]) -> dict[str, Any]:
        settings, strikes = self._settings, self._strikes
        recovery = by_kind(recoveries)
        sums = self._tally.sums()
        why = [*self._broken(verdict, recovery), *self._worthless(sums)]
        names = ("sent", "settled", "delivered", "via_offline", "lost", "duplicated", "reordered", "misdelivered")
        return {
            "ok": not why,
            "why": why,
            "seed": settings.seed,
            "seconds": settings.seconds,
            "users": verdict["users"],
            "devices": verdict["devices"],
            **{name: verdict[name] for name in names},
            **{name: verdict[name] for name in ("altered", "unknown", "rejected", "in_doubt", "handed_again")},
            **self._facts,
            **sums,
            "recovery_s": recovery,
            "slow": [
                sentence for which in ("median", "max") for sentence in _too_slow(recovery, which, settings.kinds)
            ],
            "kills": [_told(each) for each in recoveries],
            "left_out": [fault.kind for fault in strikes.left_out],
            "problems": self._follower.problems,
            "violations": verdict["violations"],
            "counters": self._tally.all(),
            "history": str(self._history),
            "folder": str(self._folder),
        }

    def _broken(self, verdict: dict[str, Any], recovery: dict[str, dict[str, Any]]) -> Iterator[str]:
        """Promises that were not kept."""
        for name in ("lost", "duplicated", "reordered", "misdelivered", "altered", "unknown"):
            if verdict[name]:
                yield f"{verdict[name]} {name}"
        if self._facts["quiet_s"] is None:
            open_ = self._facts["unfinished"]
            yield f"{open_} messages were not settled and seen after everything was healed"
        if verdict["rejected"]:
            yield f"{verdict['rejected']} messages between friends were rejected"
        for problem in self._follower.problems[:3]:
            yield f"a client gave up: {problem.rstrip('.')}"
        # The median, and only where the promise is generous: players, mesh and servers share the machine.
        yield from _too_slow(recovery, "median", ("kill-connector", "kill-transfer"))

    def _worthless(self, sums: dict[str, int]) -> Iterator[str]:
        """Why a long run proves nothing."""
        settings = self._settings
        if settings.seconds < PROVING_S:
            return
        if self._facts["rate"] < RATE_LEAST:
            yield f"there were only {self._facts['rate']:g} messages a second, {RATE_LEAST:g} are wanted"
        if few := too_few((strike.kind for strike in self._strikes.happened), settings.kinds):
            yield f"these happened less than twice: {', '.join(few)}"
        if settings.everything and (zero := [name for name, count in sums.items() if not count]):
            yield f"these never happened: {', '.join(zero)}"


def _too_slow(recovery: dict[str, dict[str, Any]], which: str, kinds: Collection[str]) -> Iterator[str]:
    """Promises of recovery from these kinds that `which`, median or maximum, did not keep."""
    for kind, measured, did, most_s in PROMISED_S:
        if kind not in kinds:
            continue
        found = recovery.get(kind, {})
        if (took_s := found.get(f"{measured}{which}", 0.0)) > most_s:
            yield f"people {did} {took_s:g} s after {kind} ({which}), {most_s:g} s is promised"
        if found.get("never"):
            yield f"some people never talked again after {kind}"


def _memory() -> Path | None:
    """Where state files go: into memory if that is possible, since processes are killed here, and no power is lost."""
    return _SHM if _SHM.is_dir() else None


def _records(path: Path) -> Iterator[Record]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as lines:
        for line in lines:
            yield decode(line)


def _told(recovery: Recovery) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.structs.asdict(recovery.strike)
    for name, value in (("talking_s", recovery.talking_s), ("moved_s", recovery.moved_s)):
        if value is not None:
            told[name] = round(value, 2)
    return {name: value for name, value in told.items() if value is not None}


def _judge(history: Path) -> dict[str, Any]:
    """The verdict of the judge, in a process of its own; raises MeshimError with its sentence if it has none."""
    judge = Path(__file__).resolve().parents[2] / "check_history.py"
    done = subprocess.run([sys.executable, judge, history, "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise MeshimError(f"The judge failed: {done.stderr.strip()}")
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


async def _either(work: Coroutine[Any, Any, None], other: "asyncio.Task[None]") -> None:
    """Work to the end, unless the other ends before: it raises."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            other.result()
    finally:
        task.cancel()
    await task
