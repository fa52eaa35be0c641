"""One run: a mesh is built, troubled by a schedule of faults, healed, and judged.

::

    0 s          2 s                       22 s        28 s               36 s
    ├── all well ─┼── faults ───────────────┼── healed ─┼── nothing wrong ──┼── until everything has arrived
                  people talk, come and go, ────────────────────────────────┤

The same seed, faults and code give the same run, to the last frame.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from unittest.mock import patch

import msgspec

from meshim.client import connection
from meshim.connector import authenticator as connector_authenticator
from meshim.connector import shell as connector_shell
from meshim.writer import shell as writer_shell
from tests.sim.device import Device
from tests.sim.faults import Faults, Schedule, schedule_of
from tests.sim.mesh import Mesh
from tests.sim.network import Context
from tests.sim.world import World, current

HEALED_S = 6.0
"""Until the last consequences of the faults are over: leases, detection, reconnects."""
CALM_S = 8.0
CALM_CRASHES = 3
"""Phones that crash in the calm while they sync."""
CALM_SLOW = 0.2
"""Share of calls to the database that are slow in the calm."""
BOUND_S = 75.0
"""Within it everything has arrived: a sweep, a gap, the longest resend of a client."""
QUIET_S = 3.0
"""How long it is looked whether something comes after all."""


class Outcome(msgspec.Struct):
    """What came of one run.

    `races` counts how often each was met, `counters` is what the roles counted, `digest` is of all frames, and
    `cpu_s` the only thing that differs when the run is repeated.
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


def run(seed: int, faults: Faults | None = None) -> Outcome:
    """Simulate one mesh, with what the seed makes of a fault model."""
    return play(seed, schedule_of(faults or Faults(), Random(f"schedule {seed}")))


def play(seed: int, schedule: Schedule) -> Outcome:
    """Simulate one mesh with these faults."""
    began = time.process_time()
    mesh = Mesh(seed, schedule)
    with seeded(mesh):
        _play(mesh, schedule.ends)
        outcome = _outcome(seed, mesh, began)
        mesh.world.close()
    return outcome


def _play(mesh: Mesh, faults_end: float) -> None:
    world = mesh.world
    calm_from, calm_until = faults_end + HEALED_S, faults_end + HEALED_S + CALM_S
    mesh.start(talk_until=calm_until)
    mesh.trouble.start()
    world.run(faults_end)
    mesh.trouble.end()
    for device in mesh.devices:
        device.start()
    world.run(calm_from)
    mesh.judge.quiet_from = world.now
    _come_and_go(mesh)
    world.run(calm_until)
    mesh.backends.sql.slow = 0.0
    _until_everything_has_arrived(mesh)


def _come_and_go(mesh: Mesh) -> None:
    """The calm: people leave and return, phones crash, and the database is slow at times, as on any day."""
    world, random = mesh.world, mesh.world.random
    mesh.backends.sql.slow = CALM_SLOW
    mesh.trouble.traps += CALM_CRASHES * ["device"]
    for device in mesh.devices:
        at = random.uniform(0.0, 1.0)
        if random.random() < 0.5:
            world.after(at, device.kill)
        else:
            _leave_for_a_while(world, device, at)
        if random.random() < 0.5:
            # As the talking ends: nothing that comes later draws attention to what is stored then.
            _leave_for_a_while(world, device, random.uniform(CALM_S - 2.0, CALM_S))


def _leave_for_a_while(world: World, device: Device, at: float) -> None:
    world.after(at, device.leave)
    world.after(at + world.random.uniform(0.02, 2.0), device.start)


def _until_everything_has_arrived(mesh: Mesh) -> None:
    world = mesh.world
    end = world.now + BOUND_S
    arrived_at: float | None = None
    while world.now < end and not world.bugs and (arrived_at is None or world.now - arrived_at < QUIET_S):
        world.run(world.now + 1.0)
        if mesh.under_way():
            arrived_at = None
        elif arrived_at is None:
            arrived_at = world.now
    for what in mesh.under_way()[:5]:
        mesh.judge.violated("in the end", what)


def _outcome(seed: int, mesh: Mesh, began: float) -> Outcome:
    judge, world, counters = mesh.judge, mesh.world, mesh.counters()
    judge.entered("R2", counters["connector_deferred"])
    return Outcome(
        seed=seed,
        messages=sum(device.sent for device in mesh.devices),
        shown=judge.shown,
        via_store=judge.via_store,
        gaps=judge.gaps,
        faults=dict(mesh.trouble.met),
        races=dict(judge.races),
        counters=dict(counters),
        violations=[f"{world.now:.3f} bug: {bug}" for bug in world.bugs] + judge.violations,
        schedule=str(mesh.trouble.schedule),
        digest=mesh.network.digest,
        virtual_s=world.now,
        cpu_s=time.process_time() - began,
    )


@contextmanager
def seeded(mesh: Mesh) -> Iterator[None]:
    """Replace what is random or tells time in the real shells."""

    class Clock:
        @staticmethod
        def time() -> float:
            return current().wall()

    class Secrets:
        @staticmethod
        def randbits(bits: int) -> int:
            return mesh.world.random.getrandbits(bits)

    with ExitStack() as stack:
        for module in (connector_authenticator, connector_shell, writer_shell):
            stack.enter_context(patch.object(module, "time", Clock))
        stack.enter_context(patch.object(connection, "secrets", Secrets))
        stack.enter_context(patch.object(connection, "_random", mesh.world.random))
        stack.enter_context(patch.object(connection, "Context", lambda: Context(mesh.network, current())))
        stack.enter_context(patch.dict(connection._contexts))
        yield
