"""Which links have something to say at the end of a turn.

A turn takes in a batch and speaks once.  Asking every link what it has to say would make each message cost more the
more links there are; so whoever does something to a link touches it.  What can wait (company.py) is asked
for again when it has to leave.
"""

from math import inf
from typing import Any, Generic, TypeVar

from meshim.protocol.link import Link
from meshim.wire.link import Frame

TICK_S = 0.1
"""How finely a core looks at time while it has links: the first of their deadlines would be searched for with every
message.  What waits for others is looked at when it has to leave."""

Peer = TypeVar("Peer")


class Turn(Generic[Peer]):
    """Links by the peer at their other end."""

    __slots__ = ("_late", "_touched", "leave_at")

    def __init__(self) -> None:
        self.leave_at = inf
        """When to speak at the latest; `inf` when nothing waits."""
        self._touched: dict[Peer, Link[Any, Any]] = {}
        self._late: dict[Peer, Link[Any, Any]] = {}

    def touch(self, peer: Peer, link: Link[Any, Any]) -> None:
        """It may have something to say."""
        self._touched[peer] = link

    def forget(self, peer: Peer) -> None:
        """Its link is over."""
        self._touched.pop(peer, None)
        self._late.pop(peer, None)

    def speak(self, now: float) -> list[tuple[Peer, Frame]]:
        """What is to be said now, link by link."""
        if now >= self.leave_at:
            self._touched |= self._late
            self._late.clear()
            self.leave_at = inf
        frames: list[tuple[Peer, Frame]] = []
        for peer, link in self._touched.items():
            frames.extend((peer, frame) for frame in link.flush(now))
            if link.leave_at < inf:
                self._late[peer] = link
                self.leave_at = min(self.leave_at, link.leave_at)
        self._touched.clear()
        return frames
