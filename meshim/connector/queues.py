"""Dispatches queue results from the database to the syncs of the sessions."""

from meshim.connector import events as e
from meshim.connector.session import Session, Trigger
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.protocol.routing import partition_of
from meshim.wire.client import Stored


class Queues:
    """Drives the sync of every session."""

    def __init__(self, partitions: int, statistics: Statistics, sessions: Sessions, actions: list[e.Action]) -> None:
        self._partitions = partitions
        self._statistics = statistics
        self._sessions = sessions
        self._actions = actions

    def checked(self, event: e.QueuesChecked, now: float) -> None:
        for user, device, number in event.devices:
            session = self._sessions.of_device(device, number)
            if session is not None:
                through = event.through.get(partition_of(user, self._partitions), 0)
                self._actions.extend(session.sync.checked(through, device in event.waiting, now))
                self._release_when_caught_up(session, now)

    def claimed(self, event: e.QueueClaimed, now: float) -> None:
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            self._actions.extend(session.sync.claimed(event.fence, now))
        elif event.fence is not None:
            self._actions.append(e.ReleaseQueue(event.device, event.fence))

    def page_read(self, event: e.PageRead, now: float) -> None:
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            session.push_rows(session.sync.page_read(event.page, session.window_room, now))
            self._sessions.mark(session)
            self.read_on(session)
            self._release_when_caught_up(session, now)

    def read_on(self, session: Session) -> None:
        """Read the next page, if there is one and the device has acknowledged the last."""
        if not session.rows and session.window_room:
            self._actions.extend(session.sync.window_opened())

    def marked(self, event: e.RowsMarked, now: float) -> None:
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            self._actions.extend(session.sync.marked(event.row_ids))

    def unmarked(self, event: e.RowMarkingFailed, now: float) -> None:
        self._statistics.fenced += event.fenced
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            session.sync.unmarked(event.fence, event.fenced, now)

    def fenced(self, event: e.QueueFenced, now: float) -> None:
        self._statistics.fenced += 1
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            session.sync.fenced(now)

    def unreachable(self, event: e.QueuesUnreachable, now: float) -> None:
        """R8: the session goes live; its stored messages come when the database is back."""
        for device, number in event.devices:
            session = self._sessions.of_device(device, number)
            if session is not None:
                session.sync.unreachable(now)
                self._send_delayed(session, delayed=True)
                session.move(Trigger.QUEUE_AWAY)

    def _release_when_caught_up(self, session: Session, now: float) -> None:
        """Let live messages follow behind the last page."""
        if not session.sync.caught_up:
            return
        session.move(Trigger.CAUGHT_UP)
        self._send_delayed(session, delayed=False)
        if session.deferred:
            self._sessions.return_copies(session, session.release_deferred(), absent=False)
            self._sessions.mark(session)
            if session.deferred:
                # They may wait for the copy of another device: no wake-up comes when that is written.
                session.sync.check_soon(now)

    def _send_delayed(self, session: Session, *, delayed: bool) -> None:
        if session.delayed_sent != delayed:
            session.delayed_sent = delayed
            self._sessions.send_frame(session.peer, Stored(session.link.epoch, delayed))
