"""One chaos run, from the start of the mesh to the answer."""

import asyncio
import heapq
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from meshim.deploy.state import DataFolder
from meshim.errors import MeshimError
from meshim.topology import Topology
from scripts.harness.chaos.client_pool import ClientPool, seed_users
from scripts.harness.chaos.counters import MeshCounters
from scripts.harness.chaos.fault_plan import plan, too_few
from scripts.harness.chaos.hostile.phases import HostilePhases
from scripts.harness.chaos.injector import FaultInjector
from scripts.harness.chaos.minimal_clients import MinimalClients, language_of
from scripts.harness.chaos.mutations import mesh_command
from scripts.harness.chaos.observer import Observer
from scripts.harness.chaos.recovery import Recovery, RecoveryTimes, by_kind
from scripts.harness.chaos.settings import Settings
from scripts.harness.chaos.users import ClientsConfig, DeviceConfig, assign_devices, friends_of, with_minimal
from scripts.harness.history.format import HistoryWriter, Record
from scripts.harness.history.verdict import verdict_on
from scripts.harness.mesh import local_mesh

PROCESSES = 4
"""Client processes.  Python takes a core for each, and they share the machine with the mesh."""
RATE_MIN = 500.0
CONCLUSIVE_S = 120.0
"""A run of this length has to show something: each kind of fault twice, every counter, enough traffic."""
PROMISED_S = (
    ("kill-connector", "", "talked again", 5.0),
    ("kill-transfer", "", "talked again", 5.0),
    ("term-connector", "moved_", "had moved", 1.0),
)
"""Promised recovery at default settings: kind, prefix of the figure, words for it, and seconds at most."""

_CONNECT_S = 30.0
_HEAL_S = 60.0
QUIET_S = 90.0
"""Limit until all messages are settled and seen: a sweep, a gap release, the longest pause of a client, and more."""
_STUCK_S = 45.0
"""No progress for this long means that nothing will move: a sweep would have moved it."""
_LINGER_S = 2.0
"""Pause after that, in which duplicates may still arrive."""
_DISCONNECT_S = 30.0
_POLL_S = 0.25
_PROGRESS_S = 5.0
_SHM = Path("/dev/shm")  # noqa: S108  (in memory, where a sync costs nothing)


