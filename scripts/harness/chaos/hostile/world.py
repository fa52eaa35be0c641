"""What the hostile clients of a chaos run know and share: users and devices, connectors, ports, and what they did."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from meshim.client.connection import Transport
from meshim.client.rest import Api
from meshim.deploy.state import DataFolder, read
from meshim.errors import ApiError, BackendUnavailable, Code
from meshim.stores.ports import Lease
from meshim.wire.link import Close, Reset
from meshim.wire.rest import Connector
from scripts.harness.clients.misbehaving import MisbehavingClient
from scripts.harness.clients.zmq_context import context
from scripts.harness.mesh.users import MeshUser

REFRESH_S = 1.0
NO_ANSWER, FULL, CUT = "no answer", "no room", "cut"
"""How a connection can end, beside a code: nothing comes back, nothing more can be sent, it ends without a Close."""


class HostileClient(NamedTuple):
    """One hostile client.  It is a friend of an accomplice, who is hostile too, and of a victim."""

    kind: str
    transport: Transport
    phone: MeshUser
    laptop: MeshUser
    accomplice: int
    victim: int
    stranger: int
    """An honest user who is no friend."""
    stranger_name: str


class HostileConfig(NamedTuple):
    """All hostile clients of a run."""

    api: str
    password: str
    """Of every user of the run: the hostile clients use only their own."""
    data: Path
    clients: Sequence[HostileClient]


class Tally(msgspec.Struct):
    """What the clients of one kind did."""

    clients: int = 0
    connections: int = 0
    frames: int = 0
    ends: dict[str, int] = msgspec.field(default_factory=Counter)
    """How often a connection ended, by the name of the code, or as above."""

    def ended(self, client: MisbehavingClient, otherwise: str = FULL) -> None:
        """Count the end of a connection."""
        by = client.closed_by
        name = otherwise if by is None else CUT if isinstance(by, Reset) else _name_of(by)
        self.ends[name] = self.ends.get(name, 0) + 1


def _name_of(close: Close) -> str:
    try:
        return Code(close.code).name
    except ValueError:
        return str(close.code)


class World:
    """What the hostile clients of this process share."""

    def __init__(self, config: HostileConfig) -> None:
        self.config = config
        self.zmq_context = context()
        self.tallies = {client.kind: Tally() for client in config.clients}
        for client in config.clients:
            self.tallies[client.kind].clients += 1
        self._connectors: Sequence[Connector] = ()
        self._known = asyncio.Event()

    async def follow_connectors(self, user: str) -> None:
        """Ask REST every second which connectors live; keep the known ones while it is away."""
        async with Api(self.config.api) as api:
            while True:
                try:
                    if api.token is None:
                        await api.login(user, self.config.password)
                    self._connectors = await api.connectors() or self._connectors
                    self._known.set()
                except (ApiError, BackendUnavailable):
                    pass  # the attacks go on
                await asyncio.sleep(REFRESH_S)

    async def connect(self, client: HostileClient, user: MeshUser | None, *, deaf: bool = False) -> MisbehavingClient:
        """Connect to a connector by the transport of this client, without a greeting."""
        await self._known.wait()
        chosen = secrets.choice(self._connectors)
        endpoint = chosen.endpoint if client.transport == "zeromq" else ""
        lease = Lease("connector", chosen.name, 0, endpoint, chosen.key if endpoint else "", url=chosen.url)
        self.tallies[client.kind].connections += 1
        return MisbehavingClient(self.zmq_context, lease, user, deaf=deaf)

    def ports(self) -> dict[str, tuple[str, int]]:
        """Return the address of every port that listens, by the name of its process."""
        addresses = {"rest": self.config.api}
        for connector in self._connectors:
            addresses |= {f"{connector.name} zeromq": connector.endpoint, f"{connector.name} websocket": connector.url}
        state = read(DataFolder(self.config.data))
        assert state is not None, "the mesh runs"
        addresses |= {role.name: role.endpoint or "" for role in state.roles if role.role == "transfer"}
        found = {name: urlsplit(address) for name, address in addresses.items() if address}
        return {name: (each.hostname or "", each.port or 0) for name, each in found.items()}
