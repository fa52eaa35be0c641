"""A whole mesh in one thread: built, troubled by a schedule of faults, healed, and judged.

::

    0 s          2 s                       22 s        28 s               36 s
    ├── all well ─┼── faults ───────────────┼── healed ─┼── nothing wrong ──┼── until everything has arrived
                  people talk, come and go, ────────────────────────────────┤

The same seed, faults and code give the same run, to the last frame.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import msgspec

from meshim.client import connection
from meshim.connector import greeter as connector_greeter
from meshim.connector import shell as connector_shell
from meshim.connector.core import ConnectorCore
from meshim.connector.session import State as Session
from meshim.stores.ports import RelationKey
from meshim.topology import Limits, Listener, RestListener, Timers, Topology, Worker
from meshim.transfer.core import TransferCore
from meshim.writer import shell as writer_shell
from meshim.writer.core import WriterCore
from tests.sim import faults as f
from tests.sim.device import Device, Plan
from tests.sim.judge import Judge
from tests.sim.network import FAIR, Context, Network, Weather
from tests.sim.roles import Connector, Role, Transfer, Writer
from tests.sim.servers import Backends, Server, State, at_once
from tests.sim.world import World, current

USERS = 7
TWO_DEVICES = 3
"""So many users have two devices."""
PARTITIONS = 2
STORM_S = 2.0
HEALED_S = 6.0
"""Until the last consequences of the faults are over: leases, detection, reconnects."""
MESSAGE_EVERY_S = 1.15
"""Of each device, on average."""
TRAP_S = 0.03
"""From the page of a queue until who drains it is killed, at most."""
CALM_S = 8.0
CALM_CRASHES = 3
"""Phones that crash in the calm while they drain."""
BOUND_S = 75.0
"""Within it everything has arrived: a sweep, a gap, the longest resend of a client."""


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


def run(seed: int, faults: f.Faults = f.Faults()) -> Outcome:  # noqa: B008  # frozen
    """Simulate one mesh."""
    return play(seed, f.schedule(faults, Random(f"schedule {seed}")))


def play(seed: int, schedule: f.Schedule) -> Outcome:
    """Simulate one mesh with these faults."""
    began = time.process_time()
    mesh = Mesh(seed, schedule)
    with seeded(mesh):
        mesh.run()
        outcome = mesh.outcome(seed)
        mesh.world.close()
    outcome.cpu_s = time.process_time() - began
    return outcome


def topology() -> Topology:
    """Three connectors, three transfers, two writers; small limits, so that they are met."""
    return Topology(
        connectors=tuple(Listener(f"c{n}") for n in (1, 2, 3)),
        transfers=tuple(Listener(f"t{n}") for n in (1, 2, 3)),
        writers=tuple(Worker(f"w{n}") for n in (1, 2)),
        rest=(RestListener("r1"),),
        timers=Timers(),
        limits=Limits(partitions=PARTITIONS, session_queue=24, drain_page_rows=8, client_window=8, mesh_window=8),
    )


class Mesh:
    """All processes, servers and people of one run."""

    def __init__(self, seed: int, schedule: f.Schedule) -> None:
        self.world = world = World(seed)
        self.schedule = schedule
        self.network = Network(world, replayed=schedule.replayed)
        self.judge = Judge(world, self._lives)
        mesh = topology()
        self.backends = Backends(
            world, self.judge, partitions=PARTITIONS, ack_wait_s=mesh.timers.partition_lease_s
        )  # fmt: skip
        self.judge.archive = self.backends.archive
        self.backends.queue_data.on_claim = self._claimed
        self.backends.queue_data.on_page = self._spring
        self.backends.partition_data.on_stored = self._stored
        around = (world, self.network, self.backends, mesh)
        self.connectors = [Connector(*around, each.name) for each in mesh.connectors]
        self.transfers = [Transfer(*around, each.name) for each in mesh.transfers]
        self.writers = [Writer(*around, each.name) for each in mesh.writers]
        self.roles: list[Role] = [*self.connectors, *self.transfers, *self.writers]
        self.devices = self._people()
        self.met: Counter[str] = Counter()
        """Faults that really happened, by kind."""
        self._drains: dict[int, Role] = {}
        """Which connector has leased the queue of a device."""
        self._traps: list[str] = []
        """What dies at the next page of a queue."""
        self._lease_ttl_s = mesh.timers.lease_ttl_s
        self._dumps: list[dict[str, Any]] = []
        for role in self.connectors:
            role.on_disturbed = lambda: self.judge.entered("R9")

    def _people(self) -> list[Device]:
        registry, random = self.backends.registry, self.world.random
        users = [at_once(registry.register(f"user{n}", "")).user_id for n in range(1, USERS + 1)]
        for one, other in itertools.combinations(users, 2):
            at_once(registry.request(one, other, 0.0, 1000))
            at_once(registry.accept(other, one, RelationKey(1, b""), 0.0))
        devices = []
        for number, user in enumerate(users):
            peers = random.sample([peer for peer in users if peer != user], 3)
            for which in ("a", "b")[: 1 + (number < TWO_DEVICES)]:
                device = Device(
                    self.world,
                    self.network,
                    self.backends,
                    self.judge,
                    user,
                    f"d{number + 1}{which}",
                    Plan(peers, MESSAGE_EVERY_S),
                )
                device.register()
                devices.append(device)
        return devices

    # ---- the course of a run

    def run(self) -> None:
        world, end = self.world, self.schedule.ends
        for role in self.roles:
            world.after(world.random.uniform(0.0, 0.3), role.start)
        for device in self.devices:
            device.plan.until = end + HEALED_S + CALM_S
            world.after(world.random.uniform(0.5, 1.5), device.start)
        if any(fault.kind == "redis-old" for fault in self.schedule.faults):
            world.after(1.0, self._dump)
        for fault in self.schedule.faults:
            world.after(fault.at, partial(self._begin, fault))
        self.network.weather = Weather(delay_s=self.schedule.delay_s)
        world.after(STORM_S, self._storm)
        world.run(end)
        self.heal()
        world.run(end + HEALED_S)
        self.judge.quiet_from = world.now
        self._come_and_go()
        world.run(end + HEALED_S + CALM_S)
        self._until_finished()

    def _storm(self) -> None:
        s = self.schedule
        self.network.weather = Weather(s.delay_s, s.loss, s.doubling, s.overtaking)

    def heal(self) -> None:
        """Nothing is wrong any more; who was away comes back."""
        self.network.weather = FAIR
        for one, other in list(self.network.cuts):
            self.network.mend(one, other)
        for server in self._servers():
            server.loss = 0.0
            server.unreachable.clear()
        for device in self.devices:
            device.start()

    def _come_and_go(self) -> None:
        """The calm: people leave and return, phones crash, and the database is slow at times, as on any day."""
        random = self.world.random
        self.backends.sql.slow = 0.2
        self._traps += CALM_CRASHES * ["device"]
        for device in self.devices:
            at = random.uniform(0.0, 1.0)
            if random.random() < 0.5:
                self.world.after(at, device.kill)
            else:
                self._go_for_a_while(device, at)
            if random.random() < 0.5:
                # As the talking ends: nothing that comes later draws attention to what is stored then.
                self._go_for_a_while(device, random.uniform(CALM_S - 2.0, CALM_S))

    def _go_for_a_while(self, device: Device, at: float) -> None:
        self.world.after(at, device.leave)
        self.world.after(at + self.world.random.uniform(0.02, 2.0), device.start)

    def _until_finished(self) -> None:
        world = self.world
        end = world.now + BOUND_S
        quiet = 0
        self.backends.sql.slow = 0.0
        while world.now < end and not world.bugs and quiet < 3:
            world.run(world.now + 1.0)
            quiet = quiet + 1 if not self._under_way() else 0
        for what in [] if quiet else self._under_way()[:5]:
            self.judge.violated("in the end", what)

    def _under_way(self) -> list[str]:
        outboxes = [
            f"{device.name} has {device.core.outbox.unsettled} unsettled"
            for device in self.devices
            if device.core is not None and device.core.outbox.unsettled
        ]
        away = [f"{device.name} is away" for device in self.devices if device.core is None]
        return [*self.judge.unfinished(), *outboxes, *away]

    # ---- faults

    def _servers(self) -> tuple[Server, Server, Server]:
        return self.backends.redis, self.backends.nats, self.backends.sql

    def _begin(self, fault: f.Fault) -> None:
        verb, _, what = fault.kind.partition("-")
        begin = getattr(self, f"_{verb.replace('-', '_')}")
        if begin(what, fault):
            self.met[fault.kind] += 1

    def _end(self, fault: f.Fault, end: Callable[[], None]) -> bool:
        self.world.after(fault.lasts_s, end)
        return True

    def _role(self, kind: str, number: int) -> Role | None:
        roles: Mapping[str, Sequence[Role]] = {
            "connector": self.connectors,
            "transfer": self.transfers,
            "writer": self.writers,
        }
        of_kind = roles[kind]
        role = of_kind[number % len(of_kind)]
        return role if role.process is not None and role.process.alive else None

    def _device(self, number: int) -> Device | None:
        device = self.devices[number % len(self.devices)]
        return device if device.process is not None else None

    def _kill(self, what: str, fault: f.Fault) -> bool:
        if what == "device":
            device = self._device(fault.target)
            if device is not None:
                device.kill()
            return device is not None
        role = self._role(what, fault.target)
        if role is None or role.process is None:
            return False
        self._note_death(role)
        role.respawn_s = fault.lasts_s
        role.kill()
        return True

    def _note_death(self, role: Role) -> None:
        core = role.core
        self.judge.entered("R6", isinstance(core, TransferCore) and not core.idle)
        halves = (
            message.tally
            for device in self.devices
            if device.core is not None
            for message in device.core.outbox._pending.values()
        )
        self.judge.entered("R16", any(tally.accounted and len(tally.copies) > 1 for tally in halves))

    def _trap(self, what: str, fault: f.Fault) -> bool:
        self._traps.append(what)
        return self._end(fault, lambda: self._traps.remove(what) if what in self._traps else None)

    def _spring(self, device: int) -> None:
        """A page was read: in a moment its rows are pushed, acknowledged, marked."""
        if not self._traps or device not in self._drains:
            return
        what = self._traps.pop(0)
        victim = self._drains[device] if what == "connector" else next(d for d in self.devices if d.id == device)
        self.world.after(self.world.random.uniform(0.0, TRAP_S), victim.kill)

    def _stop(self, what: str, fault: f.Fault) -> bool:
        role = self._role(what, fault.target)
        if role is not None:
            role.respawn_s = fault.lasts_s
            role.terminate()
        return role is not None

    def _pause(self, what: str, fault: f.Fault) -> bool:
        owner: Role | Device | None
        owner = self._device(fault.target) if what == "device" else self._role(what, fault.target)
        if owner is None or owner.process is None or not owner.process.running:
            return False
        process = owner.process
        process.pause()
        self.network.stopped(process)

        def go_on() -> None:
            beyond = what != "device" and process.alive and self.world.now - process.paused_at > self._lease_ttl_s
            self.judge.entered("R11", beyond)
            process.resume()

        return self._end(fault, go_on)

    def _cut(self, what: str, fault: f.Fault) -> bool:
        what, _, one_way = what.partition("-")
        if what in ("redis", "nats", "sql"):
            server: Server = getattr(self.backends, what)
            name = self.roles[fault.target % len(self.roles)].name
            server.unreachable.add(name)
            return self._end(fault, lambda: server.unreachable.discard(name))
        if what == "device":
            device = self.devices[fault.target % len(self.devices)]
            ends = [device.name, device.last_endpoint.split("/")[2] if device.last_endpoint else "c1"]
        else:
            ends = [self.connectors[fault.target % 3].name, self.transfers[fault.other % 3].name]
        if fault.other % 2:
            ends.reverse()
        self.network.cut(ends[0], ends[1], both=not one_way)
        return self._end(fault, lambda: self.network.mend(ends[0], ends[1]))

    def _redis(self, what: str, fault: f.Fault) -> bool:
        data = self.backends.redis_data
        back: dict[str, Callable[[], None]] = {
            "wiped": lambda: data.start(wiped=True),
            "old": lambda: data.restore(self._dumps[0]),
            "away": lambda: data.start(),
        }
        return self._server(self.backends.redis, what, fault, back.get(what))

    def _nats(self, what: str, fault: f.Fault) -> bool:
        return self._server(self.backends.nats, what, fault)

    def _sql(self, what: str, fault: f.Fault) -> bool:
        return self._server(self.backends.sql, what, fault)

    def _server(self, server: Server, what: str, fault: f.Fault, back: Callable[[], None] | None = None) -> bool:
        if server.state is not State.UP:
            return False
        server.state = State.STALLED if what == "stalled" else State.AWAY

        def resume() -> None:
            if back is not None:
                back()
            server.resume()

        return self._end(fault, resume)

    def _dump(self) -> None:
        self._dumps = [*self._dumps, self.backends.redis_data.dump()][-3:]
        self.world.after(3.0, self._dump)

    def _calls(self, what: str, fault: f.Fault) -> bool:
        server = self._servers()[fault.target % 3]
        server.loss = self.schedule.calls_lost

        def calm() -> None:
            server.loss = 0.0

        return self._end(fault, calm)

    def _clock(self, what: str, fault: f.Fault) -> bool:
        most = self.schedule.clock_jump_s
        server: Server = getattr(self.backends, what)
        server.wall_s += self.world.random.uniform(-most, most)
        return True

    def _lost(self, what: str, fault: f.Fault) -> bool:
        """R14: a disk is gone; it takes a while until there is another."""
        device = self._device(fault.target)
        if device is None or device.core is None:
            return False
        device.leave()

        def replace() -> None:
            device.lose_file(keep_running=False)
            device.start()

        return self._end(fault, replace)

    def _taken(self, what: str, fault: f.Fault) -> bool:
        """A copy of the device with a file of its own."""
        device = self._device(fault.target)
        if device is None or device.core is None:
            return False
        device.lose_file(keep_running=True)
        device.start()
        return True

    def _away(self, what: str, fault: f.Fault) -> bool:
        device = self._device(fault.target)
        if device is None:
            return False
        device.leave()
        return self._end(fault, device.start)

    # ---- for the judge

    def _lives(self, incarnation: int) -> bool:
        return any(
            role.incarnation == incarnation and role.process is not None and role.process.alive for role in self.roles
        )

    def _claimed(self, device: int, session: int) -> None:
        for role in self.connectors:
            if isinstance(role.core, ConnectorCore):
                found = role.core._sessions.of_device(device, session)
                if found is not None:
                    self._drains[device] = role
                    self.judge.draining(device, found.login.epoch)

    def _stored(self, device: int) -> None:
        """R1: the device has drained, and now there is something."""
        for role in self.connectors:
            if isinstance(role.core, ConnectorCore):
                session = role.core._sessions.of_device(device)
                self.judge.entered("R1", session is not None and session.state is Session.LIVE)

    def outcome(self, seed: int) -> Outcome:
        """What came of it; races that are counted by the roles are added."""
        counters: Counter[str] = Counter()
        for role in self.roles:
            for core in role.cores:
                counters.update(_counted(core))
        self.judge.entered("R2", counters["connector_held"])
        self.judge.entered("R13", counters["connector_strays"] + counters["transfer_strays"])
        bugs = [f"{self.world.now:.3f} bug: {bug}" for bug in self.world.bugs]
        return Outcome(
            seed=seed,
            messages=sum(device._sent for device in self.devices),
            shown=self.judge.shown,
            via_store=self.judge.via_store,
            gaps=self.judge.gaps,
            faults=dict(self.met),
            races=dict(self.judge.races),
            counters=dict(counters),
            violations=bugs + self.judge.violations,
            schedule=str(self.schedule),
            digest=self.network.digest,
            virtual_s=self.world.now,
            cpu_s=0.0,
        )


def _counted(core: ConnectorCore | TransferCore | WriterCore) -> dict[str, int]:
    if isinstance(core, WriterCore):
        statistics = core.statistics()
        return {f"writer_{name}": getattr(statistics, name) for name in statistics.__slots__}
    role = "connector" if isinstance(core, ConnectorCore) else "transfer"
    return {f"{role}_{name}": count for name, count in msgspec.structs.asdict(core.statistics).items()}


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
        for module in (connector_greeter, connector_shell, writer_shell):
            stack.enter_context(patch.object(module, "time", Clock))
        stack.enter_context(patch.object(connection, "secrets", Secrets))
        stack.enter_context(patch.object(connection, "_random", mesh.world.random))
        stack.enter_context(patch.object(connection, "Context", lambda: Context(mesh.network, current())))
        stack.enter_context(patch.dict(connection._contexts))
        yield
