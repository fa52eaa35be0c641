"""A session: one greeted device on this connector.

::

    BINDING ──bound──▶ SYNCING ──caught up, or queue away──▶ LIVE
                          ▲                                    │
                          └──────────── overflowed ────────────┘

BINDING   presence does not have the binding yet; the client gets its Welcome when it has
SYNCING   the rows of the offline queue are pushed first; a live message is returned, to be stored behind them
LIVE      live messages are pushed in the order of arrival; a message whose `after` lies beyond the position that
          was synced is deferred until the sync has passed it (R2), or returned when that takes too long

Entries that were pushed and not acknowledged are `unacked`: when the session ends, live copies are returned to be
stored, and stored rows simply stay unread.
"""

import enum
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from meshim.connector.accounting import Accounting
from meshim.connector.cookies import StoredPositions
from meshim.connector.events import BindingRenewal
from meshim.connector.offline_sync import OfflineSync, OfflineSyncOptions
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.token_bucket import SUBMIT_BYTES, TokenBucket, UnnumberedBudget
from meshim.stores.ports import Account, Binding, Login, Row
from meshim.wire.client import ConnectorItem, Delivery, Submit
from meshim.wire.envelope import Destination
from meshim.wire.mesh import Deliver, Stamp
from meshim.wire.outcome import Copy
from meshim.wire.sizes import connector_item_size, submit_size


class State(enum.Enum):
    BINDING = enum.auto()
    SYNCING = enum.auto()
    LIVE = enum.auto()


class Trigger(enum.Enum):
    """The causes of transitions between the states of a session."""

    BOUND = enum.auto()
    """Presence has the binding, written for the first time or renewed."""
    CAUGHT_UP = enum.auto()
    """Every row of the offline queue was pushed."""
    QUEUE_AWAY = enum.auto()
    """The database did not answer (R8)."""
    OVERFLOWED = enum.auto()
    """Live copies were stored, and the device has acknowledged all that was pushed before them."""


_TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.BINDING, Trigger.BOUND): State.SYNCING,
    (State.SYNCING, Trigger.BOUND): State.SYNCING,
    (State.SYNCING, Trigger.CAUGHT_UP): State.LIVE,
    # A session goes live without its queue: `after` keeps every stream in order, so that a message that must wait for
    # the queue is deferred or returned (adr/0006).
    (State.SYNCING, Trigger.QUEUE_AWAY): State.LIVE,
    (State.LIVE, Trigger.BOUND): State.LIVE,
    (State.LIVE, Trigger.CAUGHT_UP): State.LIVE,
    (State.LIVE, Trigger.QUEUE_AWAY): State.LIVE,
    (State.LIVE, Trigger.OVERFLOWED): State.SYNCING,
}


class DeliverResult(enum.Enum):
    """The result of `Session.deliver` for a live copy."""

    PUSHED = enum.auto()
    DEFERRED = enum.auto()
    STORE = enum.auto()
    """Nothing: the caller has to return the copy to a transfer, which stores it."""


class Deferred(NamedTuple):
    """A live copy that must not overtake the offline queue."""

    after: int
    until: float
    deliver: Deliver


