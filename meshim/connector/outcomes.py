"""From the outcomes of copies, as the mesh has them, to the outcomes of messages, as clients get them."""

from meshim.connector.accounting import Progress, audience
from meshim.connector.cookies import make_cookie, read_cookie
from meshim.connector.session import Session, State
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.errors import Code
from meshim.wire.bounds import Copies, Positions
from meshim.wire.client import Outcome
from meshim.wire.envelope import Stream
from meshim.wire.outcome import CopyOutcome, OutcomeStatus

STREAMS_MAX = 1_024
"""Streams of a session with positions of copies that were stored in it."""

AUDIENCES = 4_096
"""Copies whose audience is cached."""

# As plain numbers, because they are compared with every message.
_DELIVERED, _STORED = int(OutcomeStatus.DELIVERED), int(OutcomeStatus.STORED)


class Outcomes:
    """Adds up the outcomes of copies, and keeps the order of streams in cookies."""

    def __init__(self, statistics: Statistics, sessions: Sessions) -> None:
        self._statistics = statistics
        self._sessions = sessions
        self.secret = b""
        """Of the mesh, for cookies; empty until it is known."""
        self._audiences: dict[Copies, int] = {}

    def positions(self, stream: Stream, cookie: bytes) -> Positions | None:
        """The positions in the cookie of a submit; None while they cannot be read.

        A cookie that is not authentic (the mesh has another secret by now, or the client made it up) counts as empty.
        Only the order of the client's own stream depends on it.
        """
        if not cookie:
            return ()
        if not self.secret:
            self._statistics.secret_unknown += 1
            return None
        positions = read_cookie(self.secret, stream, cookie)
        if positions is None:
            self._statistics.cookies_invalid += 1
            return ()
        return positions

    def receive(self, outcome: CopyOutcome) -> None:
        """Tell the client, if there is news.  An outcome for an earlier session is lost: its client submits again."""
        session = self._sessions.of_device(outcome.device)
        if session is None or session.binding.session != outcome.session or session.state is State.BINDING:
            self._statistics.outcomes_lost += 1
        elif (
            outcome.status == _DELIVERED
            and outcome.done == outcome.copies
            and not outcome.after
            and not session.accounting.messages
            and outcome.to not in session.stored.streams
        ):
            # The way of most outcomes: nothing to add up, and no position.
            told = Outcome(
                to=outcome.to,
                first=outcome.first,
                last=outcome.last,
                status=_DELIVERED,
                final=True,
                audience=self._audience(outcome.copies),
            )
            self._sessions.queue_outcome(session, told)
        elif outcome.status in (_DELIVERED, _STORED):
            self._add_up(session, outcome)
        else:
            told = Outcome(
                to=outcome.to,
                first=outcome.first,
                last=outcome.last,
                status=outcome.status,
                code=outcome.code,
                sentence=outcome.sentence,
            )
            self._sessions.queue_outcome(session, told)

    def _add_up(self, session: Session, outcome: CopyOutcome) -> None:
        if outcome.status == _STORED:
            positions = session.stored.stored(outcome.to, outcome.done, outcome.position, outcome.after)
            if len(session.stored.streams) > STREAMS_MAX:
                # The next session begins without any: its client has the cookies.
                self._sessions.cut(session, Code.BUSY, "copies of too many streams were stored: connect again")
                return
        else:
            positions = session.stored.delivered(outcome.to, outcome.done, outcome.copies, outcome.after)
        if positions and not self.secret:
            self._statistics.secret_unknown += 1  # without the cookie the client must not take the message for sent
            return
        stream = Stream(outcome.user, outcome.device, outcome.epoch, outcome.to)
        cookie = make_cookie(self.secret, stream, positions)
        for progress in session.accounting.add(outcome):
            self._sessions.queue_outcome(session, self._told(outcome, progress, cookie))

    def _told(self, outcome: CopyOutcome, progress: Progress, cookie: bytes) -> Outcome:
        return Outcome(
            to=outcome.to,
            first=progress.first,
            last=progress.last,
            status=progress.status,
            final=progress.final,
            audience=self._audience(outcome.copies) if progress.final else 0,
            cookie=cookie,
        )

    def _audience(self, copies: Copies) -> int:
        number = self._audiences.get(copies)
        if number is None:
            if len(self._audiences) >= AUDIENCES:
                self._audiences.clear()
            number = self._audiences[copies] = audience(copies)
        return number
