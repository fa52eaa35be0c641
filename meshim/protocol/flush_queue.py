"""Which links have something to say at the end of a turn.

A turn takes in a batch and speaks once.  Asking every link what it has to say would make each message cost more the
more links there are; so whoever does something to a link touches it.  What can wait (coalescing.py) is asked
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


class FlushQueue(Generic[Peer]):
    """Links by the peer at their other end."""

    __slots__ = ("_deferred", "_marked", "flush_at")

    def __init__(self) -> None:
        self.flush_at = inf
        """When to speak at the latest; `inf` when nothing waits."""
        self._marked: dict[Peer, Link[Any, Any]] = {}
        self._deferred: dict[Peer, Link[Any, Any]] = {}

    def mark(self, peer: Peer, link: Link[Any, Any]) -> None:
        """It may have something to say."""
        self._marked[peer] = link

    def discard(self, peer: Peer) -> None:
        """Its link is over."""
        self._marked.pop(peer, None)
        self._deferred.pop(peer, None)

    def flush(self, now: float) -> list[tuple[Peer, Frame]]:
        """What is to be said now, link by link."""
        if now >= self.flush_at:
            self._marked |= self._deferred
            self._deferred.clear()
            self.flush_at = inf
        frames: list[tuple[Peer, Frame]] = []
        for peer, link in self._marked.items():
            frames.extend((peer, frame) for frame in link.flush(now))
            if link.flush_at < inf:
                self._deferred[peer] = link
                self.flush_at = min(self.flush_at, link.flush_at)
        self._marked.clear()
        return frames
