"""Takes the envelopes that clients submit: routes or rejects each, answers BUSY, or authorizes it again later."""

from meshim.connector import events as e
from meshim.connector.authorization import Rejection, authorize, busy, rejected
from meshim.connector.options import ConnectorOptions
from meshim.connector.outcomes import Outcomes
from meshim.connector.session import Session
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.connector.transfer_links import TransferLinks
from meshim.errors import Code
from meshim.wire.client import Submit
from meshim.wire.mesh import Route, Stamp


class Submissions:
    """Authorizes envelopes, routes them to a transfer, and queues the outcomes of those that are not routed."""

    def __init__(
        self,
        incarnation: int,
        options: ConnectorOptions,
        statistics: Statistics,
        sessions: Sessions,
        outcomes: Outcomes,
        links: TransferLinks,
        actions: list[e.Action],
    ) -> None:
        self._incarnation = incarnation
        self._options = options
        self._statistics = statistics
        self._sessions = sessions
        self._outcomes = outcomes
        self._links = links
        self._actions = actions

    def submit(self, session: Session, submit: Submit) -> None:
        """Raises PeerError when the session has to be cut."""
        decision = authorize(session, submit, self._outcomes, self._incarnation, self._options.body_bytes)
        if isinstance(decision, Stamp):
            self._route(session, decision, submit)
        elif decision.code is Code.NOT_FRIENDS:
            self._defer(session, submit, decision)
        else:
            self._reject(session, decision)

    def authorize_deferred(self, session: Session, *, known: bool) -> None:
        """Relations were read again; or, if not `known`, cannot be read now."""
        waiting, session.unauthorized = session.unauthorized, []
        for submit in waiting:
            decision = authorize(session, submit, self._outcomes, self._incarnation, self._options.body_bytes)
            if isinstance(decision, Rejection):
                self._reject(session, decision if known else _not_now(decision))
            else:
                self._route(session, decision, submit)

    def _route(self, session: Session, stamp: Stamp, submit: Submit) -> None:
        if not self._links.send(Route(stamp, submit.envelope)):
            self._statistics.busy += 1
            self._sessions.queue_outcome(session, busy(stamp))

    def _defer(self, session: Session, submit: Submit, rejection: Rejection) -> None:
        """Read relations again first: the two may be friends by now, and a rejection is final."""
        if len(session.unauthorized) >= self._options.unauthorized:
            self._reject(session, _not_now(rejection))
            return
        session.unauthorized.append(submit)
        if len(session.unauthorized) == 1:
            self._actions.append(e.ReadAccounts((session.login.user,)))

    def _reject(self, session: Session, rejection: Rejection) -> None:
        if rejection.code is Code.BUSY:
            self._statistics.busy += 1
        else:
            self._statistics.rejected += 1
        self._sessions.queue_outcome(session, rejected(rejection))


def _not_now(rejection: Rejection) -> Rejection:
    """BUSY instead: whether the two are friends is not known now."""
    return rejection._replace(code=Code.BUSY, sentence="relations cannot be read now: send it again")
