"""The core of a transfer: decides whether each copy of a message is delivered now or stored.

A transfer takes messages from connectors and looks up in presence which connectors hold the devices.  Then it decides
for each copy (`TransferCore._deliver_or_store`):

    bound to a linked connector                            Deliver, to that connector
    not bound, connector not linked, or its link full      an entry for the log
    the user has no entry in presence                      one entry for all devices
    returned by a connector, or lost with it               an entry for the log
    not deliverable, and ephemeral                         dropped, counted
    to be stored, and its queue is full of the sender's    Outcome BUSY with QUEUE_FULL; no copy of it is stored

An entry that the log acknowledged becomes an Outcome STORED; an entry that it did not take, or that finds no room
here, becomes an Outcome BUSY.  Outcomes go to the connector that the message came from.  A transfer keeps nothing on
disk: if a transfer dies, the senders resend.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meshim.errors import Code
from meshim.protocol.flush_queue import TICK_S
from meshim.protocol.outcome import outcomes_of
from meshim.transfer import events as e
from meshim.transfer.connector_links import ConnectorLinks
from meshim.transfer.log_batcher import LogBatcher, PendingEntry
from meshim.transfer.options import TransferOptions
from meshim.transfer.presence_cache import BoundDevices, Locations, PresenceCache
from meshim.transfer.statistics import Statistics
from meshim.wire.envelope import EPHEMERAL_FROM
from meshim.wire.mesh import Deliver, Return, Route, Stamp
from meshim.wire.offline_log import Entry
from meshim.wire.outcome import CopyOutcome, OutcomeStatus


class _PendingRoute:
    """A message that waits for a look-up of presence."""

    __slots__ = ("locations", "missing", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.locations: dict[int, Locations] = {}
        """By user."""
        self.missing = 0
        """Users of whom the locations are not known yet."""


class TransferCore:
    """Routes messages between the connectors that are linked."""

    def __init__(self, incarnation: int, options: TransferOptions) -> None:
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            e.ConnectorsSent: self._connectors_sent,
            e.ConnectorGone: self._connector_gone,
            e.PresenceRead: self._presence_read,
            e.PresenceReadFailed: self._presence_read_failed,
            e.PresenceChanged: self._presence_changed,
            e.Published: self._published,
            e.PublishFailed: self._publish_failed,
            e.StopRequested: self._stop_requested,
        }
        self.statistics = Statistics()
        self._options = options
        self._actions: list[e.Action] = []
        self._ticked_at = 0.0
        self._links = ConnectorLinks(
            incarnation, options.links, self.statistics, self._actions.append, self._store_undelivered
        )  # fmt: skip
        self._presence = PresenceCache(
            options.presence_cache, options.presence_cache_ttl_s, options.presence_silence_s
        )  # fmt: skip
        self._batcher = LogBatcher(options)
        self._pending: dict[int, list[_PendingRoute]] = {}
        """By user: the messages that wait for the look-up of that user, in order."""
        self._pending_count = 0
        self._pending_bytes = 0
        self._to_look_up: list[int] = []

    # ---------------------------------------------------------------- the driver

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        """Take in what happened; return what to do, in order."""
        self._handlers[type(event)](event, now)
        return self._flush(now)

    def tick(self, now: float) -> Sequence[e.Action]:
        """Do what time demands; return what to do, in order."""
        if now >= self._ticked_at + TICK_S:
            self._ticked_at = now
            self._links.tick(now)
        return self._flush(now)

    def next_deadline(self) -> float | None:
        """Return when to call `tick`; None while no connector is linked."""
        return min(self._ticked_at + TICK_S, self._links.flush_at) if self._links.linked else None

    @property
    def idle(self) -> bool:
        """Nothing that was taken from a connector is still here."""
        return self._batcher.idle and not self._pending_count and self._links.idle

    def _flush(self, now: float) -> Sequence[e.Action]:
        if self._to_look_up:
            self._actions.append(e.ReadPresence(tuple(self._to_look_up)))
            self._to_look_up.clear()
        self._actions.extend(self._batcher.flush())
        self._links.flush(now)
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def _stop_requested(self, event: e.StopRequested, now: float) -> None:
        self._links.close(now)

    # ---------------------------------------------------------------- from connectors

    def _connectors_sent(self, event: e.ConnectorsSent, now: float) -> None:
        for peer, frame in event.batch:
            for item in self._links.receive(peer, frame, now, event.incarnations):
                if isinstance(item, Route):
                    self.statistics.routed += 1
                    self._route(item, now)
                elif isinstance(item, CopyOutcome):
                    self._send_outcome(item)
                else:
                    self._returned(item)

    def _connector_gone(self, event: e.ConnectorGone, now: float) -> None:
        self._links.gone(event.peer)

    # ---------------------------------------------------------------- which devices a message is for

    def _route(self, route: Route, now: float) -> None:
        """Send the copies of a message, at once or when the presence of all its users has been looked up."""
        options, stamp = self._options, route.stamp
        if self._pending_count >= options.pending or self._pending_bytes >= options.pending_bytes:
            self._refuse(stamp)
            return
        recipient = stamp.to.id
        locations = self._presence.get(recipient, now)
        if locations is not None and not stamp.copies and recipient not in self._pending:
            self._send_copies(route, locations, None)
            return
        pending = _PendingRoute(route)
        for user in _users_of(stamp):
            known = self._presence.get(user, now)
            if known is not None and user not in self._pending:  # else it would overtake what waits for the user
                pending.locations[user] = known
                continue
            pending.missing += 1
            self._pending.setdefault(user, []).append(pending)
            if self._presence.begin_lookup(user):
                self._to_look_up.append(user)
        if pending.missing:
            self._pending_count += 1
            self._pending_bytes += len(route.envelope)
        else:
            self._send_copies(route, pending.locations[recipient], pending.locations.get(stamp.user))

    def _resume(self, found: Mapping[int, Locations]) -> None:
        """Go on with the messages that waited for these users, in order, also when the cache may not keep `found`."""
        for user, locations in found.items():
            for pending in self._pending.pop(user, []):
                pending.locations[user] = locations
                pending.missing -= 1
                if not pending.missing:
                    route = pending.route
                    self._pending_count -= 1
                    self._pending_bytes -= len(route.envelope)
                    stamp = route.stamp
                    self._send_copies(route, pending.locations[stamp.to.id], pending.locations.get(stamp.user))

    def _send_copies(self, route: Route, recipient: Locations, sender: Locations | None) -> None:
        """Name all copies in the stamp, then send those of the recipient and those of the sender's other devices.

        `sender` may be None when `route.stamp.copies`, those of the sender's other devices, is empty.
        """
        stamp, envelope = route.stamp, route.envelope
        to, own_copies = stamp.to, stamp.copies
        stamp = Stamp(
            origin=stamp.origin,
            session=stamp.session,
            user=stamp.user,
            device=stamp.device,
            epoch=stamp.epoch,
            to=to,
            seq=stamp.seq,
            kind=stamp.kind,
            after=stamp.after,
            copies=recipient.copies + own_copies,
        )
        bound: BoundDevices = ()
        unbound: tuple[int, ...] = ()
        if own_copies:
            assert sender is not None
            bound, unbound = sender.split(device for _, device in own_copies)
        if self._presence.full and stamp.kind < EPHEMERAL_FROM:
            # One full queue refuses all copies that would be stored: with each attempt they would be stored again.
            for user, devices in ((to.id, recipient.unbound), (stamp.user, unbound)):
                if self._presence.is_full(user, devices, stamp.user):
                    self._deliver(to.id, recipient.bound, stamp, envelope)
                    self._deliver(stamp.user, bound, stamp, envelope)
                    self._refuse_full(user, stamp)
                    return
        self._deliver_or_store(to.id, recipient.bound, recipient.unbound, stamp, envelope)
        if own_copies:
            self._deliver_or_store(stamp.user, bound, unbound, stamp, envelope)

    # ---------------------------------------------------------------- delivered or stored

    def _deliver_or_store(
        self, user: int, bound: BoundDevices, unbound: tuple[int, ...], stamp: Stamp, envelope: bytes
    ) -> None:
        """Deliver to the bound devices of one user; store for the unbound ones, and where a link takes no copy."""
        unbound += self._deliver(user, bound, stamp, envelope)
        if unbound:
            self._store(user, unbound, stamp, envelope)

    def _deliver(self, user: int, bound: BoundDevices, stamp: Stamp, envelope: bytes) -> tuple[int, ...]:
        """Deliver to the bound devices of one user; return those where a link takes no copy."""
        left: tuple[int, ...] = ()
        for connector, bindings in bound:
            if self._links.send(connector, Deliver(user, bindings, stamp, envelope)):
                self.statistics.forwarded += len(bindings)
            else:
                left += tuple(device for device, _ in bindings)
        return left

    def _returned(self, item: Return) -> None:
        self.statistics.returned += len(item.devices)
        if item.absent:
            self._presence.invalidate(item.user)
        self._store(item.user, item.devices, item.stamp, item.envelope)

    def _store_undelivered(self, item: Deliver) -> None:
        """R4: store what a lost connector had not acknowledged; its devices reconnect elsewhere and sync it."""
        if item.stamp.kind < EPHEMERAL_FROM:
            self.statistics.stored_after_loss += len(item.bindings)
            self._store(item.user, tuple(device for device, _ in item.bindings), item.stamp, item.envelope)

    def _store(self, user: int, devices: tuple[int, ...], stamp: Stamp, envelope: bytes) -> None:
        """Queue one entry for devices of a user; (0,) stands for all devices."""
        if stamp.kind >= EPHEMERAL_FROM:
            self.statistics.ephemeral_dropped += 1
            return
        if self._presence.full and self._presence.is_full(user, devices, stamp.user):
            self._refuse_full(user, stamp)
            return
        entry = Entry(user, () if devices == (0,) else devices, envelope)
        if not self._batcher.add(PendingEntry(entry, stamp, tuple((user, device) for device in devices))):
            self._refuse(stamp)

    def _refuse(self, stamp: Stamp) -> None:
        """Answer BUSY: there is no room for the message, or for an entry of it."""
        if stamp.kind >= EPHEMERAL_FROM:
            self.statistics.ephemeral_dropped += 1
        else:
            self._send_busy([stamp])

    def _refuse_full(self, user: int, stamp: Stamp) -> None:
        """Answer BUSY with QUEUE_FULL: a copy for a device of this user has no room (H4)."""
        self.statistics.queue_full += 1
        if user == stamp.user:
            sentence = "too much waits for another device of yours: let it connect"
        else:
            sentence = "too much waits for a device of the recipient: this goes out when there is room"
        for outcome in outcomes_of([(stamp, ())], OutcomeStatus.BUSY, code=Code.QUEUE_FULL, sentence=sentence):
            self._send_outcome(outcome)

    # ---------------------------------------------------------------- outcomes

    def _send_busy(self, stamps: Iterable[Stamp]) -> None:
        refused = [(stamp, ()) for stamp in stamps]
        self.statistics.busy += len(refused)
        for outcome in outcomes_of(refused, OutcomeStatus.BUSY, code=Code.BUSY, sentence="the log cannot take it now"):
            self._send_outcome(outcome)

    def _send_outcome(self, outcome: CopyOutcome) -> None:
        if self._links.send_outcome(outcome):
            self.statistics.outcomes += 1
        else:
            self.statistics.outcomes_lost += 1

    # ---------------------------------------------------------------- from presence and the log

    def _presence_read(self, event: e.PresenceRead, now: float) -> None:
        self.statistics.looked_up += len(event.users)
        self._resume({user: self._presence.complete_lookup(user, event.found.get(user), now) for user in event.users})

    def _presence_read_failed(self, event: e.PresenceReadFailed, now: float) -> None:
        """R9: while presence is away messages are stored; old bindings are not used."""
        self.statistics.unreadable += len(event.users)
        self._resume({user: self._presence.fail_lookup(user) for user in event.users})

    def _presence_changed(self, event: e.PresenceChanged, now: float) -> None:
        if event.users is None:
            self._presence.invalidate_all()
        elif not event.users:
            self._presence.heartbeat(now)
        else:
            for user in event.users:
                self._presence.invalidate(user)

    def _published(self, event: e.Published, now: float) -> None:
        batch = self._batcher.complete(event.record)
        self.statistics.stored += len(batch)
        done = [(pending.stamp, pending.done) for pending in batch]
        for outcome in outcomes_of(done, OutcomeStatus.STORED, event.position):
            self._send_outcome(outcome)

    def _publish_failed(self, event: e.PublishFailed, now: float) -> None:
        """R7: without the acknowledgement of the log there is no outcome STORED, and so no `sent`."""
        self._send_busy(pending.stamp for pending in self._batcher.complete(event.record))


def _users_of(stamp: Stamp) -> tuple[int, ...]:
    """Return the users whose presence decides where the copies go: the recipient, and the sender if it has copies."""
    return (stamp.to.id, stamp.user) if stamp.copies else (stamp.to.id,)
