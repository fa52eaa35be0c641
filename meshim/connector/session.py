"""A session: one greeted device on this connector.

::

    SEATING ──seat written──▶ DRAINING ──last page pushed──▶ LIVE
                                  ▲                           │
                                  └────── queue overflow ─────┘

SEATING   waits for presence; the client is welcomed when its seat is written
DRAINING  what is stored goes first; a live message is returned, to be stored behind it
LIVE      live messages are pushed in the order they come; one whose `after` lies beyond what was
          drained is held until the drain has passed it (R2), or returned when that takes too long

What was pushed and not acknowledged is in custody: when the session ends, live copies are
returned to be stored, and stored rows simply stay unread.
"""

import enum
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from meshim.connector.drain import Drain, DrainOptions
from meshim.protocol.link import Link, LinkOptions
from meshim.stores.ports import Account, Login, Row, Seat
from meshim.wire.client import ConnectorItem, Delivery, Submit
from meshim.wire.mesh import Place, Stamp


class State(enum.Enum):
    SEATING = enum.auto()
    DRAINING = enum.auto()
    LIVE = enum.auto()


class Placed(enum.Enum):
    """What became of a live copy."""

    PUSHED = enum.auto()
    HELD = enum.auto()
    REFUSED = enum.auto()


class Held(NamedTuple):
    """A live copy that must not overtake the queue."""

    after: int
    until: float
    place: Place


def item_size(item: ConnectorItem) -> int:
    """Bytes on the wire, rounded up."""
    return len(item.envelope) + 16 if isinstance(item, Delivery) else 96 + 24 * len(item.copies)


class Session:
    """One device, connected."""

    __slots__ = (
        "account_at", "custody", "devices", "drain", "expires_at", "friends", "held", "link", "login", "overflowed",
        "peer", "seat", "state", "told_delayed", "unsure",
    )  # fmt: skip

    def __init__(
        self, peer: bytes, link: int, login: Login, account: Account, seat: Seat, options: LinkOptions,
        drain: DrainOptions, now: float,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.login = login
        self.seat = seat
        self.state = State.SEATING
        self.link: Link[ConnectorItem, Submit] = Link(link, options, item_size, now)
        self.drain = Drain(login.user, login.device, seat.session, drain)
        self.friends: frozenset[int] = frozenset(account.friends)
        self.devices = account.devices
        self.account_at = now
        self.custody: deque[Place | int] = deque()
        """For each Delivery in the window, in order: the live copy, or the id of the row."""
        self.held: deque[Held] = deque()
        self.unsure: list[Submit] = []
        """To people who were not friends when we last looked: judged when relations are read again."""
        self.overflowed = False
        self.told_delayed: bool | None = None

    def refresh(self, account: Account, now: float) -> None:
        self.friends = frozenset(account.friends)
        self.devices = account.devices
        self.account_at = now

    # ---- towards the device

    def place(self, place: Place, until: float, most: int) -> Placed:
        """Take a live copy: push it, hold it, or refuse it because it has to be stored."""
        if self.state != State.LIVE or len(self.custody) + len(self.held) >= most:
            self.overflowed = self.overflowed or self.state == State.LIVE
            return Placed.REFUSED
        after = after_of(place.stamp, self.login.user)
        if after > self.drain.through or (
            self.held and any(_same_stream(h.place.stamp, place.stamp) for h in self.held)
        ):
            self.held.append(Held(after, until, place))
            return Placed.HELD
        return Placed.PUSHED if self._push(place) else Placed.REFUSED

    def _push(self, place: Place) -> bool:
        if not self.link.window.push(Delivery(place.envelope)):
            self.overflowed = True
            return False
        self.custody.append(place)
        return True

    def push_rows(self, rows: Iterable[Row]) -> None:
        """Push stored rows; a page is bounded, and the next is read when there is room."""
        for row in rows:
            pushed = self.link.window.push(Delivery(row.envelope, stored=True))
            assert pushed, "the queue of a session has room for a page beside its live messages"
            self.custody.append(row.row_id)

    def release_held(self) -> list[Place]:
        """Push what the drain has passed; what could not be pushed has to be stored."""
        waiting, self.held, refused = self.held, deque(), []
        for held in waiting:
            if held.after > self.drain.through:
                self.held.append(held)
            elif not self._push(held.place):
                refused.append(held.place)
        return refused

    def expire_held(self, now: float) -> list[Place]:
        """What was held for too long, with everything behind it in the same streams."""
        if not self.held or self.held[0].until > now:
            return []
        late = [held.place for held in self.held]
        self.held.clear()
        return late

    def taken(self, items: list[ConnectorItem]) -> tuple[list[Place], list[int]]:
        """The device acknowledged these: (live copies, ids of rows)."""
        places: list[Place] = []
        rows: list[int] = []
        for item in items:
            if isinstance(item, Delivery):
                entry = self.custody.popleft()
                if isinstance(entry, int):
                    rows.append(entry)
                else:
                    places.append(entry)
        return places, rows

    def abandon(self) -> list[Place]:
        """The session ends: the live copies that the device has not acknowledged, in order."""
        places = [entry for entry in self.custody if not isinstance(entry, int)]
        places.extend(held.place for held in self.held)
        self.custody.clear()
        self.held.clear()
        return places


def after_of(stamp: Stamp, user: int) -> int:
    """The position in the partition of `user` that a copy must not overtake; -1 when there is none."""
    for whose, position in stamp.after:
        if whose == user:
            return position
    return -1


def _same_stream(one: Stamp, other: Stamp) -> bool:
    return one.device == other.device and one.epoch == other.epoch and one.to == other.to
