"""What faults do to a mesh: each kind of `faults.py` begins, is counted, and ends."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.sim.device import Device
from tests.sim.faults import Fault, Schedule
from tests.sim.network import FAIR, Weather
from tests.sim.roles import Role
from tests.sim.servers import Server, ServerState

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

STORM_S = 2.0
"""When bad weather begins."""
AGAIN_S = 0.5
"""After that a fault that found nothing to hit is tried again."""
TRAP_S = 0.03
"""From the page of a queue until who syncs it is killed, at most."""
DUMP_S = 3.0
"""How often Redis writes what it may come back with; it is the third last."""


class Trouble:
    """All faults of one schedule."""

    def __init__(self, mesh: "Mesh", schedule: Schedule) -> None:
        self.schedule = schedule
        self.met: Counter[str] = Counter()
        """Faults that really happened, by kind."""
        self.traps: list[str] = []
        """What dies at the next page of a queue."""
        self._mesh = mesh
        self._world = mesh.world
        self._network = mesh.network
        self._backends = mesh.backends
        self._servers = (mesh.backends.redis, mesh.backends.nats, mesh.backends.sql)
        self._dumps: list[dict[str, Any]] = []

    def start(self) -> None:
        """Let it happen, from now on."""
        self._network.weather = Weather(delay_s=self.schedule.delay_s)
        self._world.after(STORM_S, self._storm)
        for fault in self.schedule.faults:
            self._world.after(fault.at, partial(self._begin, fault))
        if any(fault.kind == "redis-old" for fault in self.schedule.faults):
            self._world.after(1.0, self._dump)

    def end(self) -> None:
        """Nothing is wrong any more."""
        self._network.weather = FAIR
        for one, other in list(self._network.cuts):
            self._network.mend(one, other)
        for server in self._servers:
            server.loss = 0.0
            server.unreachable.clear()

    def _storm(self) -> None:
        s = self.schedule
        self._network.weather = Weather(s.delay_s, s.loss, s.doubling, s.overtaking)

    def _begin(self, fault: Fault) -> None:
        """Or try again in a moment, when there is nothing for it to hit."""
        verb, _, what = fault.kind.partition("-")
        left_s = self.schedule.ends - self._world.now
        if _BEGIN[verb](self, what, fault._replace(lasts_s=min(fault.lasts_s, left_s))):
            self.met[fault.kind] += 1
        elif left_s > AGAIN_S:
            self._world.after(AGAIN_S, partial(self._begin, fault))

    def _end(self, fault: Fault, end: Callable[[], None]) -> bool:
        self._world.after(fault.lasts_s, end)
        return True

    # ---- whom it hits

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

    def spring(self, device: int) -> None:
        """A page was read: in a moment its rows are pushed, acknowledged, marked."""
        if not self.traps or device not in self._mesh.drains:
            return
        what = self.traps.pop(0)
        victim = (
            self._mesh.drains[device] if what == "connector" else next(d for d in self._mesh.devices if d.id == device)
        )
        self._world.after(self._world.random.uniform(0.0, TRAP_S), victim.kill)

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

        def go_on() -> None:
            beyond = self._world.now - process.paused_at > lease_ttl_s
            self._mesh.judge.entered("R11", what != "device" and process.alive and beyond)
            process.resume()

        return self._end(fault, go_on)

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
            ends = [device.name, device.last_endpoint.split("/")[2] if device.last_endpoint else "c1"]
        else:
            ends = [self._mesh.connectors[fault.target % 3].name, self._mesh.transfers[fault.other % 3].name]
        if fault.other % 2:
            ends.reverse()
        self._network.cut(ends[0], ends[1], both=not one_way)
        return self._end(fault, lambda: self._network.mend(ends[0], ends[1]))

    def _redis(self, what: str, fault: Fault) -> bool:
        data = self._backends.redis_data
        back: dict[str, Callable[[], None]] = {
            "wiped": lambda: data.start(wiped=True),
            "old": lambda: data.restore(self._dumps[0]),
            "away": lambda: data.start(),
        }
        return self._server(self._backends.redis, what, fault, back.get(what))

    def _nats(self, what: str, fault: Fault) -> bool:
        return self._server(self._backends.nats, what, fault)

    def _sql(self, what: str, fault: Fault) -> bool:
        return self._server(self._backends.sql, what, fault)

    def _server(self, server: Server, what: str, fault: Fault, back: Callable[[], None] | None = None) -> bool:
        if server.state is not ServerState.UP:
            return False
        server.state = ServerState.STALLED if what == "stalled" else ServerState.AWAY

        def resume() -> None:
            if back is not None:
                back()
            server.resume()

        return self._end(fault, resume)

    def _dump(self) -> None:
        self._dumps = [*self._dumps, self._backends.redis_data.dump()][-3:]
        self._world.after(DUMP_S, self._dump)

    def _calls(self, what: str, fault: Fault) -> bool:
        server = self._servers[fault.target % 3]
        server.loss = self.schedule.calls_lost

        def calm() -> None:
            server.loss = 0.0

        return self._end(fault, calm)

    def _clock(self, what: str, fault: Fault) -> bool:
        most = self.schedule.clock_jump_s
        server: Server = getattr(self._backends, what)
        server.wall_s += self._world.random.uniform(-most, most)
        return True

    # ---- people

    def _lost(self, what: str, fault: Fault) -> bool:
        """R14: a disk is gone; it takes a while until there is another."""
        device = self._device(fault.target)
        if device is None or device.core is None:
            return False
        device.leave()

        def replace() -> None:
            device.lose_file(keep_running=False)
            device.start()

        return self._end(fault, replace)

    def _taken(self, what: str, fault: Fault) -> bool:
        """A copy of the device with a file of its own."""
        device = self._device(fault.target)
        if device is None or device.core is None:
            return False
        device.lose_file(keep_running=True)
        device.start()
        return True

    def _away(self, what: str, fault: Fault) -> bool:
        device = self._device(fault.target)
        if device is None:
            return False
        device.leave()
        return self._end(fault, device.start)


_BEGIN: Mapping[str, Callable[[Trouble, str, Fault], bool]] = {
    "kill": Trouble._kill,
    "trap": Trouble._trap,
    "stop": Trouble._stop,
    "pause": Trouble._pause,
    "cut": Trouble._cut,
    "redis": Trouble._redis,
    "nats": Trouble._nats,
    "sql": Trouble._sql,
    "calls": Trouble._calls,
    "clock": Trouble._clock,
    "lost": Trouble._lost,
    "taken": Trouble._taken,
    "away": Trouble._away,
}
"""By the first word of a kind.  Each gets the rest of the kind; False when there is nothing for it to hit."""
