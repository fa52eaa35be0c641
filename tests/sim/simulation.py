"""One run: build a mesh, inject a schedule of faults, end them, and judge.

::

    0 s          2 s                       22 s        28 s               36 s
    ├─ no faults ─┼── faults ───────────────┼─ recovery ┼── no faults ──────┼── until every message has arrived
                  devices send, come and go ────────────────────────────────┤

The same seed, fault model and code give the same run, frame by frame.
"""

import email.utils
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from unittest.mock import patch

import msgspec
import websockets.frames
import websockets.utils

from meshim.client import connection
from meshim.connector import authenticator as connector_authenticator
from meshim.connector import shell as connector_shell
from meshim.writer import shell as writer_shell
from tests.sim import greed
from tests.sim.device import Device
from tests.sim.fault_model import FaultModel, Schedule, schedule_of
from tests.sim.mesh import MIXED, Mesh
from tests.sim.scheduler import Scheduler, current
from tests.sim.sockets import Context

RECOVERY_S = 6.0
"""Until the last consequences of the faults are over: leases, detection, reconnects."""
FAULT_FREE_S = 8.0
CRASHES = 3
"""Devices that are killed while they sync, in the time without faults."""
LOGOUTS_SHARE = 0.1
SECOND_SHARE = 0.2
"""Shares of devices that are logged out, or connect twice, in the time without faults."""
REGISTER_SHARE = 0.3
"""Share of runs in which two devices are registered at once in that time."""
HOSTILE_S = 3.0
"""How long at least a hostile device, if there is one, goes on in that time."""
SLOW_SHARE = 0.2
"""Share of calls to the database that are slow in the time without faults."""
ARRIVAL_S = 75.0
"""Every message arrives within this time: a sweep, a gap, the longest resend of a client."""
SETTLED_S = 3.0
"""How long everything has to stay settled before the run ends."""


class Outcome(msgspec.Struct):
    """The result of one run.

    `races` counts how often each race was entered, `counters` are those of the roles, `digest` is the CRC-32 of all
    frames.  Only `cpu_s` differs when the run is repeated.
    """

    seed: int
    messages: int
    shown: int
    via_store: int
    gaps: int
    faults: dict[str, int]
    races: dict[str, int]
    counters: dict[str, int]
    violations: list[str]
    schedule: str
    digest: int
    virtual_s: float
    cpu_s: float

    @property
    def failed(self) -> bool:
        return bool(self.violations)


def run(seed: int, faults: FaultModel | None = None, transport: str = MIXED) -> Outcome:
    """Simulate one mesh with the faults that the seed draws from a fault model."""
    return play(seed, schedule_of(faults or FaultModel(), Random(f"schedule {seed}")), transport)


def play(seed: int, schedule: Schedule, transport: str = MIXED) -> Outcome:
    """Simulate one mesh with these faults."""
    began = time.process_time()
    mesh = Mesh(seed, schedule, transport)
    with seeded(mesh):
        _play(mesh, schedule.ends)
        outcome = _outcome(seed, mesh, began)
        mesh.scheduler.close()
    return outcome


def _play(mesh: Mesh, faults_end: float) -> None:
    scheduler = mesh.scheduler
    fault_free_from, fault_free_until = faults_end + RECOVERY_S, faults_end + RECOVERY_S + FAULT_FREE_S
    mesh.start(send_until=fault_free_until)
    mesh.fault_injector.start()
    scheduler.run(faults_end)
    mesh.fault_injector.end()
    for device in mesh.devices:
        device.start()
    scheduler.run(fault_free_from)
    mesh.judge.fault_free_from = scheduler.now
    _come_and_go(mesh)
    scheduler.run(fault_free_until)
    mesh.backends.sql.slow = 0.0
    _run_until_settled(mesh)


