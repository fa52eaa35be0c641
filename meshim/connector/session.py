"""A session: one greeted device on this connector.

::

    BINDING ──binding written──▶ SYNCING ──last page pushed──▶ LIVE
                                  ▲                           │
                                  └────── queue overflow ─────┘

BINDING   waits for presence; the client is welcomed when its binding is written
SYNCING  what is stored goes first; a live message is returned, to be stored behind it
LIVE      live messages are pushed in the order they come; one whose `after` lies beyond what was
          synced is held until the sync has passed it (R2), or returned when that takes too long

What was pushed and not acknowledged is in custody: when the session ends, live copies are
returned to be stored, and stored rows simply stay unread.
"""

import enum
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from meshim.connector.events import Renewal
from meshim.connector.offline_sync import OfflineSync, OfflineSyncOptions
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.token_bucket import SUBMIT_BYTES, TokenBucket
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


class DeliverResult(enum.Enum):
    """What became of a live copy."""

    PUSHED = enum.auto()
    DEFERRED = enum.auto()
    STORE = enum.auto()


class Deferred(NamedTuple):
    """A live copy that must not overtake the queue."""

    after: int
    until: float
    deliver: Deliver


class Session:
    """One device, connected."""

    __slots__ = (
        "_deferred_streams",
        "_queue",
        "account_due",
        "binding",
        "binding_due",
        "deferred",
        "devices",
        "due",
        "friends",
        "link",
        "live_bytes",
        "login",
        "others",
        "overflowed",
        "peer",
        "rows",
        "seen_due",
        "state",
        "sync",
        "token_bucket",
        "token_hash",
        "told_delayed",
        "unacked",
        "unauthorized",
    )  # fmt: skip

    def __init__(
        self, peer: bytes, link: int, token_hash: bytes, login: Login, account: Account, binding: Binding,
        options: LinkOptions, sync: OfflineSyncOptions, rate: float, now: float,
    ) -> None:  # fmt: skip
        """`account` has to be fresh enough to last until `account_due`, which the caller sets."""
        self.peer = peer
        self.token_hash = token_hash
        self.login = login
        self.binding = binding
        self.state = State.BINDING
        self.link: Link[ConnectorItem, Submit] = Link(
            link, options, connector_item_size, now, manual_ack=True, size_of_received=submit_size
        )  # fmt: skip
        self.token_bucket = TokenBucket(rate, now)
        self.sync = OfflineSync(login.user, login.device, binding.session, sync)
        self.friends: frozenset[int]
        self.devices: tuple[int, ...]
        self.others: tuple[Copy, ...]
        """The copies for the user's other devices."""
        self.refresh(account)
        self.due = 0.0
        """When time has to be looked at for this session: `next_deadline`, or 0 since something has happened to it."""
        self.account_due = now
        """When relations and devices are read again."""
        self.binding_due = inf
        """When the binding is written again: now and then, and soon when presence did not answer."""
        self.seen_due = now
        """When to note again that the device is connected."""
        self.unacked: list[Deliver | int] = []
        """For each Delivery in the window, in order: the live copy, or the id of the row."""
        self.rows = 0
        """How many in `unacked` are rows."""
        self.deferred: list[Deferred] = []
        self.live_bytes = 0
        """Of the envelopes of live copies, in custody and held."""
        self.unauthorized: list[Submit] = []
        """To people who were not friends when we last looked: judged when relations are read again."""
        self.overflowed = False
        self.told_delayed: bool | None = None
        self._queue = options.window.queue
        self._deferred_streams: set[tuple[int, int, Destination]] = set()

    def refresh(self, account: Account) -> None:
        """Take over what was read.  A list of devices that is older than this one's registration lacks it."""
        own = self.login.device
        self.friends = frozenset(account.friends)
        self.devices = account.devices if own in account.devices else (*account.devices, own)
        self.others = tuple((self.login.user, device) for device in self.devices if device != own)

    @property
    def renewal(self) -> Renewal:
        """What its binding is written again with."""
        return Renewal(self.binding, self.devices, self.token_hash)

    def next_deadline(self) -> float:
        """When the first thing is due that this session waits for."""
        deadline = min(
            self.link.next_deadline(), self.token_bucket.due, self.account_due, self.binding_due, self.seen_due
        )
        if self.deferred:
            deadline = min(deadline, self.deferred[0].until)
        if self.sync.look_at is not None:
            deadline = min(deadline, self.sync.look_at)
        return deadline

    @property
    def room(self) -> int:
        """How many more rows the window takes."""
        return self._queue - self.link.window.queued

    # ---- from the device

    def charge(self, items: Sequence[Submit]) -> None:
        """These were taken in: they cost what they are, in number or in size."""
        size = sum(map(submit_size, items))
        self.token_bucket.charge(self.link.window.received_number, max(1, len(items), size / SUBMIT_BYTES))

    def pay(self, now: float) -> bool:
        """Acknowledge what the device may have sent by now; False when nothing is new."""
        number = self.token_bucket.acknowledgeable(now)
        if number:
            self.link.window.processed(number)
        return number > 0

    # ---- towards the device

    def deliver(self, deliver: Deliver, now: float, defer_s: float, most: int, most_bytes: int) -> DeliverResult:
        """Take a live copy: push it, hold it for so long at most, or refuse it because it has to be stored.

        It is stored as well when the device takes what it gets more slowly than that: it would wait behind it.
        """
        if self.state is not State.LIVE:
            return DeliverResult.STORE
        since = self.link.window.unacknowledged_since()
        lags = since is not None and now - since > defer_s
        if lags or len(self.unacked) + len(self.deferred) >= most or self.live_bytes >= most_bytes:
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
        """Push stored rows, no more than there is `room` for."""
        for row in rows:
            pushed = self.link.push(Delivery(row.envelope, stored=True))
            assert pushed
            self.unacked.append(row.row_id)
        self.rows += len(rows)

    def release_deferred(self) -> list[Deliver]:
        """Push what the sync has passed; what could not be pushed has to be stored."""
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
        """Everything that is held, once the first was held for too long: what is behind it in its stream goes too."""
        if not self.deferred or self.deferred[0].until > now:
            return []
        late = [deferred.deliver for deferred in self.deferred]
        self.deferred.clear()
        self._deferred_streams.clear()
        self.live_bytes -= sum(len(deliver.envelope) for deliver in late)
        return late

    def taken(self, items: list[ConnectorItem]) -> tuple[list[Deliver], list[int]]:
        """The device acknowledged these: (live copies, ids of rows)."""
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
    return max((at for whose, which, at in stamp.after if whose == user and which in (0, device)), default=-1)


def _stream(stamp: Stamp) -> tuple[int, int, Destination]:
    return stamp.device, stamp.epoch, stamp.to
