"""A whole simulated mesh: servers, roles, users with their devices; and the reports to the judge about them."""

import itertools
from collections import Counter
from collections.abc import Iterator
from random import Random

import msgspec

from meshim.client.connection import Transport
from meshim.connector.core import ConnectorCore
from meshim.connector.session import State as Session
from meshim.stores.ports import RelationKey, RelationLimits
from meshim.topology import ConnectorListener, Limits, Listener, RestListener, Timers, Topology, Worker
from meshim.transfer.core import TransferCore
from tests.sim.device import Device, Plan
from tests.sim.fault_injector import FaultInjector
from tests.sim.fault_model import Schedule
from tests.sim.holders import Holders
from tests.sim.hostile import HostileDevice, Victim
from tests.sim.judge import Judge
from tests.sim.network import Network
from tests.sim.remote_calls import result_of
from tests.sim.roles import Connector, Role, Transfer, Writer
from tests.sim.scheduler import Scheduler
from tests.sim.servers import Backends

USERS = 7
TWO_DEVICES = 3
"""Number of users with two devices; the others have one."""
PEERS = 3
"""Number of users to whom each device sends."""
MESSAGE_EVERY_S = 1.05
"""Average pause of each device between two messages."""
NEW_DEVICE_EVERY_S = 4.0
"""The same for a device that is registered in the course of the run."""
DEVICES_MOST = 4
"""Devices of a user."""
REGISTER_WITHIN_S = 0.002
"""Two registrations at once begin within this time."""
HOSTILE_FRIENDS = 3
PARTITIONS = 2
MIXED = "mixed"
TRANSPORTS: dict[str, tuple[Transport, ...]] = {
    "zeromq": ("zeromq",),
    "websocket": ("websocket",),
    MIXED: ("zeromq", "websocket"),
}
"""The transports of the devices, by the name of `--transport`: of several each device has one, by seed."""


def topology() -> Topology:
    """Three connectors, three transfers, two writers; limits so small that a run reaches them."""
    return Topology(
        connectors=tuple(ConnectorListener(f"c{n}") for n in (1, 2, 3)),
        transfers=tuple(Listener(f"t{n}") for n in (1, 2, 3)),
        writers=tuple(Worker(f"w{n}") for n in (1, 2)),
        rest=(RestListener("r1"),),
        timers=Timers(),
        limits=Limits(
            partitions=PARTITIONS, session_queue=24, sync_page_rows=8, client_window=8, mesh_window=8, queue_rows=160
        ),
    )