def _come_and_go(mesh: Mesh) -> None:
    """The time without faults: devices leave and return, applications crash, and some database calls are slow."""
    scheduler, random = mesh.scheduler, mesh.scheduler.random
    mesh.backends.sql.slow = SLOW_SHARE
    mesh.fault_injector.traps += CRASHES * ["device"]
    if random.random() < REGISTER_SHARE:
        two = partial(mesh.register_two, random.choice(mesh.devices), random.uniform(1.0, 4.0))
        scheduler.after(random.uniform(0.0, 3.0), two)
    if "hostile" in mesh.fault_injector.injected:
        scheduler.after(random.uniform(0.0, FAULT_FREE_S - HOSTILE_S), mesh.hostile.start)
        scheduler.after(FAULT_FREE_S, mesh.hostile.stop)
    busy = greed.begin(mesh)
    for device in mesh.devices:
        if device in busy:
            continue
        at = random.uniform(0.0, 1.0)
        if random.random() < 0.5:
            scheduler.after(at, device.kill)
        else:
            _leave_for_a_while(scheduler, device, at)
        if random.random() < LOGOUTS_SHARE:
            scheduler.after(random.uniform(2.0, FAULT_FREE_S - 1.0), device.log_out)
        if random.random() < SECOND_SHARE:
            second = partial(device.connect_again, random.uniform(0.0, 1.0), silent=False)
            scheduler.after(random.uniform(2.0, FAULT_FREE_S - 1.0), second)
        if random.random() < 0.5:
            # When sending ends: no later message makes a connector look at the queue again.
            _leave_for_a_while(scheduler, device, random.uniform(FAULT_FREE_S - 2.0, FAULT_FREE_S))


def _leave_for_a_while(scheduler: Scheduler, device: Device, at: float) -> None:
    scheduler.after(at, device.leave)
    scheduler.after(at + scheduler.random.uniform(0.02, 2.0), device.start)


def _run_until_settled(mesh: Mesh) -> None:
    scheduler = mesh.scheduler
    end = scheduler.now + ARRIVAL_S
    settled_at: float | None = None
    while scheduler.now < end and not scheduler.bugs and (settled_at is None or scheduler.now - settled_at < SETTLED_S):
        scheduler.run(scheduler.now + 1.0)
        if mesh.under_way():
            settled_at = None
        elif settled_at is None:
            settled_at = scheduler.now
    for what in mesh.under_way()[:5]:
        mesh.judge.violated("in the end", what)
    for what in mesh.judge.agreement.broken()[:5]:
        mesh.judge.violated("agree", what)


def _outcome(seed: int, mesh: Mesh, began: float) -> Outcome:
    judge, scheduler, counters = mesh.judge, mesh.scheduler, mesh.counters()
    judge.entered("R2", counters["connector_deferred"])
    return Outcome(
        seed=seed,
        messages=sum(device.sent for device in mesh.devices),
        shown=judge.shown,
        via_store=judge.via_store,
        gaps=judge.gaps,
        faults=dict(mesh.fault_injector.injected),
        races=dict(judge.races),
        counters=dict(counters),
        violations=[f"{scheduler.now:.3f} bug: {bug}" for bug in scheduler.bugs] + judge.violations,
        schedule=str(mesh.fault_injector.schedule),
        digest=mesh.network.digest,
        virtual_s=scheduler.now,
        cpu_s=time.process_time() - began,
    )


@contextmanager
def seeded(mesh: Mesh) -> Iterator[None]:
    """Replace clocks, randomness and sockets in the real shells during the block."""

    class Clock:
        @staticmethod
        def time() -> float:
            return current().wall()

    class Secrets:
        @staticmethod
        def randbits(bits: int) -> int:
            return mesh.scheduler.random.getrandbits(bits)

        @staticmethod
        def token_bytes(count: int) -> bytes:
            return mesh.scheduler.random.randbytes(count)

    with ExitStack() as stack:
        for module in (connector_authenticator, connector_shell, writer_shell):
            stack.enter_context(patch.object(module, "time", Clock))
        for module in (connection, websockets.frames, websockets.utils):
            stack.enter_context(patch.object(module, "secrets", Secrets))
        stack.enter_context(patch.object(email.utils, "formatdate", lambda **_: "now"))
        stack.enter_context(patch.object(connection, "_random", mesh.scheduler.random))
        stack.enter_context(patch.object(connection, "Context", lambda: Context(mesh.network, current())))
        stack.enter_context(patch.dict(connection._contexts))
        yield