class Run:
    """One chaos run."""

    def __init__(self, settings: Settings, mesh: Topology, folder: Path) -> None:
        self._settings = settings
        self._mesh = mesh
        self._folder = folder
        self._history = folder / "history.jsonl"
        self._notes: list[Record] = []
        self._start = 0.0
        self._facts: dict[str, Any] = {}
        self._phase = "devices connect"
        self._hostile = HostilePhases(settings, folder / "data") if settings.hostile else None

    def run(self) -> dict[str, Any]:
        """Return the answer, `ok` first.  Raises MeshimError when the run cannot be done."""
        settings = self._settings
        with ExitStack() as stack:
            writer = stack.enter_context(
                HistoryWriter(self._history, time.monotonic, "chaos", seed=settings.seed, seconds=settings.seconds)
            )
            self._start = writer.start
            api = stack.enter_context(local_mesh.running(self._folder, self._mesh, mesh_command(settings.mutation)))
            states = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshim-", dir=_state_folder()))
            uvloop.run(self._run_in_loop(api, Path(states), writer))
            recoveries = self._merge(writer)
        return self._answer(verdict_on(self._history), recoveries)

    def _clock(self) -> float:
        return time.monotonic() - self._start

    def _note(self, **fields: object) -> None:
        self._notes.append({"type": "note", "at": round(self._clock(), 6), **fields})

    # ---------------------------------------------------------------- the run

    async def _run_in_loop(self, api: str, states: Path, writer: HistoryWriter) -> None:
        data = DataFolder(self._folder / "data")
        self._counters = MeshCounters(data)
        config, devices = await self._seed(api, states, writer)
        minimal = MinimalClients(config, devices, self._folder)
        try:
            self._config = config = await minimal.log_in(writer)
            senders = config.devices[-len(devices) :] if devices else ()
            self._observer = observer = Observer(config, PROCESSES + len(devices), senders)
            pool = ClientPool(config, self._folder, observer, minimal)
            self._injector = injector = FaultInjector(data, pool, self._clock, self._note)
            if self._hostile is not None:
                await self._hostile.seed(config)
            watching = asyncio.create_task(self._watch(pool, injector))
            try:
                await _run_with(self._run_phases(pool, injector), watching)
            finally:
                watching.cancel()
                injector.release()
                await pool.kill_all()
                if self._hostile is not None:
                    await self._hostile.end()
        finally:
            await minimal.end()

    async def _seed(
        self, api: str, states: Path, writer: HistoryWriter
    ) -> tuple[ClientsConfig, tuple[DeviceConfig, ...]]:
        """Register the users; return the configuration of the client library, and the devices of minimal clients."""
        settings = self._settings
        users = [f"u{at}.{secrets.token_hex(3)}" for at in range(settings.users)]
        journals = self._folder / "journals"
        journals.mkdir()
        devices = assign_devices(users, states, PROCESSES, settings.seed, settings.transport)
        devices, minimal = with_minimal(devices, users, states, PROCESSES, settings.minimal)
        config = ClientsConfig(
            api=api,
            password=secrets.token_hex(16),
            start=self._start,
            seed=settings.seed,
            rate=settings.rate,
            journals=str(journals),
            friends=friends_of(users),
            devices=devices,
            mutation=settings.mutation,
        )
        return await seed_users(config, writer), minimal

    async def _run_phases(self, pool: ClientPool, injector: FaultInjector) -> None:
        settings, observer = self._settings, self._observer
        await pool.start(range(PROCESSES))
        devices = len(self._config.devices)
        await self._until(lambda: len(observer.connected) == devices, _CONNECT_S, "Not every device came online")
        await pool.send("start")
        # A fault in a mesh without traffic shows nothing, and on a busy machine the clients take a moment to begin.
        await self._until(lambda: observer.sent >= min(devices, settings.rate), _CONNECT_S, "The clients did not write")
        sent_before, began = observer.sent, self._clock()
        until = began + settings.seconds
        self._phase = f"traffic until {until:.0f} s"
        faults_s, faults_at = settings.seconds, began
        if self._hostile is not None:
            faults_s = settings.seconds / 3
            faults_at = await self._hostile.begin(began, self._clock, self._note)
        await injector.run(plan(settings.seed, faults_s, settings.kinds), faults_at, until)
        await asyncio.sleep(max(0.0, until - self._clock()))
        sent, ended = observer.sent, self._clock()
        await injector.wait_over()
        if self._hostile is not None:
            await self._hostile.stop()
        await pool.send("stop")
        self._phase = "healing"
        await injector.wait_healed(_HEAL_S)
        healed = self._clock()
        self._note(healed=True)
        self._phase = f"waiting for quiet, {QUIET_S:g} s at most"
        quiet = await self._quiet(healed)
        await asyncio.sleep(_LINGER_S)
        self._counters.sample()
        await pool.disconnect(_DISCONNECT_S)
        observer.catch_up()
        self._counters.add("client", observer.client_counters)
        self._facts = {
            "rate": round((sent - sent_before) / (ended - began), 1),
            "quiet_s": quiet,
            "unfinished": len(observer.open),
            "unread": len(observer.unread),
            "max_settle_s": round(observer.max_settle_s, 2),
        }

    async def _quiet(self, since: float) -> float | None:
        """Wait until every message is settled, seen and read; return the seconds, or None when that did not happen."""
        fewest, changed_at = self._observer.awaited, since
        while self._observer.awaited:
            now = self._clock()
            if self._observer.awaited < fewest:
                fewest, changed_at = self._observer.awaited, now
            if now - since > QUIET_S or now - changed_at > _STUCK_S:
                return None  # the judge will find what is missing
            await asyncio.sleep(_POLL_S)
        return round(self._clock() - since, 1)

    async def _until(self, condition: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = self._clock() + within_s
        while not condition():
            if self._clock() > deadline:
                raise MeshimError(f"{otherwise} within {within_s:g} s (logs: {self._folder}).")
            await asyncio.sleep(_POLL_S)

    async def _watch(self, pool: ClientPool, injector: FaultInjector) -> None:
        """Read journals and counters, and print progress.  Raises MeshimError when a process ends by itself."""
        shown_at = self._clock()
        while True:
            await asyncio.sleep(_POLL_S)
            self._observer.catch_up()
            self._counters.sample()
            pool.check(injector.away)
            if self._hostile is not None:
                self._hostile.check()
            if self._clock() - shown_at >= _PROGRESS_S:
                shown_at = self._clock()
                online, sent = len(self._observer.connected), self._observer.sent
                text = f"{online} devices online, {sent} sent, {len(self._observer.open)} in flight"
                when = f"{self._clock():.0f} s, {self._phase}"
                print(f"chaos: {when}: {text}, {len(injector.happened)} faults", file=sys.stderr, flush=True)

    # ---------------------------------------------------------------- afterwards

    def _merge(self, writer: HistoryWriter) -> list[Recovery]:
        """Merge the records of all processes into the history by time; return the recovery from each fault."""
        recoveries = RecoveryTimes()
        for device in self._config.devices:
            recoveries.add({"type": "device", "user": device.user, "device": device.device_id, "at": 0.0})
        numbers = range(PROCESSES + len(self._settings.minimal))
        files = [_records(self._config.journal_of(number)) for number in numbers]
        for record in heapq.merge(self._notes, *files, key=lambda record: record["at"]):
            writer.write(record)
            recoveries.add(record)
            if self._hostile is not None:
                self._hostile.latencies.add(record)
        return [recoveries.of(injection) for injection in self._injector.happened]

    def _answer(self, verdict: dict[str, Any], recoveries: list[Recovery]) -> dict[str, Any]:
        settings, injector = self._settings, self._injector
        recovery = by_kind(recoveries)
        sums = self._counters.sums()
        why = [*self._broken(verdict, recovery), *self._inconclusive(sums)]
        names = ("sent", "settled", "delivered", "via_offline", "lost", "duplicated", "reordered", "misdelivered")
        return {
            "ok": not why,
            "why": why,
            "seed": settings.seed,
            "seconds": settings.seconds,
            "transport": settings.transport,
            "minimal": Counter(language_of(transport) for transport in settings.minimal),
            "users": verdict["users"],
            "devices": verdict["devices"],
            **{name: verdict[name] for name in names},
            **{name: verdict[name] for name in ("altered", "unknown", "rejected", "in_doubt", "handed_again")},
            **self._facts,
            **(self._hostile.report() if self._hostile is not None else {}),
            **sums,
            "recovery_s": recovery,
            "slow": [
                sentence for which in ("median", "max") for sentence in _too_slow(recovery, which, settings.kinds)
            ],
            "kills": [_injection_report(each) for each in recoveries],
            "left_out": [fault.kind for fault in injector.left_out],
            "problems": self._observer.problems,
            "violations": verdict["violations"],
            "counters": self._counters.all(),
            "history": str(self._history),
            "folder": str(self._folder),
        }

    def _broken(self, verdict: dict[str, Any], recovery: dict[str, dict[str, Any]]) -> Iterator[str]:
        """Yield a sentence for each broken promise."""
        for name in ("lost", "duplicated", "reordered", "misdelivered", "altered", "unknown"):
            if verdict[name]:
                yield f"{verdict[name]} {name}"
        if self._facts["unread"]:
            yield f"{self._facts['unread']} messages were read by a minimal client, and their senders were not told"
        if self._facts["quiet_s"] is None:
            open_ = self._facts["unfinished"]
            yield f"{open_} messages were not settled and seen after everything was healed"
        if verdict["rejected"]:
            yield f"{verdict['rejected']} messages between friends were rejected"
        for problem in self._observer.problems[:3]:
            yield f"a client gave up: {problem.rstrip('.')}"
        if self._hostile is not None:
            yield from self._hostile.broken()
            return  # a third of the time has too few faults for a median
        # The median, and only the promises with room: clients, mesh and servers share the cores of one machine.
        yield from _too_slow(recovery, "median", ("kill-connector", "kill-transfer"))

    def _inconclusive(self, sums: dict[str, int]) -> Iterator[str]:
        """Yield the reasons why a long run proves nothing."""
        settings = self._settings
        if settings.seconds < CONCLUSIVE_S:
            return
        if self._hostile is not None:
            yield from self._hostile.inconclusive()
            return
        if self._facts["rate"] < RATE_MIN:
            yield f"there were only {self._facts['rate']:g} messages a second, {RATE_MIN:g} are wanted"
        if few := too_few((injection.kind for injection in self._injector.happened), settings.kinds):
            yield f"these happened less than twice: {', '.join(few)}"
        if settings.everything and (zero := [name for name, count in sums.items() if not count]):
            yield f"these never happened: {', '.join(zero)}"
        if settings.transport != "zeromq" and not self._counters.all()["connector"].get("websocket_opened"):
            yield "no device came by WebSocket"


def _too_slow(recovery: dict[str, dict[str, Any]], which: str, kinds: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each promised recovery from these kinds that `which`, median or maximum, exceeds."""
    for kind, measured, did, most_s in PROMISED_S:
        if kind not in kinds:
            continue
        found = recovery.get(kind, {})
        if (took_s := found.get(f"{measured}{which}", 0.0)) > most_s:
            yield f"people {did} {took_s:g} s after {kind} ({which}), {most_s:g} s is promised"
        if found.get("never"):
            yield f"some people never talked again after {kind}"


def _state_folder() -> Path | None:
    """Return a folder in memory for state files, if there is one: this run kills processes and takes no power."""
    return _SHM if _SHM.is_dir() else None


def _records(path: Path) -> Iterator[Record]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as lines:
        for line in lines:
            yield decode(line)


def _injection_report(recovery: Recovery) -> dict[str, Any]:
    report: dict[str, Any] = msgspec.structs.asdict(recovery.injection)
    for name, value in (("talking_s", recovery.talking_s), ("moved_s", recovery.moved_s)):
        if value is not None:
            report[name] = round(value, 2)
    return {name: value for name, value in report.items() if value is not None}


async def _run_with(work: Coroutine[Any, Any, None], other: "asyncio.Task[None]") -> None:
    """Await `work`, unless the other task ends first: then raise its error."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            other.result()
    finally:
        task.cancel()
    await task
