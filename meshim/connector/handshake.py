"""Greetings: from a token to a bound, welcomed session.

::

    Greet ──▶ token verified ──▶ binding written in presence ──▶ token looked at again ──▶ Welcome, queue checked
                  │                     │                               │
                  │                     │                               └── revoked meanwhile: cut
                  └── refused ──────────┴── a later session holds the binding, or presence is away: cut

The session number is taken from the clock of presence before the token is verified, and only a higher number replaces a
binding: a late greeting of a stopped process cannot replace a newer connection (R5).

Each greeting costs Redis three commands and the connector a session, so those with one token have a rate (adr/0047).
"""

from collections.abc import Callable

import msgspec

from meshim.connector import events as e
from meshim.connector.options import ConnectorOptions
from meshim.connector.session import Session, State, Trigger
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.errors import Code, PeerError
from meshim.protocol.link import LinkOptions
from meshim.protocol.rate_limit import RateLimit
from meshim.stores.ports import Binding
from meshim.wire.client import Greet, Welcome
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.notification import Kick

LAST_SEEN_S = 3600.0
"""How often to record that a device is connected; a device that was not for `device_idle_s` is dropped."""
GREETINGS_BURST_S = 10.0
"""Greetings with one token may come at once, so many seconds' worth: an application that crashes at its start, say."""
LEAVING = "this connector is leaving: connect to another"


