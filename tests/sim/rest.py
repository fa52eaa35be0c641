"""The REST service of the simulation: the real code of logins and logouts, in the process that calls it.

So every request has a service of its own: two requests at once are as with two services behind a load balancer, and a
process that is killed has served half a request.
"""

from typing import Any, cast

from meshim.rest.backends import Backends as RestBackends
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.connectors import ConnectorDirectory
from meshim.rest.sessions import Sessions
from meshim.rest.tokens import Tokens
from meshim.runtime.log import Log
from meshim.topology import Topology
from tests.sim.scheduler import WALL_S, Scheduler
from tests.sim.servers import Backends

DEVICES_MAX = 10


class Rest:
    """One service."""

    def __init__(self, scheduler: Scheduler, backends: Backends, topology: Topology) -> None:
        unused = cast("Any", None)
        ports = RestBackends(
            accounts=backends.accounts(), leases=backends.leases(), presence=backends.presence(),
            cache=backends.cache(), notifications=backends.notifications(), throttle=unused, probes={}, storing={},
        )  # fmt: skip

        def clock() -> float:
            return WALL_S + scheduler.now

        self.notifier = ChangeNotifier(ports, clock, _Silent())
        self.tokens = Tokens(ports, self.notifier, DEVICES_MAX)
        directory = ConnectorDirectory(ports, clock, _Silent(), self.notifier.statistics)
        self.sessions = Sessions(
            backends=ports, directory=directory, notifier=self.notifier, friends=unused, passwords=unused,
            master=unused, topology=topology, clock=clock, log=_Silent(),
        )  # fmt: skip


class _Silent(Log):
    def __init__(self) -> None:
        super().__init__("rest", "r1")

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        """Drop the line."""
