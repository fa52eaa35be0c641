"""Injects the faults of a schedule into a simulated mesh: begins, counts and ends each kind of `fault_model.py`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.sim.device import Device
from tests.sim.fault_model import Fault, Schedule
from tests.sim.network import NO_LINK_FAULTS, LinkFaults
from tests.sim.remote_calls import Server, ServerState
from tests.sim.roles import Role

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

LINK_FAULTS_FROM_S = 2.0
"""When the link faults of the schedule begin."""
RETRY_S = 0.5
"""Pause before a fault whose target is not there is tried again."""
TRAP_S = 0.03
"""Maximum time from the page of a queue until the trap kills its reader."""
PRESENCE_BACK_S = 2.0
"""After a fault of Redis: until every subscriber is connected again."""
DUMP_S = 3.0
"""How often Redis writes a dump; `redis-old` restores the third last."""


class FaultInjector:
    """Injects all faults of one schedule."""

    def __init__(self, mesh: "Mesh", schedule: Schedule) -> None:
        self._handlers: Mapping[str, Callable[[str, Fault], bool]] = {
            "kill": self._kill,
            "trap": self._trap,
            "stop": self._stop,
            "pause": self._pause,
            "cut": self._cut,
            "redis": self._redis,
            "nats": self._nats,
            "sql": self._sql,
            "calls": self._calls,
            "clock": self._clock,
            "lost": self._lost,
            "taken": self._taken,
            "away": self._away,
            "logout": self._logout,
            "second": self._second,
            "register": self._register,
            "hostile": self._hostile,
        }
        """By the first word of a kind.  Each gets the rest of the kind; returns False when its target is not there."""
        self.schedule = schedule
        self.injected: Counter[str] = Counter()
        """How many faults of each kind found a target."""
        self.traps: list[str] = []
        """`device` or `connector` for each trap: what is killed after the next page of a queue."""
        self._mesh = mesh
        self._scheduler = mesh.scheduler
        self._network = mesh.network
        self._backends = mesh.backends
        self._servers = (mesh.backends.redis, mesh.backends.nats, mesh.backends.sql)
        self._dumps: list[dict[str, Any]] = []

    def start(self) -> None:
        """Schedule all faults."""
        self._network.link_faults = LinkFaults(delay_s=self.schedule.delay_s)
        self._scheduler.after(LINK_FAULTS_FROM_S, self._degrade_links)
        for fault in self.schedule.faults:
            self._scheduler.after(fault.at, partial(self._begin, fault))
        if any(fault.kind == "redis-old" for fault in self.schedule.faults):
            self._scheduler.after(1.0, self._dump)

    def end(self) -> None:
        """End all faults of links and servers."""
        self._network.link_faults = NO_LINK_FAULTS
        for one, other in list(self._network.cuts):
            self._network.restore(one, other)
        for server in self._servers:
            server.loss = 0.0
            server.unreachable.clear()

    def _degrade_links(self) -> None:
        s = self.schedule
        self._network.link_faults = LinkFaults(s.delay_s, s.breaks, s.silence, s.full)

    def _begin(self, fault: Fault) -> None:
        """Begin a fault, or try again after `RETRY_S` if its target is not there."""
        action, _, what = fault.kind.partition("-")
        left_s = self.schedule.ends - self._scheduler.now
        if self._handlers[action](what, fault._replace(lasts_s=min(fault.lasts_s, left_s))):
            self.injected[fault.kind] += 1
            if "redis" in fault.kind or action == "calls":
                self._mesh.judge.presence_disturbed_until = self._scheduler.now + fault.lasts_s + PRESENCE_BACK_S
        elif left_s > RETRY_S:
            self._scheduler.after(RETRY_S, partial(self._begin, fault))

    def _end(self, fault: Fault, end: Callable[[], None]) -> bool:
        self._scheduler.after(fault.lasts_s, end)
        return True

    # ---- targets

    def _role(self, kind: str, number: int) -> Role | None:
        roles: Mapping[str, Sequence[Role]] = {
            "connector": self._mesh.connectors,
            "transfer": self._mesh.transfers,
            "writer": self._mesh.writers,
        }
        of_kind = roles[kind]
        role = of_kind[number % len(of_kind)]
        return role if role.process is not None and role.process.alive else None

    def _device(self, number: int) -> Device | None:
        device = self._mesh.devices[number % len(self._mesh.devices)]
        return device if device.process is not None else None

    # ---- processes

    def _kill(self, what: str, fault: Fault) -> bool:
        if what == "device":
            device = self._device(fault.target)
            if device is not None:
                device.kill()
            return device is not None
        role = self._role(what, fault.target)
        if role is None or role.process is None:
            return False
        role.respawn_s = fault.lasts_s
        role.kill()
        return True

    def _trap(self, what: str, fault: Fault) -> bool:
        self.traps.append(what)

        def disarm() -> None:
            if what in self.traps:
                self.traps.remove(what)

        return self._end(fault, disarm)

    def on_page(self, device: int) -> None:
        """A page of a queue was read: kill the target of a trap before its rows are pushed, acknowledged and marked."""
        if not self.traps or device not in self._mesh.syncing:
            return
        owner = next((each for each in self._mesh.devices if each.id == device), None)
        if owner is None:
            return  # a hostile device
        what = self.traps.pop(0)
        target = self._mesh.syncing[device] if what == "connector" else owner
        self._scheduler.after(self._scheduler.random.uniform(0.0, TRAP_S), target.kill)

    def _stop(self, what: str, fault: Fault) -> bool:
        role = self._role(what, fault.target)
        if role is not None:
            role.respawn_s = fault.lasts_s
            role.terminate()
        return role is not None

    def _pause(self, what: str, fault: Fault) -> bool:
        owner: Role | Device | None
        owner = self._device(fault.target) if what == "device" else self._role(what, fault.target)
        if owner is None or owner.process is None or not owner.process.running:
            return False
        process = owner.process
        process.pause()
        self._network.stopped(process)

        timers = self._mesh.topology.timers
        lease_ttl_s = timers.partition_lease_s if what == "writer" else timers.lease_ttl_s

        def resume() -> None:
            beyond = self._scheduler.now - process.paused_at > lease_ttl_s
            self._mesh.judge.entered("R11", what != "device" and process.alive and beyond)
            process.resume()

        return self._end(fault, resume)

    # ---- the network and the servers

    def _cut(self, what: str, fault: Fault) -> bool:
        what, _, one_way = what.partition("-")
        if what in ("redis", "nats", "sql"):
            server: Server = getattr(self._backends, what)
            name = self._mesh.roles[fault.target % len(self._mesh.roles)].name
            server.unreachable.add(name)
            return self._end(fault, lambda: server.unreachable.discard(name))
        if what == "device":
            device = self._mesh.devices[fault.target % len(self._mesh.devices)]
            ends = [device.name, device.last_endpoint.split("/")[2].partition(".")[0] if device.last_endpoint else "c1"]
        else:
            ends = [self._mesh.connectors[fault.target % 3].name, self._mesh.transfers[fault.other % 3].name]
        if fault.other % 2:
            ends.reverse()
        self._network.cut(ends[0], ends[1], both=not one_way)
        return self._end(fault, lambda: self._network.restore(ends[0], ends[1]))

    def _redis(self, what: str, fault: Fault) -> bool:
        data = self._backends.redis_data
        restart: dict[str, Callable[[], None]] = {
            "wiped": lambda: data.start(wiped=True),
            "old": self._restore,
            "away": lambda: data.start(),
        }
        return self._server(self._backends.redis, what, fault, restart.get(what))

    def _nats(self, what: str, fault: Fault) -> bool:
        return self._server(self._backends.nats, what, fault)

    def _sql(self, what: str, fault: Fault) -> bool:
        return self._server(self._backends.sql, what, fault)

    def _server(self, server: Server, what: str, fault: Fault, restart: Callable[[], None] | None = None) -> bool:
        if server.state is not ServerState.UP:
            return False
        server.state = ServerState.STALLED if what == "stalled" else ServerState.AWAY

        def resume() -> None:
            if restart is not None:
                restart()
            server.resume()

        return self._end(fault, resume)

    def _restore(self) -> None:
        self._backends.redis_data.restore(self._dumps[0])
        self._mesh.holders.restored_at = self._scheduler.now

    def _dump(self) -> None:
        self._dumps = [*self._dumps, self._backends.redis_data.dump()][-3:]
        self._scheduler.after(DUMP_S, self._dump)

    def _calls(self, what: str, fault: Fault) -> bool:
        server = self._servers[fault.target % 3]
        server.loss = self.schedule.calls_lost

        def end_loss() -> None:
            server.loss = 0.0

        return self._end(fault, end_loss)

    def _clock(self, what: str, fault: Fault) -> bool:
        jump_s = self.schedule.clock_jump_s
        server: Server = getattr(self._backends, what)
        server.wall_s += self._scheduler.random.uniform(-jump_s, jump_s)
        return True

    # ---- state files and users

    def _lost(self, what: str, fault: Fault) -> bool:
        """R14: the device leaves, and returns later with a new state file."""
        device = self._device(fault.target)
        if device is None or device.core is None:
            return False
        device.leave()

        def replace() -> None:
            device.lose_file(keep_running=False)
            device.start()

        return self._end(fault, replace)

    def _taken(self, what: str, fault: Fault) -> bool:
        """R14: a second installation with a state file of its own takes the device over, while the first runs on.

        H11: later a process on the first state file wakes up, which was away, and logs in.
        """
        device = self._device(fault.target)
        if device is None or device.core is None:
            return False
        before = device.lose_file(keep_running=True)
        device.start()
        self._scheduler.after(self._scheduler.random.uniform(1.0, 6.0), lambda: device.wake(before))
        return True

    def _logout(self, what: str, fault: Fault) -> bool:
        device = self._device(fault.target)
        return device is not None and device.core is not None and device.log_out()

    def _second(self, what: str, fault: Fault) -> bool:
        device = self._device(fault.target)
        return device is not None and device.connect_again(fault.lasts_s, silent=fault.other % 2 == 0)

    def _hostile(self, what: str, fault: Fault) -> bool:
        self._mesh.hostile.start()
        return self._end(fault, self._mesh.hostile.stop)

    def _register(self, what: str, fault: Fault) -> bool:
        return self._mesh.register_two(self._mesh.devices[fault.target % len(self._mesh.devices)], fault.lasts_s)

    def _away(self, what: str, fault: Fault) -> bool:
        device = self._device(fault.target)
        if device is None:
            return False
        device.leave()
        return self._end(fault, device.start)
