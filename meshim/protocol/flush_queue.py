"""The set of links that may have frames to send.

A core takes in a batch of events and then flushes once.  Asking every link for frames would make the cost of a message
grow with the number of links, so a core marks each link that it changes, and `flush` asks the marked links only.
A link whose items wait (coalescing.py) is asked again when they must leave.
"""

from math import inf
from typing import Any, Generic, TypeVar

from meshim.protocol.link import Link
from meshim.wire.link import Frame

TICK_S = 0.1
"""How often a core with links compares their deadlines with the clock.  Searching for the earliest deadline after every
message would cost more than a tick ten times a second.  Coalesced items do not wait for a tick: see `flush_at`."""

Peer = TypeVar("Peer")


class FlushQueue(Generic[Peer]):
    """Marked links, by the peer at the other end."""

    __slots__ = ("_deferred", "_marked", "flush_at")

    def __init__(self) -> None:
        self.flush_at = inf
        """When to call `flush` at the latest; `inf` when no items wait."""
        self._marked: dict[Peer, Link[Any, Any]] = {}
        self._deferred: dict[Peer, Link[Any, Any]] = {}

    def mark(self, peer: Peer, link: Link[Any, Any]) -> None:
        """Note that this link may have frames to send."""
        self._marked[peer] = link

    def discard(self, peer: Peer) -> None:
        """Forget the link of this peer: it ended."""
        self._marked.pop(peer, None)
        self._deferred.pop(peer, None)

    def flush(self, now: float) -> list[tuple[Peer, Frame]]:
        """Return the frames to send now, link by link, each with its peer."""
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
