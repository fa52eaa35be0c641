"""What the database answers about queues, carried to the syncs of the sessions concerned."""

from meshim.connector import events as e
from meshim.connector.session import Session, State
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

    def peeked(self, event: e.QueuesPeeked, now: float) -> None:
        for user, device, number in event.devices:
            session = self._sessions.of_device(device, number)
            if session is not None:
                through = event.through.get(partition_of(user, self._partitions), 0)
                self._actions.extend(session.sync.peeked(through, device in event.waiting, now))
                self._went_on(session, now)

    def claimed(self, event: e.QueueClaimed, now: float) -> None:
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            self._actions.extend(session.sync.claimed(event.fence, now))
        elif event.fence is not None:
            self._actions.append(e.ReleaseQueue(event.device, event.fence))

    def page_read(self, event: e.PageRead, now: float) -> None:
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            session.push_rows(session.sync.page(event.page, session.room, now))
            self._sessions.mark(session)
            self.go_on(session)
            self._went_on(session, now)

    def go_on(self, session: Session) -> None:
        """Read the next page, if there is one and the device has taken the last."""
        if not session.rows and session.room:
            self._actions.extend(session.sync.room())

    def marked(self, event: e.RowsMarked, now: float) -> None:
        session = self._sessions.of_device(event.device, event.session)
        if session is not None:
            self._actions.extend(session.sync.marked(event.row_ids))

    def unmarked(self, event: e.RowsUnmarked, now: float) -> None:
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
        for device, number in event.devices:
            session = self._sessions.of_device(device, number)
            if session is not None:
                session.sync.unreachable(now)
                self._delayed(session)

    def _delayed(self, session: Session) -> None:
        """R8: who is here goes on talking; what is stored comes when the database is back."""
        self._tell_delayed(session, delayed=True)
        if session.state is State.SYNCING:
            # `after` keeps every stream in order: what must wait for the queue is held or returned.
            session.state = State.LIVE

    def _went_on(self, session: Session, now: float) -> None:
        """After a step of the sync: live messages come behind the last page."""
        if not session.sync.caught_up:
            return
        if session.state is State.SYNCING:
            session.state = State.LIVE
        self._tell_delayed(session, delayed=False)
        if session.deferred:
            self._sessions.give_back_all(session, session.release_deferred(), absent=False)
            self._sessions.mark(session)
            if session.deferred:
                # What they wait for may be another device's copy: then nobody wake-ups us when it is written.
                session.sync.look_again(now)

    def _tell_delayed(self, session: Session, *, delayed: bool) -> None:
        if session.told_delayed != delayed:
            session.told_delayed = delayed
            self._sessions.say(session.peer, Stored(session.link.epoch, delayed))
