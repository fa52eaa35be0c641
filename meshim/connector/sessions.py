"""The sessions of a connector: who is here, what is said to them, and how they leave.

However a session ends, its live copies in custody go back to a transfer to be stored, its stored
rows stay unread, its binding is erased if it is still this one (R5), and the lease of its queue is given up.
"""

from collections.abc import Iterable

from meshim.connector.events import Action, ClosePeer, EraseBindings, NoteSeen, PeekQueues, SendClient
from meshim.connector.options import ConnectorOptions
from meshim.connector.session import Session, State
from meshim.connector.statistics import Statistics
from meshim.connector.transfer_links import TransferLinks
from meshim.wire import client as wire
from meshim.wire.envelope import EPHEMERAL_FROM
from meshim.wire.link import Close, Frame
from meshim.wire.mesh import Deliver, Return
from meshim.wire.outcome import Outcome


class Sessions:
    """All sessions of one connector, found by peer, by binding and by device."""

    def __init__(
        self, options: ConnectorOptions, statistics: Statistics, links: TransferLinks, actions: list[Action]
    ) -> None:
        self._options = options
        self._statistics = statistics
        self._links = links
        self._actions = actions
        self._by_peer: dict[bytes, Session] = {}
        self._by_device: dict[int, Session] = {}
        self._by_user: dict[int, list[Session]] = {}
        self._dirty: dict[Session, None] = {}
        self._peeks: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return len(self._by_peer)

    def all(self) -> list[Session]:
        return list(self._by_peer.values())

    def has(self, peer: bytes) -> bool:
        return peer in self._by_peer

    # Whoever finds a session may change what it waits for, so that time is looked at for it at the next tick.

    def of_peer(self, peer: bytes) -> Session | None:
        found = self._by_peer.get(peer)
        if found is not None:
            found.due = 0.0
        return found

    def of_device(self, device: int, session: int | None = None) -> Session | None:
        """The session of a device; with `session`, only if it is still the one of that number."""
        found = self._by_device.get(device)
        if found is None or session not in (None, found.binding.session):
            return None
        found.due = 0.0
        return found

    def of_users(self, users: Iterable[int]) -> list[Session]:
        """The sessions of all devices of these users."""
        found = [session for user in users for session in self._by_user.get(user, ())]
        for session in found:
            session.due = 0.0
        return found

    def due(self, now: float) -> list[Session]:
        """Those for which time has to be looked at: a comparison for each, since most of them wait for a ping."""
        return [session for session in self._by_peer.values() if session.due <= now]

    def add(self, session: Session) -> None:
        assert session.login.device not in self._by_device
        self._by_peer[session.peer] = session
        self._by_device[session.login.device] = session
        self._by_user.setdefault(session.login.user, []).append(session)
        self._statistics.sessions = len(self._by_peer)

    # ---- saying something

    def say(self, peer: bytes, frame: Frame) -> None:
        self._actions.append(SendClient(peer, wire.encode(frame)))

    def refuse_peer(self, peer: bytes, link: int, code: int, sentence: str) -> None:
        """Close a connection that has no session: tell the client why, then end it."""
        self.say(peer, Close(link, code, sentence))
        self.close_peer(peer)

    def close_peer(self, peer: bytes) -> None:
        self._actions.append(ClosePeer(peer))

    def mark(self, session: Session) -> None:
        """Its link has something to say at the end of this turn."""
        self._dirty[session] = None

    def tell(self, session: Session, outcome: Outcome | None) -> None:
        """Queue an outcome for the device; one that finds no room is lost, and healed by the resend."""
        if outcome is None:
            return
        link = session.link
        if link.window.queued >= 2 * self._options.session_queue or not link.push(outcome):
            self._statistics.outcomes_lost += 1
        else:
            self._dirty[session] = None

    def look(self, session: Session) -> None:
        """Have its queue looked at."""
        if session.state is not State.BINDING and session.sync.look():
            self._peeks.append((session.login.user, session.login.device, session.binding.session))

    def flush(self, now: float) -> None:
        """Turn what this turn left to say into actions."""
        if self._peeks:
            self._actions.append(PeekQueues(tuple(self._peeks)))
            self._peeks.clear()
        for session in self._dirty:
            for frame in session.link.flush(now):
                self.say(session.peer, frame)
        self._dirty.clear()

    # ---- giving back

    def give_back(self, deliver: Deliver, devices: Iterable[int], *, absent: bool) -> None:
        """Return a live copy to be stored for these devices."""
        if deliver.stamp.kind >= EPHEMERAL_FROM:
            self._statistics.ephemeral_dropped += 1
            return
        item = Return(deliver.user, tuple(devices), absent, deliver.stamp, deliver.envelope)
        if self._links.send(item):
            self._statistics.returned += 1
        else:
            self._statistics.unreturned += 1

    def give_back_all(self, session: Session, delivers: Iterable[Deliver], *, absent: bool) -> None:
        for deliver in delivers:
            self.give_back(deliver, (session.login.device,), absent=absent)

    # ---- leaving

    def cut(self, session: Session, code: int, sentence: str) -> None:
        """End a session for a reason that the client is told."""
        self._statistics.cut += 1
        self.say(session.peer, Close(session.link.epoch, code, sentence))
        self.close(session)

    def close(self, session: Session) -> None:
        """End a session."""
        del self._by_peer[session.peer]
        del self._by_device[session.login.device]
        siblings = self._by_user[session.login.user]
        siblings.remove(session)
        if not siblings:
            del self._by_user[session.login.user]
        self._dirty.pop(session, None)
        self._statistics.sessions = len(self._by_peer)
        self._actions.extend(session.sync.close())
        self._actions.append(EraseBindings((session.binding,)))
        if session.state is not State.BINDING:
            self._actions.append(NoteSeen((session.login.device,)))
        self.give_back_all(session, session.abandon(), absent=True)
        self.close_peer(session.peer)
