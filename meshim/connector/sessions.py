"""The sessions of a connector: how they are found, what is sent to them, and how they end.

However a session ends, its unacknowledged live copies go back to a transfer, which stores them; its stored rows stay
unread; its binding is erased if presence still has this one (R5); the claim of its queue is released; and its
connection is closed.
"""

from collections.abc import Iterable

from meshim.connector.events import Action, CheckQueues, ClosePeer, EraseBindings, RecordLastSeen, SendClient
from meshim.connector.options import ConnectorOptions
from meshim.connector.session import Session, State
from meshim.connector.statistics import Statistics
from meshim.connector.transfer_links import TransferLinks
from meshim.wire import client as wire
from meshim.wire.client import Changed, Outcome
from meshim.wire.envelope import EPHEMERAL_FROM
from meshim.wire.link import Close, Frame
from meshim.wire.mesh import Deliver, Return

CHANGED_S = 1.0
"""Between two Changed frames of a session: many requests for friendship at once become one frame."""


class Sessions:
    """All sessions of one connector, by peer, device and user."""

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
        self._checks: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return len(self._by_peer)

    def all(self) -> list[Session]:
        return list(self._by_peer.values())

    def has(self, peer: bytes) -> bool:
        return peer in self._by_peer

    def of_peer(self, peer: bytes) -> Session | None:
        """The session of a connection; a caller that changes what it waits for sets its `due` to 0."""
        return self._by_peer.get(peer)

    # The caller may change what a session waits for, so a session that is found is looked at again at the next tick.

    def of_device(self, device: int, session: int | None = None) -> Session | None:
        """The session of a device; with `session`, only if it still has that number."""
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
        """The sessions to tick: one comparison for each, since most of them only wait for a ping."""
        return [session for session in self._by_peer.values() if session.due <= now]

    def add(self, session: Session) -> None:
        assert session.login.device not in self._by_device
        self._by_peer[session.peer] = session
        self._by_device[session.login.device] = session
        self._by_user.setdefault(session.login.user, []).append(session)
        self._statistics.sessions = len(self._by_peer)

    # ---- sending

    def send_frame(self, peer: bytes, frame: Frame) -> None:
        self._actions.append(SendClient(peer, wire.encode(frame)))

    def send_changed(self, session: Session, now: float) -> None:
        """Tell the device what of its account changed, if anything did: at most once in `CHANGED_S`."""
        if session.changed and now >= session.changed_due and session.state is not State.BINDING:
            self.send_frame(session.peer, Changed(session.link.epoch, session.changed))
            session.changed, session.changed_due = 0, now + CHANGED_S

    def mark(self, session: Session) -> None:
        """Have `flush` send what its link has to send."""
        self._dirty[session] = None

    def queue_outcome(self, session: Session, outcome: Outcome | None) -> None:
        """Queue an outcome, if there is one.  Without room it is lost; the client gets another when it resends."""
        if outcome is None:
            return
        link = session.link
        if link.window.queued >= 2 * self._options.session_queue or not link.push(outcome):
            self._statistics.outcomes_lost += 1
        else:
            self._dirty[session] = None

    def check_queue(self, session: Session) -> None:
        """Have the offline queue of the session checked for unread rows."""
        if session.state is not State.BINDING and session.sync.check():
            self._checks.append((session.login.user, session.login.device, session.binding.session))

    def flush(self, now: float) -> None:
        """Turn the marked links and requested checks into actions."""
        if self._checks:
            self._actions.append(CheckQueues(tuple(self._checks)))
            self._checks.clear()
        for session in self._dirty:
            for frame in session.link.flush(now):
                self.send_frame(session.peer, frame)
        self._dirty.clear()

    # ---- storing instead of delivering

    def return_copy(self, deliver: Deliver, devices: Iterable[int], *, absent: bool) -> None:
        """Return a live copy for these devices to a transfer, which stores it; an ephemeral one is dropped.

        `absent` says that the devices are not connected here, which corrects the transfer's presence cache.
        """
        if deliver.stamp.kind >= EPHEMERAL_FROM:
            self._statistics.ephemeral_dropped += 1
            return
        item = Return(deliver.user, tuple(devices), absent, deliver.stamp, deliver.envelope)
        if self._links.send(item):
            self._statistics.returned += 1
        else:
            self._statistics.return_failures += 1

    def return_copies(self, session: Session, delivers: Iterable[Deliver], *, absent: bool) -> None:
        for deliver in delivers:
            self.return_copy(deliver, (session.login.device,), absent=absent)

    # ---- ending sessions and connections

    def cut(self, session: Session, code: int, sentence: str) -> None:
        """End a session for a reason, which the client gets in a Close."""
        self._statistics.cut += 1
        self.send_frame(session.peer, Close(session.link.epoch, code, sentence))
        self.close(session)

    def refuse(self, peer: bytes, link: int, code: int, sentence: str, wait_s: float = 0.0) -> None:
        """Close a connection that has no session for a reason, which the client gets in a Close, and until when."""
        self.send_frame(peer, Close(link, code, sentence, int(wait_s * 1000)))
        self.close_peer(peer)

    def close_peer(self, peer: bytes) -> None:
        """Close a connection that has no session."""
        self._actions.append(ClosePeer(peer))

    def close(self, session: Session) -> None:
        """End a session without a Close: the client sent one, is gone, or `cut` has sent one."""
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
            self._actions.append(RecordLastSeen((session.login.device,)))
        self.return_copies(session, session.abandon(), absent=True)
        self._actions.append(ClosePeer(session.peer, had_session=True))
