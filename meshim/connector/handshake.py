"""Greetings: from a token to a bound, welcomed session.

::

    Greet ──▶ token checked ──▶ binding written in presence ──▶ Welcome, queue looked at
                  │                    │
                  └── refused ─────────┴── a later session holds the binding, or presence is away

The session number is taken from the clock of presence before the token is checked; only a higher one
takes a binding, so that a late greeting of a stopped process cannot oust a newer connection (R5).
"""

from collections.abc import Callable

from meshim.connector import events as e
from meshim.connector.options import ConnectorOptions
from meshim.connector.session import Session, State
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.errors import Code, PeerError
from meshim.stores.ports import Binding
from meshim.wire.client import Greet, Welcome
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.notification import Kick

SEEN_S = 3600.0
"""How often it is noted that a device is connected; it is dropped when that was not for `device_idle_s`."""
LEAVING = "this connector is leaving: connect to another"


class Handshake:
    """Lets clients in."""

    def __init__(
        self, incarnation: int, options: ConnectorOptions, statistics: Statistics, sessions: Sessions,
        actions: list[e.Action], wall_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._incarnation = incarnation
        self._options = options
        self._statistics = statistics
        self._sessions = sessions
        self._actions = actions
        self._wall_ms = wall_ms
        self._waiting: dict[bytes, Greet] = {}
        self.closed = False
        """Whether everybody is sent away."""

    def waiting(self, peer: bytes) -> bool:
        """Whether the token of this peer is being checked."""
        return peer in self._waiting

    def forget(self, peer: bytes) -> None:
        self._waiting.pop(peer, None)

    def greet(self, peer: bytes, greet: Greet) -> None:
        """Raises PeerError for a second greeting."""
        if self._sessions.of_peer(peer) is not None or peer in self._waiting:
            raise PeerError(Code.NOT_GREETED, "this connection has greeted already")
        if greet.version != WIRE_VERSION:
            sentence = f"version {greet.version} is not spoken here, {WIRE_VERSION} is"
            self._refuse(peer, greet.link, Code.VERSION, sentence)
        elif self.closed:
            self._refuse(peer, greet.link, Code.SHUTTING_DOWN, LEAVING)
        elif len(self._sessions) + len(self._waiting) >= self._options.sessions:
            self._refuse(peer, greet.link, Code.BUSY, "this connector is full: connect to another")
        else:
            self._waiting[peer] = greet
            self._actions.append(e.CheckGreet(peer, greet.link, greet.token, greet.epoch))

    def _refuse(self, peer: bytes, link: int, code: Code, sentence: str) -> None:
        self._statistics.refused += 1
        self._sessions.refuse_peer(peer, link, code, sentence)

    def refused(self, event: e.GreetRefused) -> None:
        greet = self._waiting.get(event.peer)
        if greet is not None and greet.link == event.link:
            del self._waiting[event.peer]
            self._refuse(event.peer, event.link, event.code, event.sentence)

    def accepted(self, event: e.GreetAccepted, now: float) -> None:
        greet = self._waiting.get(event.peer)
        if greet is None or greet.link != event.link:
            return
        del self._waiting[event.peer]
        if self.closed:
            self._refuse(event.peer, event.link, Code.SHUTTING_DOWN, LEAVING)
            return
        login, options = event.login, self._options
        before = self._sessions.of_device(login.device)
        if before is not None:
            if before.binding.session > event.session:
                self._refuse(event.peer, event.link, Code.REPLACED, "a later connection of this device is here")
                return
            self._statistics.replaced += 1
            self._sessions.cut(before, Code.REPLACED, "another connection of this device took over")
        binding = Binding(login.user, login.device, self._incarnation, event.session)
        session = Session(
            event.peer, event.link, event.token_hash, login, event.account, binding, options.clients, options.sync,
            options.session_rate, now,
        )  # fmt: skip
        session.link.window.credit = max(1, min(greet.window, options.clients.window.credit))
        session.account_due = session.binding_due = now + self.account_period_s(session)
        session.seen_due = now + SEEN_S
        self._sessions.add(session)
        self._actions.append(e.WriteBindings(((binding, session.devices),)))

    def bindings_written(self, event: e.BindingsWritten) -> None:
        for binding, result in event.results:
            session = self._sessions.of_device(binding.device, binding.session)
            if session is None:
                # It left while its binding was being written.
                self._actions.append(e.EraseBindings((binding,)))
                continue
            if result is False:
                self._statistics.replaced += 1
                self._sessions.cut(session, Code.REPLACED, "another connection of this device took over")
                continue
            if isinstance(result, Binding) and result.incarnation != self._incarnation:
                kick = Kick(
                    binding.user, binding.device, result.session, Code.REPLACED, "this device connected elsewhere"
                )
                self._actions.append(e.TellKick(result.incarnation, kick))
            if session.state is State.BINDING:
                self._welcome(session)
            self._sessions.look(session)

    def bindings_unwritten(self, event: e.BindingsUnwritten, now: float) -> None:
        """Who was bound before is written again in a moment; who is new has to come again."""
        for binding in event.bindings:
            session = self._sessions.of_device(binding.device, binding.session)
            if session is None:
                # It may have been written all the same.
                self._actions.append(e.EraseBindings((binding,)))
            elif session.state is State.BINDING:
                self._sessions.cut(session, Code.BUSY, "presence does not answer: try again")
            else:
                session.binding_due = now + self._options.sync.retry_s

    def tokens_revoked(self, event: e.TokensRevoked) -> None:
        """Whoever revoked them could not tell us (R14).

        As if it had been replaced: an application that has logged in again since comes back with its new token, and
        another one finds out that it has none (BAD_TOKEN).
        """
        for binding in event.bindings:
            session = self._sessions.of_device(binding.device, binding.session)
            if session is not None:
                self._sessions.cut(session, Code.REPLACED, "the login of this connection has ended")

    def account_period_s(self, session: Session) -> float:
        """Until relations are read again: by session, so that those of one moment do not read together."""
        return self._options.relation_ttl_s * (0.75 + (session.binding.session % 1024) / 4096)

    def _welcome(self, session: Session) -> None:
        session.state = State.SYNCING
        self._statistics.greeted += 1
        options, login = self._options, session.login
        welcome = Welcome(
            WIRE_VERSION, session.link.epoch, session.binding.session, login.user, login.device,
            options.clients.window.credit, options.body_bytes, options.frame_bytes,
            int(options.heartbeat_s * 1000), self._wall_ms(),
        )  # fmt: skip
        self._sessions.say(session.peer, welcome)
        self._actions.append(e.NoteSeen((login.device,)))
