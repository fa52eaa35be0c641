"""What is simulated: servers, roles, people with their devices, put together; and what the judge is told of them."""

import itertools
from collections import Counter

import msgspec

from meshim.connector.core import ConnectorCore
from meshim.connector.session import State as Session
from meshim.stores.ports import RelationKey
from meshim.topology import Limits, Listener, RestListener, Timers, Topology, Worker
from meshim.transfer.core import TransferCore
from tests.sim.device import Device, Plan
from tests.sim.faults import Schedule
from tests.sim.judge import Judge
from tests.sim.network import Network
from tests.sim.roles import Connector, Core, Role, Transfer, Writer
from tests.sim.servers import Backends, at_once
from tests.sim.trouble import Trouble
from tests.sim.world import World

USERS = 7
TWO_DEVICES = 3
"""So many users have two devices."""
PEERS = 3
"""To whom each of them writes."""
MESSAGE_EVERY_S = 1.05
"""Of each device, on average."""
PARTITIONS = 2


def topology() -> Topology:
    """Three connectors, three transfers, two writers; small limits, so that they are met."""
    return Topology(
        connectors=tuple(Listener(f"c{n}") for n in (1, 2, 3)),
        transfers=tuple(Listener(f"t{n}") for n in (1, 2, 3)),
        writers=tuple(Worker(f"w{n}") for n in (1, 2)),
        rest=(RestListener("r1"),),
        timers=Timers(),
        limits=Limits(partitions=PARTITIONS, session_queue=24, sync_page_rows=8, client_window=8, mesh_window=8),
    )


class Mesh:
    """All processes, servers and people of one run."""

    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.world = world = World(seed)
        self.topology = mesh = topology()
        self.network = Network(world, replayed=schedule.replayed)
        self.judge = Judge(world, self._lives)
        self.backends = Backends(world, self.judge, PARTITIONS, ack_wait_s=mesh.timers.partition_lease_s)
        self.judge.database = self.backends.database
        around = (world, self.network, self.backends, mesh)
        self.connectors = [Connector(*around, each.name) for each in mesh.connectors]
        self.transfers = [Transfer(*around, each.name) for each in mesh.transfers]
        self.writers = [Writer(*around, each.name) for each in mesh.writers]
        self.roles: list[Role] = [*self.connectors, *self.transfers, *self.writers]
        self.devices = self._people()
        self.drains: dict[int, Role] = {}
        """Which connector has leased the queue of a device."""
        self.trouble = Trouble(self, schedule)
        self.backends.queue_data.on_claim = self._claimed
        self.backends.queue_data.on_page = self.trouble.spring
        self.backends.partition_data.on_stored = self._stored
        self.network.on_stale = lambda: self.judge.entered("R13")
        for each in self.roles:
            each.on_kill = self._note_death
        for role in self.connectors:
            role.on_disturbed = lambda: self.judge.entered("R9")

    def _people(self) -> list[Device]:
        """Everybody is a friend of everybody."""
        registry, random = self.backends.registry, self.world.random
        users = [at_once(registry.register(f"user{n}", "")).user_id for n in range(1, USERS + 1)]
        for one, other in itertools.combinations(users, 2):
            at_once(registry.request(one, other, 0.0, 1000))
            at_once(registry.accept(other, one, RelationKey(1, b""), 0.0))
        devices = []
        for number, user in enumerate(users, 1):
            plan = Plan(random.sample([peer for peer in users if peer != user], PEERS), MESSAGE_EVERY_S)
            for which in ("a", "b") if number <= TWO_DEVICES else ("a",):
                name = f"d{number}{which}"
                devices.append(Device(self.world, self.network, self.backends, self.judge, user, name, plan))
        for device in devices:
            device.register()
        return devices

    def start(self, talk_until: float) -> None:
        """Start every process; people write to each other until that time."""
        world = self.world
        for role in self.roles:
            world.after(world.random.uniform(0.0, 0.3), role.start)
        for device in self.devices:
            device.plan.until = talk_until
            world.after(world.random.uniform(0.5, 1.5), device.start)

    def under_way(self) -> list[str]:
        """What has not arrived everywhere."""
        outboxes = [
            f"{device.name} has {device.core.outbox.unsettled} unsettled"
            for device in self.devices
            if device.core is not None and device.core.outbox.unsettled
        ]
        away = [f"{device.name} is away" for device in self.devices if device.core is None]
        return [*self.judge.unfinished(), *outboxes, *away]

    # ---- for the judge

    def _lives(self, incarnation: int) -> bool:
        of = (role for role in self.roles if role.incarnation == incarnation)
        return any(role.process is not None and role.process.alive for role in of)

    def _claimed(self, device: int, session: int) -> None:
        for role in self.connectors:
            if isinstance(role.core, ConnectorCore):
                found = role.core._sessions.of_device(device, session)
                if found is not None:
                    self.drains[device] = role
                    self.judge.draining(device, found.login.epoch)

    def _stored(self, device: int) -> None:
        """R1: the device has synced, and now there is something."""
        for role in self.connectors:
            if isinstance(role.core, ConnectorCore):
                session = role.core._sessions.of_device(device)
                self.judge.entered("R1", session is not None and session.state is Session.LIVE)

    def _note_death(self, role: Role) -> None:
        """R6, R16: what is lost with a role that is about to be killed."""
        core = role.core
        self.judge.entered("R6", isinstance(core, TransferCore) and not core.idle)
        halves = (
            message.delivery
            for device in self.devices
            if device.core is not None
            for message in device.core.outbox._pending.values()
        )
        self.judge.entered("R16", any(progress.accounted and len(progress.copies) > 1 for progress in halves))

    def counters(self) -> Counter[str]:
        """What all roles have counted, by `role_counter`."""
        counters: Counter[str] = Counter()
        for role in self.roles:
            for core in role.cores:
                counters.update({f"{role.kind}_{name}": count for name, count in _counted(core).items()})
        return counters


def _counted(core: Core) -> dict[str, int]:
    return msgspec.structs.asdict(core.statistics)