class Mesh:
    """All processes, servers and devices of one run."""

    def __init__(self, seed: int, schedule: Schedule, transport: str = MIXED) -> None:
        self.scheduler = scheduler = Scheduler(seed)
        self.topology = mesh = topology()
        self.network = Network(scheduler, replayed=schedule.replayed)
        self.judge = Judge(scheduler, self._lives)
        self.backends = Backends(scheduler, self.judge, PARTITIONS, ack_wait_s=mesh.timers.partition_lease_s)
        self.judge.database = self.backends.database
        shared = (scheduler, self.network, self.backends, mesh)
        self.connectors = [Connector(*shared, each.name) for each in mesh.connectors]
        self.transfers = [Transfer(*shared, each.name) for each in mesh.transfers]
        self.writers = [Writer(*shared, each.name) for each in mesh.writers]
        self.roles: list[Role] = [*self.connectors, *self.transfers, *self.writers]
        self.devices: list[Device] = []
        self.holders = Holders(self)
        self._transports = _transports(seed, transport)
        self._make_devices()
        self.hostile = self._make_hostile()
        self.syncing: dict[int, Role] = {}
        """The connector that claimed the queue of a device last."""
        self.fault_injector = FaultInjector(self, schedule)
        self.backends.queue_data.on_claim = self._claimed
        self.backends.queue_data.on_page = self.fault_injector.on_page
        self.backends.partition_data.on_stored = self._stored
        self.network.on_stale = lambda: self.judge.entered("R13")
        for each in self.roles:
            each.on_kill = self._note_death
        for role in self.connectors:
            role.on_recovered = lambda: self.judge.entered("R9")
            role.on_frames = lambda core, batch: self.judge.scope.taken(core, batch, self.scheduler.now)

    def _make_devices(self) -> None:
        """Register users, who are all friends of each other, and their devices."""
        registry, random = self.backends.registry, self.scheduler.random
        users = [result_of(registry.register(f"user{n}", "")).user_id for n in range(1, USERS + 1)]
        for one, other in itertools.combinations(users, 2):
            result_of(registry.request(one, other, 0.0, RelationLimits(1000, 1000, 1000, 0.0)))
            result_of(registry.accept(other, one, RelationKey(1, b""), 0.0, 1000))
        for number, user in enumerate(users, 1):
            plan = Plan(random.sample([peer for peer in users if peer != user], PEERS), MESSAGE_EVERY_S)
            for which in ("a", "b") if number <= TWO_DEVICES else ("a",):
                self._add_device(user, f"d{number}{which}", plan)
        for device in self.devices:
            device.register()

    def _make_hostile(self) -> HostileDevice:
        """Register one more user, a friend of a few, with a device that attacks when it is started."""
        registry = self.backends.registry
        user = result_of(registry.register("hostile", "")).user_id
        friends = sorted({device.user for device in self.devices})[:HOSTILE_FRIENDS]
        for friend in friends:
            result_of(registry.request(user, friend, 0.0, RelationLimits(1000, 1000, 1000, 0.0)))
            result_of(registry.accept(friend, user, RelationKey(1, b""), 0.0, 1000))

        def victims() -> list[Victim]:
            return [device.identity for device in self.devices if device.id]

        hostile = HostileDevice(
            self.scheduler, self.network, self.backends, self.judge.scope, user, next(self._transports), victims
        )
        self.judge.scope.add(user, friends, hostile.token)
        return hostile

    def _add_device(self, user: int, name: str, plan: Plan) -> Device:
        device = Device(
            self.scheduler, self.network, self.backends, self.judge, self.topology, user, name, plan,
            next(self._transports),
        )  # fmt: skip
        device.holders = self.holders
        self.devices.append(device)
        return device

    def register_two(self, of: Device, rests_s: float) -> bool:
        """Two new devices of the user of a device log in at once; each then connects at once, or after that time.

        False when the user has many devices already.
        """
        siblings = [device for device in self.devices if device.user == of.user]
        if len(siblings) + 2 > DEVICES_MOST:
            return False
        random = self.scheduler.random
        plan = Plan(of.plan.peers, NEW_DEVICE_EVERY_S)
        plan.until = of.plan.until
        for number in (1, 2):
            device = self._add_device(of.user, f"d{of.user}new{len(siblings) + number}", plan)
            device.rests_s = random.choice((0.0, rests_s))
            self.scheduler.after(random.uniform(0.0, REGISTER_WITHIN_S), device.start)
        return True

    def start(self, send_until: float) -> None:
        """Start every process; devices send until that time."""
        scheduler = self.scheduler
        for role in self.roles:
            scheduler.after(scheduler.random.uniform(0.0, 0.3), role.start)
        for device in self.devices:
            device.plan.until = send_until
            scheduler.after(scheduler.random.uniform(0.5, 1.5), device.start)
        self.holders.watch()

    def under_way(self) -> list[str]:
        """The messages, outboxes and devices that are not settled yet, a sentence each."""
        outboxes = [
            f"{device.name} has {device.core.unsettled} unsettled, {device.core.receipts.delayed} receipts to send"
            for device in self.devices
            if device.core is not None and (device.core.unsettled or device.core.receipts.delayed)
        ]
        away = [f"{device.name} is away" for device in self.devices if device.core is None]
        return [*self.judge.unfinished(), *outboxes, *away, *self.holders.unsettled()]

    # ---- for the judge

    def _lives(self, incarnation: int) -> bool:
        roles = (role for role in self.roles if role.incarnation == incarnation)
        return any(role.process is not None and role.process.alive for role in roles)

    def _claimed(self, device: int, session: int) -> None:
        for role in self.connectors:
            if isinstance(role.core, ConnectorCore):
                found = role.core._sessions.of_device(device, session)
                if found is not None:
                    self.syncing[device] = role
                    self.judge.sync_began(device, found.login.epoch)

    def _stored(self, device: int) -> None:
        """R1: a row is written for a device that has synced already."""
        for role in self.connectors:
            if isinstance(role.core, ConnectorCore):
                session = role.core._sessions.of_device(device)
                self.judge.entered("R1", session is not None and session.state is Session.LIVE)

    def _note_death(self, role: Role) -> None:
        """R6, R16: whether a role that is about to be killed has work in flight."""
        core = role.core
        self.judge.entered("R6", isinstance(core, TransferCore) and not core.idle)
        halves = (
            len(session.accounting.messages)
            for connector in self.connectors
            if isinstance(connector.core, ConnectorCore)
            for session in connector.core._sessions.all()
        )
        self.judge.entered("R16", any(halves))

    def counters(self) -> Counter[str]:
        """The counters of all roles, named `ROLE_COUNTER`."""
        counters: Counter[str] = Counter()
        for role in self.roles:
            for core in role.cores:
                counters.update({f"{role.kind}_{name}": count for name, count in _counted(core.statistics).items()})
            for each in role.websockets:
                counters.update({f"websocket_{name}": count for name, count in _counted(each).items()})
        counters["websocket_pieces"] = self.network.streams.pieces
        return counters


def _counted(statistics: msgspec.Struct) -> dict[str, int]:
    return msgspec.structs.asdict(statistics)


def _transports(seed: int, transport: str) -> Iterator[Transport]:
    """The transport of one device after the other.  Not drawn by the scheduler: a device alone must change nothing."""
    random = Random(f"transports {seed}")
    while True:
        yield random.choice(TRANSPORTS[transport])