class Handshake:
    """Turns greetings into sessions, and refuses the others."""

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
        self._pending: dict[bytes, Greet] = {}
        """Greetings whose tokens are being verified, by peer."""
        self._withdrawn: set[bytes] = set()
        """Peers of `_pending` that have gone or broken the protocol meanwhile.  They count until the verdict comes: a
        connection has one greeting under way, however often it takes it back."""
        # Twice as many tokens as sessions: to be forgotten, a token needs a flood of others.
        self._rate: RateLimit[bytes] = RateLimit(options.greetings_per_s, 2 * options.sessions, GREETINGS_BURST_S)
        self.shutting_down = False
        """Whether every greeting is refused."""

    def is_pending(self, peer: bytes) -> bool:
        """Whether the token of this peer is being verified."""
        return peer in self._pending and peer not in self._withdrawn

    def forget(self, peer: bytes) -> None:
        """Ignore the verdict on the token of this peer, if one is awaited."""
        if peer in self._pending:
            self._withdrawn.add(peer)

    def greet(self, peer: bytes, greet: Greet, now: float) -> None:
        """Have a token verified, or refuse the greeting.  Raises PeerError for a second greeting of a connection."""
        if self._sessions.of_peer(peer) is not None or peer in self._pending:
            raise PeerError(Code.NOT_GREETED, "this connection has greeted already")
        if greet.version != WIRE_VERSION:
            sentence = f"version {greet.version} is not spoken here, {WIRE_VERSION} is"
            self._refuse(peer, greet.link, Code.VERSION, sentence)
        elif self.shutting_down:
            self._refuse(peer, greet.link, Code.SHUTTING_DOWN, LEAVING)
        elif len(self._sessions) + len(self._pending) >= self._options.sessions:
            self._refuse(peer, greet.link, Code.BUSY, "this connector is full: connect to another")
        elif wait_s := self._rate.wait_s(greet.token, now):
            self._statistics.greetings_limited += 1
            sentence = f"this token has greeted too often: wait {wait_s:.1f} s"
            self._refuse(peer, greet.link, Code.BUSY, sentence)
        else:
            self._rate.charge(greet.token, 1.0, now)
            self._pending[peer] = greet
            self._actions.append(e.CheckGreet(peer, greet.link, greet.token, greet.epoch))

    def _refuse(self, peer: bytes, link: int, code: Code, sentence: str) -> None:
        self._statistics.refused += 1
        self._sessions.refuse(peer, link, code, sentence)

    def _answered(self, peer: bytes) -> Greet | None:
        """The verdict on a token came: return the greeting, or None when the peer has withdrawn it."""
        greet = self._pending.pop(peer, None)
        if peer in self._withdrawn:
            self._withdrawn.discard(peer)
            return None
        return greet

    def refused(self, event: e.GreetRefused, now: float) -> None:
        """Refuse the greeting with the reason."""
        if self._answered(event.peer) is not None:
            self._refuse(event.peer, event.link, event.code, event.sentence)

    def accepted(self, event: e.GreetAccepted, now: float) -> None:
        """Begin a session, in place of an earlier one of the device, and have its binding written."""
        greet = self._answered(event.peer)
        if greet is None:
            return
        if self.shutting_down:
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
        binding = Binding(user=login.user, device=login.device, incarnation=self._incarnation, session=event.session)
        session = Session(
            peer=event.peer,
            link=event.link,
            token_hash=event.token_hash,
            login=login,
            account=event.account,
            binding=binding,
            options=self._link_options(greet),
            sync=options.sync,
            rate=options.session_rate,
            now=now,
        )
        session.link.window.credit = max(1, min(greet.window, options.clients.window.credit))
        session.account_due = session.binding_due = now + self.account_period_s(session)
        session.last_seen_due = now + LAST_SEEN_S
        self._sessions.add(session)
        self._actions.append(e.WriteBindings((session.binding_renewal,)))

    def bindings_written(self, event: e.BindingsWritten, now: float) -> None:
        """Welcome new sessions, cut those that lost their binding, and kick the sessions that were replaced
        elsewhere."""
        for binding, result in event.results:
            if isinstance(result, Binding) and result.incarnation != self._incarnation:
                # Also when the session here has ended meanwhile: presence does not name the other one any more.
                kick = Kick(
                    user=binding.user, device=binding.device, session=result.session,
                    code=Code.REPLACED, sentence="this device connected elsewhere",
                )  # fmt: skip
                self._actions.append(e.SendKick(result.incarnation, kick))
            session = self._sessions.of_device(binding.device, binding.session)
            if session is None:
                # The session ended while its binding was being written.
                self._actions.append(e.EraseBindings((binding,)))
                continue
            if result is False:
                self._statistics.replaced += 1
                self._sessions.cut(session, Code.REPLACED, "another connection of this device took over")
                continue
            if session.state is State.BINDING:
                self._welcome(session)
            session.move(Trigger.BOUND)
            self._sessions.check_queue(session)

    def bindings_write_failed(self, event: e.BindingsWriteFailed, now: float) -> None:
        """Cut new sessions, which greet again; write the bindings of the others again after `retry_s`."""
        for binding in event.bindings:
            session = self._sessions.of_device(binding.device, binding.session)
            if session is None:
                # The binding may have been written all the same.
                self._actions.append(e.EraseBindings((binding,)))
            elif session.state is State.BINDING:
                self._sessions.cut(session, Code.BUSY, "presence does not answer: try again")
            else:
                session.binding_due = now + self._options.sync.retry_s

    def tokens_revoked(self, event: e.TokensRevoked, now: float) -> None:
        """Cut sessions whose tokens were revoked without a kick that reached us (R14), or before they had a binding.

        With the code REPLACED: an application that has logged in again since then greets with its new token, and
        another application gets BAD_TOKEN.
        """
        for binding in event.bindings:
            session = self._sessions.of_device(binding.device, binding.session)
            if session is not None:
                self._sessions.cut(session, Code.REPLACED, "the login of this connection has ended")

    def account_period_s(self, session: Session) -> float:
        """Seconds until relations are read again: jittered by session, so that a storm of sessions does not repeat."""
        return self._options.relation_ttl_s * (0.75 + (session.binding.session % 1024) / 4096)

    def _link_options(self, greet: Greet) -> LinkOptions:
        """The options of the session's link, with the silence that is granted: as asked, within the bounds."""
        options = self._options.clients
        silence_s = min(greet.silence_ms / 1000, self._options.silence_max_s)
        # Nearly all sessions share one struct.
        return msgspec.structs.replace(options, silence_s=silence_s) if silence_s > options.silence_s else options

    def _welcome(self, session: Session) -> None:
        self._statistics.greeted += 1
        options, login = self._options, session.login
        welcome = Welcome(
            version=WIRE_VERSION,
            link=session.link.epoch,
            session=session.binding.session,
            user=login.user,
            device=login.device,
            window=options.clients.window.credit,
            body_bytes=options.body_bytes,
            frame_bytes=options.frame_bytes,
            heartbeat_ms=_ms(options.clients.heartbeat_s),
            silence_ms=_ms(session.link.silence_s),
            ack_ms=_ms(options.clients.window.give_up_s),
            now=self._wall_ms(),
        )
        self._sessions.send_frame(session.peer, welcome)
        self._actions.append(e.RecordLastSeen((login.device,)))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
