"""A part of the judge: who holds each device?

A token that was revoked, by a logout, another login or a takeover, is never welcomed again, and its session ends at
once.  A session that lost its binding ends at once, and its client knows.  In the end one session holds each device:
presence names it, and the application on the current state file is connected by it, and none on an earlier one.

*At once* is within `AT_ONCE_S` where the mesh has no faults; otherwise a notification may have been lost, and the next
look at token and binding, or the silence of the connector, ends what is wrong.
"""

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from meshim.client.core import State as ClientState
from meshim.connector.core import ConnectorCore
from meshim.connector.session import Session, State
from meshim.stores.ports import Binding
from tests.sim.device import Device
from tests.sim.remote_calls import ServerState
from tests.sim.servers import NAMESPACE

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

WATCH_S = 0.5
"""Between two looks at all sessions."""
AT_ONCE_S = 3.0
LOOK_S = 60.0 + 5.0
"""Until a connector has looked at token and binding of each session again (`relation_ttl_s`), and has the answer."""
SILENCE_S = 25.0 + 5.0
"""Until a client has noticed that nothing answers on its connection (`client_silence_s`)."""


class Wrong(NamedTuple):
    """Something that must end soon."""

    promise: str
    sentence: str
    caused_at: float
    """When its cause arose; 0 when that is not known: then it counts from the first look."""
    late_s: float
    """How long it may last if a notification was lost."""


class Holders:
    """Watches the sessions of one run."""

    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh
        self._judge = mesh.judge
        self._scheduler = mesh.scheduler
        self._tokens: dict[int, bytes] = {}
        """By device: the hash of the token that is not revoked."""
        self._revoked: dict[bytes, float] = {}
        """Hashes of tokens, and since when they are revoked."""
        self._since: dict[object, float] = {}
        """What is wrong now, and since when."""
        self._database_away_at = 0.0
        self.restored_at = -1.0
        """When Redis last came back with an old dump, which knows tokens that were revoked since."""

    # ---- reports

    def logged_in(self, device: int, token_hash: bytes) -> None:
        """A login has returned this token: the earlier one of the device is revoked."""
        if device in self._tokens:
            self._revoked.setdefault(self._tokens[device], self._scheduler.now)
        self._tokens[device] = token_hash

    def logged_out(self, token_hash: bytes) -> None:
        """A logout has returned."""
        self._revoked.setdefault(token_hash, self._scheduler.now)

    def welcomed(self, name: str, token_hash: bytes, greeted_at: float) -> None:
        """A client was welcomed that greeted with this token, at that time or later."""
        revoked_at = self._revoked.get(token_hash)
        if revoked_at is not None and self.restored_at < revoked_at < greeted_at:
            self._judge.violated("revoked", f"{name} was welcomed with a token that was revoked at {revoked_at:.3f}")

    # ---- watching

    def watch(self) -> None:
        """Look at all sessions and clients, now and every `WATCH_S`."""
        now, since, fault_free_from = self._scheduler.now, self._since, self._judge.fault_free_from
        if self._mesh.backends.sql.state is not ServerState.UP:
            self._database_away_at = now
        wrong = dict(self._wrong())
        self._since = {what: since.get(what, now) for what in wrong}
        for what, each in wrong.items():
            began = max(each.caused_at, 0.0) or self._since[what]
            at_once = fault_free_from is not None and began >= fault_free_from
            if now - max(began, self._since[what]) > (AT_ONCE_S if at_once else each.late_s):
                self._judge.violated(each.promise, f"{each.sentence}, since {self._since[what]:.3f}")
                self._since[what] = inf  # once
        self._scheduler.after(WATCH_S, self.watch)

    def _wrong(self) -> Iterator[tuple[object, Wrong]]:
        links = set()
        for name, session in self._sessions():
            links.add(session.link.epoch)
            binding = session.binding
            revoked_at = self._revoked.get(session.token_hash)
            if revoked_at is not None:
                late_s = LOOK_S + max(0.0, self._database_away_at - revoked_at)
                sentence = f"{name} has a session of device {binding.device}, whose token was revoked"
                yield ("token", binding), Wrong("revoked", sentence, revoked_at, late_s)
            if self._bound(binding.user, binding.device) != binding:
                sentence = f"{name} has a session of device {binding.device}, and presence names another or none"
                yield ("binding", binding), Wrong("held", sentence, 0.0, LOOK_S)
        for device in self._mesh.devices:
            link = _link(device)
            if link is not None and link not in links and device.process is not None and device.process.running:
                sentence = f"{device.name} takes itself for connected, and no connector has a session for it"
                yield ("client", link), Wrong("held", sentence, device.online_at, SILENCE_S)

    def _sessions(self) -> Iterator[tuple[str, Session]]:
        """The welcomed sessions of all connectors that run."""
        for role in self._mesh.connectors:
            if isinstance(role.core, ConnectorCore) and role.process is not None and role.process.running:
                for session in role.core._sessions._by_peer.values():
                    if session.state is not State.BINDING:
                        yield role.name, session

    def _bound(self, user: int, device: int) -> Binding | None:
        entry = self._mesh.backends.redis_data.presence.get((NAMESPACE, user))
        return None if entry is None else entry.bindings.get(device)

    # ---- in the end

    def unsettled(self) -> list[str]:
        """The devices that are not held by one session, that of their application, a sentence each."""
        sessions: dict[int, list[Session]] = {}
        for _, session in self._sessions():
            sessions.setdefault(session.login.device, []).append(session)
        left = []
        for device in self._mesh.devices:
            held = sessions.get(device.id, [])
            if [session.link.epoch for session in held] != [_link(device)]:
                left.append(f"{device.name} has {len(held)} sessions, and its application is not connected by it")
            elif self._bound(device.user, device.id) != held[0].binding:
                left.append(f"{device.name} is connected, and presence does not name its session")
            if any(core.state is ClientState.ONLINE for process, core in device.earlier if process.alive):
                left.append(f"an application on an earlier state file of {device.name} is connected")
        return left


def _link(device: Device) -> int | None:
    """The epoch of the link of a welcomed application."""
    core = device.core
    return core._link.epoch if core is not None and core.state is ClientState.ONLINE and core._link else None
