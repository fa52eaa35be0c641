"""What a transfer decides.

A transfer takes envelopes from connectors and finds out, for each copy, where it goes:

    a device that presence binds to a linked connector          Deliver, to that connector
    a device that is not bound, or bound elsewhere        an entry for the log
    a recipient of whom presence knows nothing              one entry for all devices
    what a connector gives back, or was lost with           an entry for the log
    ephemeral and not bound                                dropped

An entry that the log acknowledged is an Outcome STORED, one that it did not take an Outcome BUSY; outcomes travel
to the connector that the message came from.  A transfer remembers nothing that a sender relies on:
what dies with it is sent again by its sender.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from meshim.errors import Code, PeerError
from meshim.protocol.flush_queue import TICK_S, FlushQueue
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.outcome import outcomes_of
from meshim.transfer import events as e
from meshim.transfer.log_batcher import LogBatcher, PendingEntry
from meshim.transfer.presence_cache import Bound, Locations, PresenceCache
from meshim.transfer.statistics import Statistics
from meshim.wire import mesh as wire
from meshim.wire.envelope import EPHEMERAL_FROM, WIRE_VERSION, DestinationType
from meshim.wire.link import Close, Data, Reset
from meshim.wire.mesh import Deliver, FromConnector, FromTransfer, Hello, HelloOk, Return, Route, Stamp
from meshim.wire.offline_log import Entry
from meshim.wire.outcome import Copy, Outcome, OutcomeStatus
from meshim.wire.sizes import mesh_item_size

_DEVICE = int(DestinationType.DEVICE)  # as a plain number: what is compared with every message


class TransferOptions(msgspec.Struct, frozen=True):
    """Counts, bytes and seconds, from the topology."""

    links: LinkOptions
    partitions: int
    publishes: int
    waiting: int
    """Messages that may wait for a look-up, and entries that may wait for the log."""
    waiting_bytes: int
    """Of the envelopes of each of these, beyond the last."""
    record_bytes: int
    record_items: int
    presence_cache: int
    presence_cache_ttl_s: float
    presence_silence_s: float


class _Connector:
    __slots__ = ("incarnation", "link", "peer")

    def __init__(self, peer: bytes, incarnation: int, link: Link[FromTransfer, FromConnector]) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.link = link


class _Pending:
    """A message that waits for presence."""

    __slots__ = ("missing", "route", "where")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.where: dict[int, Locations] = {}
        self.missing = 0


class TransferCore:
    """The links to connectors, and the way of every copy."""

    def __init__(self, incarnation: int, options: TransferOptions) -> None:
        self.statistics = Statistics()
        self._incarnation = incarnation
        self._options = options
        self._actions: list[e.Action] = []
        self._peers: dict[bytes, _Connector] = {}
        self._connectors: dict[int, _Connector] = {}
        self._flush_queue: FlushQueue[bytes] = FlushQueue()
        self._ticked = 0.0
        self._presence = PresenceCache(
            options.presence_cache, options.presence_cache_ttl_s, options.presence_silence_s
        )  # fmt: skip
        self._waiting: dict[int, list[_Pending]] = {}
        self._waiting_count = 0
        self._waiting_bytes = 0
        self._asking: list[int] = []
        self._stopping = False
        self._batcher = LogBatcher(
            options.partitions, options.publishes, options.waiting, options.waiting_bytes, options.record_bytes,
            options.record_items,
        )  # fmt: skip
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            e.ConnectorsSent: self._connectors_sent,
            e.ConnectorGone: self._connector_gone,
            e.PresenceRead: self._presence_read,
            e.PresenceUnreadable: self._presence_unreadable,
            e.PresenceChanged: self._presence_changed,
            e.Published: self._published,
            e.Unpublished: self._unpublished,
        }

    # ---------------------------------------------------------------- the driver

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        self._handlers[type(event)](event, now)
        return self._flush(now)

    def tick(self, now: float) -> Sequence[e.Action]:
        if now < self._ticked + TICK_S:
            return self._flush(now)  # something that has waited for others leaves, no more
        self._ticked = now
        for connector in list(self._peers.values()):
            link = connector.link
            if link.failed(now):
                self._lost(connector)
                continue
            resent = link.window.resent
            for frame in link.tick(now):
                self._actions.append(e.SendConnector(connector.peer, wire.encode(frame)))
            self.statistics.resent += link.window.resent - resent
        return self._flush(now)

    def next_deadline(self) -> float | None:
        return min(self._ticked + TICK_S, self._flush_queue.flush_at) if self._peers else None

    @property
    def idle(self) -> bool:
        """Nothing that was taken from a connector is still here."""
        return (
            self._batcher.idle
            and not self._waiting_count
            and all(connector.link.window.idle for connector in self._peers.values())
        )

    def stop(self, now: float) -> Sequence[e.Action]:
        """Say farewell: connectors take what they have under way elsewhere."""
        self._stopping = True
        actions = list(self._flush(now))
        for peer, connector in self._peers.items():
            actions.extend(e.SendConnector(peer, wire.encode(frame)) for frame in connector.link.flush_all(now))
            close = Close(connector.link.epoch, Code.SHUTTING_DOWN, "this transfer is leaving")
            actions.append(e.SendConnector(peer, wire.encode(close)))
        return actions

    def _flush(self, now: float) -> Sequence[e.Action]:
        if self._asking:
            self._actions.append(e.ReadPresence(tuple(self._asking)))
            self._asking.clear()
        self._actions.extend(self._batcher.flush())
        for peer, frame in self._flush_queue.flush(now):
            self._actions.append(e.SendConnector(peer, wire.encode(frame)))
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    # ---------------------------------------------------------------- links

    def _connectors_sent(self, event: e.ConnectorsSent, now: float) -> None:
        for peer, data in event.batch:
            connector = self._peers.get(peer)
            try:
                frame = wire.decode_from_connector(data)
                if isinstance(frame, Hello):
                    self._greeted(peer, frame, now)
                elif connector is not None and frame.link == connector.link.epoch:
                    self._frame(connector, frame, now)
                elif not isinstance(frame, Close | Reset):
                    # R13: queued for an earlier incarnation of this transfer.
                    self.statistics.unknown_links += 1
                    self._actions.append(e.SendConnector(peer, wire.encode(Reset(frame.link))))
            except (msgspec.DecodeError, PeerError) as error:
                self.statistics.malformed += 1
                code = error.code if isinstance(error, PeerError) else Code.MALFORMED
                link = connector.link.epoch if connector is not None else 0
                self._actions.append(e.SendConnector(peer, wire.encode(Close(link, code, str(error)))))
                if connector is not None:
                    self._lost(connector)

    def _greeted(self, peer: bytes, hello: Hello, now: float) -> None:
        if hello.version != WIRE_VERSION:
            sentence = f"version {hello.version} is not spoken here, {WIRE_VERSION} is"
            self._actions.append(e.SendConnector(peer, wire.encode(Close(hello.link, Code.VERSION, sentence))))
            return
        if self._stopping:
            close = Close(hello.link, Code.SHUTTING_DOWN, "this transfer is leaving")
            self._actions.append(e.SendConnector(peer, wire.encode(close)))
            return
        for known in (self._peers.get(peer), self._connectors.get(hello.incarnation)):
            if known is not None and known.peer in self._peers:
                self._lost(known)
        options = self._options.links
        link: Link[FromTransfer, FromConnector] = Link(
            hello.link, options, mesh_item_size, now, size_of_received=mesh_item_size
        )  # fmt: skip
        link.window.credit = max(1, min(hello.window, options.window.credit))
        connector = _Connector(peer, hello.incarnation, link)
        self._peers[peer] = connector
        self._connectors[hello.incarnation] = connector
        self.statistics.connectors = len(self._peers)
        answer = HelloOk(WIRE_VERSION, hello.link, self._incarnation, options.window.credit)
        self._actions.append(e.SendConnector(peer, wire.encode(answer)))

    def _frame(self, connector: _Connector, frame: wire.ConnectorToTransfer, now: float) -> None:
        if isinstance(frame, Data) and frame.number <= connector.link.window.received_number:
            self.statistics.deduplicated += 1
        options = self._options
        for item in connector.link.receive(frame, now)[0]:
            if isinstance(item, Route):
                self.statistics.routed += 1
                if self._waiting_count < options.waiting and self._waiting_bytes < options.waiting_bytes:
                    self._route(item, now)
                else:
                    self._refuse(item.stamp)
            elif isinstance(item, Outcome):
                self._tell(item)
            else:
                self._returned(item)
        if connector.link.closed_by is not None:
            self._lost(connector)
        else:
            self._flush_queue.mark(connector.peer, connector.link)

    def _connector_gone(self, event: e.ConnectorGone, now: float) -> None:
        connector = self._peers.get(event.peer)
        if connector is not None:
            self._lost(connector)

    def _lost(self, connector: _Connector) -> None:
        """R4: what was under way to it is stored; its devices are found elsewhere or drain later."""
        del self._peers[connector.peer]
        self._flush_queue.discard(connector.peer)
        if self._connectors.get(connector.incarnation) is connector:
            del self._connectors[connector.incarnation]
        self.statistics.connectors = len(self._peers)
        for item in connector.link.window.abandon():
            if isinstance(item, Outcome):
                self.statistics.outcomes_lost += 1
            elif item.stamp.kind < EPHEMERAL_FROM:
                self.statistics.stored_after_loss += len(item.bindings)
                self._store(item.user, tuple(device for device, _ in item.bindings), item.stamp, item.envelope)

    # ---------------------------------------------------------------- the way of a message

    def _route(self, route: Route, now: float) -> None:
        """Deliver or store all copies, once presence of everybody concerned is known."""
        stamp = route.stamp
        to = stamp.to.id
        there = self._presence.get(to, now)
        if there is not None and not stamp.copies and to not in self._waiting:
            self._copy(route, there, None)
            return
        pending = _Pending(route)
        for user in _users_of(stamp):
            where = self._presence.get(user, now)
            if where is not None and user not in self._waiting:
                pending.where[user] = where
                continue
            pending.missing += 1
            self._waiting.setdefault(user, []).append(pending)
            if self._presence.ask(user):
                self._asking.append(user)
        if not pending.missing:
            self._copy(route, pending.where[to], pending.where.get(stamp.user))
        else:
            self._waiting_count += 1
            self._waiting_bytes += len(route.envelope)

    def _copy(self, route: Route, there: Locations, here: Locations | None) -> None:
        """`here` is where the sender's other devices are, if they get copies."""
        stamp, envelope = route.stamp, route.envelope
        to, own = stamp.to, stamp.copies
        if to.type == _DEVICE:
            copies: tuple[Copy, ...] = ((to.id, to.device),)
            bound, absent = there.of((to.device,))
        else:
            copies, bound, absent = there.copies, there.bound, there.absent
        stamp = Stamp(
            stamp.origin, stamp.user, stamp.device, stamp.epoch, to, stamp.seq, stamp.kind, stamp.after,
            copies + own,
        )  # fmt: skip
        self._copies_of(to.id, bound, absent, stamp, envelope)
        if own:
            assert here is not None
            bound, absent = here.of(device for _, device in own)
            self._copies_of(stamp.user, bound, absent, stamp, envelope)

    def _copies_of(self, user: int, bound: Bound, absent: tuple[int, ...], stamp: Stamp, envelope: bytes) -> None:
        """Deliver the copies of one user that can be, and store the others."""
        for incarnation, bindings in bound:
            connector = self._connectors.get(incarnation)
            if connector is not None and connector.link.push(Deliver(user, bindings, stamp, envelope)):
                self._flush_queue.mark(connector.peer, connector.link)
                self.statistics.forwarded += len(bindings)
            else:
                absent += tuple(device for device, _ in bindings)
        if absent:
            self._store(user, absent, stamp, envelope)

    def _returned(self, item: Return) -> None:
        self.statistics.returned += len(item.devices)
        if item.absent:
            self._presence.forget(item.user)
        self._store(item.user, item.devices, item.stamp, item.envelope)

    def _store(self, user: int, devices: tuple[int, ...], stamp: Stamp, envelope: bytes) -> None:
        """Store a message for devices of a user; (0,) are all of them."""
        if stamp.kind >= EPHEMERAL_FROM:
            self.statistics.ephemeral_dropped += 1
            return
        entry = Entry(user, () if devices == (0,) else devices, envelope)
        if not self._batcher.add(PendingEntry(entry, stamp, tuple((user, device) for device in devices))):
            self._refuse(stamp)

    def _refuse(self, stamp: Stamp) -> None:
        """There is no room for it."""
        if stamp.kind >= EPHEMERAL_FROM:
            self.statistics.ephemeral_dropped += 1
        else:
            self._busy([stamp])

    # ---------------------------------------------------------------- outcomes

    def _busy(self, stamps: Iterable[Stamp]) -> None:
        refused = [(stamp, ()) for stamp in stamps]
        self.statistics.busy += len(refused)
        for outcome in outcomes_of(refused, OutcomeStatus.BUSY, code=Code.BUSY, sentence="the log cannot take it now"):
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        connector = self._connectors.get(outcome.origin)
        if connector is None or not connector.link.push(outcome, deferrable=True):
            self.statistics.outcomes_lost += 1
        else:
            self._flush_queue.mark(connector.peer, connector.link)
            self.statistics.outcomes += 1

    # ---------------------------------------------------------------- from presence and the log

    def _presence_read(self, event: e.PresenceRead, now: float) -> None:
        self.statistics.looked_up += len(event.users)
        self._resume({user: self._presence.answer(user, event.found.get(user), now) for user in event.users})

    def _presence_unreadable(self, event: e.PresenceUnreadable, now: float) -> None:
        """R9: unknown is never guessed, it is stored."""
        self.statistics.unreadable += len(event.users)
        self._resume({user: self._presence.unanswered(user) for user in event.users})

    def _resume(self, found: Mapping[int, Locations]) -> None:
        """Take up what waited for these users, in order, with this answer even where it may not be kept."""
        for user, where in found.items():
            for pending in self._waiting.pop(user, []):
                pending.where[user] = where
                pending.missing -= 1
                if not pending.missing:
                    self._waiting_count -= 1
                    route = pending.route
                    self._waiting_bytes -= len(route.envelope)
                    stamp = route.stamp
                    self._copy(route, pending.where[stamp.to.id], pending.where.get(stamp.user))

    def _presence_changed(self, event: e.PresenceChanged, now: float) -> None:
        if event.users is None:
            self._presence.forget_all()
        elif not event.users:
            self._presence.heard(now)
        else:
            for user in event.users:
                self._presence.forget(user)

    def _published(self, event: e.Published, now: float) -> None:
        batch = self._batcher.ended(event.record)
        self.statistics.stored += len(batch)
        done = [(pending.stamp, pending.done) for pending in batch]
        for outcome in outcomes_of(done, OutcomeStatus.STORED, event.position):
            self._tell(outcome)

    def _unpublished(self, event: e.Unpublished, now: float) -> None:
        """R7: no `sent` without an acknowledgement of every copy."""
        self._busy(pending.stamp for pending in self._batcher.ended(event.record))


def _users_of(stamp: Stamp) -> tuple[int, ...]:
    """Whose presence the way of a message depends on."""
    return (stamp.to.id, stamp.user) if stamp.copies else (stamp.to.id,)