class Session:
    """One connected device."""

    __slots__ = (
        "_deferred_streams",
        "_queue",
        "account_due",
        "accounting",
        "binding",
        "binding_due",
        "changed",
        "changed_due",
        "deferred",
        "delayed_sent",
        "devices",
        "due",
        "friends",
        "last_seen_due",
        "link",
        "live_bytes",
        "login",
        "others",
        "overflowed",
        "peer",
        "rows",
        "state",
        "stored",
        "sync",
        "token_bucket",
        "token_hash",
        "unacked",
        "unauthorized",
        "unnumbered",
    )  # fmt: skip

    def __init__(
        self, *, peer: bytes, link: int, token_hash: bytes, login: Login, account: Account, binding: Binding,
        options: LinkOptions, sync: OfflineSyncOptions, rate: float, now: float,
    ) -> None:  # fmt: skip
        """`rate` is submits per second.  `account` must be fresh enough until `account_due`, which the caller sets."""
        self.peer = peer
        self.token_hash = token_hash
        self.login = login
        self.binding = binding
        self.state = State.BINDING
        self.link: Link[ConnectorItem, Submit] = Link(link, options, connector_item_size, now, manual_ack=True)
        self.token_bucket = TokenBucket(rate, now)
        self.unnumbered = UnnumberedBudget(now)
        self.sync = OfflineSync(login.user, login.device, binding.session, sync)
        self.friends: frozenset[int]
        self.devices: tuple[int, ...]
        self.others: tuple[Copy, ...]
        """The copies for the user's other devices."""
        self.update_account(account)
        self.due = 0.0
        """When to call `tick` for this session: `next_deadline`, or 0 once an event has changed the session."""
        self.account_due = now
        """When to read relations and devices again."""
        self.binding_due = inf
        """When to write the binding again: by a period, and soon when presence did not answer."""
        self.changed = 0
        """What of the account changed and was not told to the device yet, as bits of `Change`."""
        self.changed_due = 0.0
        """The earliest time for the next Changed frame."""
        self.last_seen_due = now
        """When to record again that the device is connected."""
        self.unacked: list[Deliver | int] = []
        """For each Delivery in the window, in order: the live copy, or the id of the row."""
        self.rows = 0
        """How many of `unacked` are rows."""
        self.deferred: list[Deferred] = []
        self.live_bytes = 0
        """Bytes of the envelopes of live copies, in `unacked` and `deferred`."""
        self.unauthorized: list[Submit] = []
        """To users who were not friends when relations were last read: authorized again when they are read again."""
        self.accounting = Accounting()
        """The messages of this session of which some copies are accounted for."""
        self.stored = StoredPositions()
        """Where copies of its messages were stored."""
        self.overflowed = False
        """Whether a live copy was stored since the session went live."""
        self.delayed_sent: bool | None = None
        """The flag of the last Stored frame; None before the first."""
        self._queue = options.window.queue
        self._deferred_streams: set[tuple[int, int, Destination]] = set()

    def move(self, trigger: Trigger) -> None:
        """Change `state` by the table."""
        state = _TRANSITIONS.get((self.state, trigger))
        assert state is not None, f"{trigger} in {self.state}"
        self.state = state

    def update_account(self, account: Account) -> None:
        """Take over relations and devices.  A list of devices older than this device's registration lacks it."""
        own = self.login.device
        self.friends = frozenset(account.friends)
        self.devices = account.devices if own in account.devices else (*account.devices, own)
        self.others = tuple((self.login.user, device) for device in self.devices if device != own)

    @property
    def binding_renewal(self) -> BindingRenewal:
        return BindingRenewal(self.binding, self.devices, self.token_hash)

    def next_deadline(self) -> float:
        """The earliest time at which this session has something to do."""
        deadline = min(
            self.link.next_deadline(), self.token_bucket.due, self.account_due, self.binding_due, self.last_seen_due
        )
        if self.changed:
            deadline = min(deadline, self.changed_due)
        if self.deferred:
            deadline = min(deadline, self.deferred[0].until)
        if self.sync.check_at is not None:
            deadline = min(deadline, self.sync.check_at)
        return deadline

    @property
    def window_room(self) -> int:
        """How many more rows the window takes."""
        return self._queue - self.link.window.queued

    # ---- from the device

    def charge(self, items: Sequence[Submit]) -> None:
        """Charge the token bucket for a frame of items: by their number or their size, whichever is more."""
        size = sum(map(submit_size, items))
        self.token_bucket.charge(self.link.window.received_number, max(1, len(items), size / SUBMIT_BYTES))

    def acknowledge_charged(self, now: float) -> bool:
        """Acknowledge the frames that the token bucket has paid for by now; False when there is no new one."""
        number = self.token_bucket.acknowledgeable(now)
        if number:
            self.link.window.processed(number)
        return number > 0

    # ---- to the device

    def deliver(self, deliver: Deliver, now: float, defer_s: float, copies_max: int, bytes_max: int) -> DeliverResult:
        """Push a live copy, or defer it for at most `defer_s`.

        STORE, and nothing else happens, when the session is not live; when the device has taken nothing for `defer_s`,
        so that the copy would wait behind what it does not take; when `copies_max` copies or `bytes_max` bytes are
        under way; or when the window has no room.
        """
        if self.state is not State.LIVE:
            return DeliverResult.STORE
        since = self.link.window.unacknowledged_since()
        lags = since is not None and now - since > defer_s
        if lags or len(self.unacked) + len(self.deferred) >= copies_max or self.live_bytes >= bytes_max:
            self.overflowed = True
            return DeliverResult.STORE
        stamp = deliver.stamp
        after = after_of(stamp, self.login.user, self.login.device) if stamp.after else -1
        if after > self.sync.through or (self.deferred and _stream(stamp) in self._deferred_streams):
            self.deferred.append(Deferred(after, now + defer_s, deliver))
            self._deferred_streams.add(_stream(stamp))
            self.live_bytes += len(deliver.envelope)
            return DeliverResult.DEFERRED
        return DeliverResult.PUSHED if self._push(deliver) else DeliverResult.STORE

    def _push(self, deliver: Deliver) -> bool:
        if not self.link.push(Delivery(deliver.envelope)):
            self.overflowed = True
            return False
        self.unacked.append(deliver)
        self.live_bytes += len(deliver.envelope)
        return True

    def push_rows(self, rows: Sequence[Row]) -> None:
        """Push stored rows, at most `window_room` of them."""
        for row in rows:
            pushed = self.link.push(Delivery(row.envelope, stored=True))
            assert pushed
            self.unacked.append(row.row_id)
        self.rows += len(rows)

    def release_deferred(self) -> list[Deliver]:
        """Push the deferred copies that the sync has passed; returns those that have no room and must be stored."""
        waiting, self.deferred, refused = self.deferred, [], []
        self._deferred_streams.clear()
        for deferred in waiting:
            stream = _stream(deferred.deliver.stamp)
            if deferred.after > self.sync.through or stream in self._deferred_streams:
                self.deferred.append(deferred)
                self._deferred_streams.add(stream)
                continue
            self.live_bytes -= len(deferred.deliver.envelope)
            if not self._push(deferred.deliver):
                refused.append(deferred.deliver)
        return refused

    def expire_deferred(self, now: float) -> list[Deliver]:
        """All deferred copies, no longer deferred, once the oldest has waited too long; else nothing.

        All, because the later ones of its stream must not overtake it.
        """
        if not self.deferred or self.deferred[0].until > now:
            return []
        late = [deferred.deliver for deferred in self.deferred]
        self.deferred.clear()
        self._deferred_streams.clear()
        self.live_bytes -= sum(len(deliver.envelope) for deliver in late)
        return late

    def acknowledged(self, items: list[ConnectorItem]) -> tuple[list[Deliver], list[int]]:
        """The device acknowledged these items: (live copies, ids of rows)."""
        delivers: list[Deliver] = []
        rows: list[int] = []
        count = sum(isinstance(item, Delivery) for item in items)
        assert count <= len(self.unacked), "the window acknowledges what was pushed"
        for entry in self.unacked[:count]:
            if isinstance(entry, int):
                rows.append(entry)
            else:
                delivers.append(entry)
                self.live_bytes -= len(entry.envelope)
        del self.unacked[:count]
        self.rows -= len(rows)
        return delivers, rows

    def abandon(self) -> list[Deliver]:
        """The session ends: the live copies that the device has not acknowledged, in order."""
        delivers = [entry for entry in self.unacked if not isinstance(entry, int)]
        delivers.extend(deferred.deliver for deferred in self.deferred)
        self.unacked.clear()
        self.deferred.clear()
        self.rows = self.live_bytes = 0
        return delivers


def after_of(stamp: Stamp, user: int, device: int) -> int:
    """The position that a copy for this device must not overtake; -1 when there is none."""
    return max(
        (position for to_user, to_device, position in stamp.after if to_user == user and to_device in (0, device)),
        default=-1,
    )


def _stream(stamp: Stamp) -> tuple[int, int, Destination]:
    return stamp.device, stamp.epoch, stamp.to
