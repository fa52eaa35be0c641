"""Whose password is checked next.  Pure.

Three lanes take turns, so that none waits for a flood in another: devices that logged in before, addresses from which
a login succeeded lately, and everybody else.  Within a lane addresses take turns.  A lane that is full makes room for
an address with fewer by turning away the latest of the address with most.
"""

import enum
from collections import OrderedDict, deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Lane(enum.IntEnum):
    """A part of the queue with room of its own."""

    DEVICE = 0
    """Of a device that proves that it logged in before."""
    ADDRESS = 1
    """From an address of which a login succeeded lately."""
    STRANGER = 2
    """All others: registrations too."""


class Place(NamedTuple):
    """Where somebody waits."""

    lane: Lane
    address: str


ROOM = {Lane.DEVICE: 128, Lane.ADDRESS: 128, Lane.STRANGER: 256}
"""Seven seconds of work on two cores in all: a client further back would have given up before its answer."""

_TURNS = (Lane.DEVICE, Lane.ADDRESS, Lane.DEVICE, Lane.STRANGER)


class PasswordQueue(Generic[T]):
    """Those that wait, by lane and address."""

    def __init__(self, room: dict[Lane, int] = ROOM) -> None:
        self._room = room
        self._lanes: dict[Lane, OrderedDict[str, deque[T]]] = {lane: OrderedDict() for lane in Lane}
        """Of each lane the address whose turn it is comes first, and of each address the one that waits longest."""
        self._turn = 0

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(self._waiting, Lane))

    def push(self, place: Place, item: T) -> T | None:
        """Let one wait; return the one that has to go for it, which may be itself, or None when there is room."""
        lane = self._lanes[place.lane]
        lane.setdefault(place.address, deque()).append(item)
        if self._waiting(place.lane) <= self._room[place.lane]:
            return None
        most = max(lane, key=lambda address: (len(lane[address]), address == place.address))
        out = lane[most].pop()
        if not lane[most]:
            del lane[most]
        return out

    def pop(self) -> T | None:
        """Return the next one, and forget it; None when nobody waits."""
        for _ in _TURNS:
            lane = self._lanes[_TURNS[self._turn]]
            self._turn = (self._turn + 1) % len(_TURNS)
            if lane:
                address, waiting = next(iter(lane.items()))
                item = waiting.popleft()
                if waiting:
                    lane.move_to_end(address)
                else:
                    del lane[address]
                return item
        return None

    def discard(self, place: Place, item: T) -> None:
        """Forget one that waits no more; nothing happens when it is not there."""
        lane = self._lanes[place.lane]
        if item in lane.get(place.address, ()):
            lane[place.address].remove(item)
            if not lane[place.address]:
                del lane[place.address]

    def _waiting(self, lane: Lane) -> int:
        return sum(map(len, self._lanes[lane].values()))
