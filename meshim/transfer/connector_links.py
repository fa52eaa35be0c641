"""The transfer's links to connectors; the other end is `meshim/connector/transfer_links.py`.

::

    Hello ──▶ linked ──Close, Reset, gone, full, silent, protocol error, a newer Hello──▶ lost

Connectors connect and greet, the transfer answers.  A connector incarnation has one link, and so has a connection
(peer): a newer Hello of either replaces the older link.  Which incarnation a connector may name in its Hello follows
from the key of its connection (adr/0045).  The copies that a lost link had not acknowledged go back to
the core (R4).
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from meshim.errors import Code, PeerError
from meshim.protocol.flush_queue import FlushQueue
from meshim.protocol.link import Link, LinkOptions
from meshim.transfer.events import Action, ReportImpersonation, SendConnector
from meshim.transfer.statistics import Statistics
from meshim.wire import mesh as wire
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Close, Frame, Reset
from meshim.wire.mesh import Deliver, FromConnector, FromTransfer, Hello, HelloOk
from meshim.wire.outcome import CopyOutcome
from meshim.wire.sizes import mesh_item_size

_LEAVING = "this transfer is leaving"


class _Connector:
    __slots__ = ("incarnation", "link", "peer")

    def __init__(self, peer: bytes, incarnation: int, link: Link[FromTransfer, FromConnector]) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.link = link


class ConnectorLinks:
    """All links of one transfer."""

    def __init__(
        self,
        incarnation: int,
        options: LinkOptions,
        statistics: Statistics,
        perform: Callable[[Action], None],
        on_undelivered: Callable[[Deliver], None],
    ) -> None:
        """`on_undelivered` gets each item that a lost link had not acknowledged; it may send to other connectors."""
        self._incarnation = incarnation
        self._options = options
        self._statistics = statistics
        self._perform = perform
        self._on_undelivered = on_undelivered
        self._by_peer: dict[bytes, _Connector] = {}
        self._by_incarnation: dict[int, _Connector] = {}
        self._flush_queue: FlushQueue[bytes] = FlushQueue()
        self._closed = False

    # ---- items out

    def send(self, connector: int, deliver: Deliver) -> bool:
        """Queue copies for a connector incarnation; False when it is not linked or its link is full."""
        entry = self._by_incarnation.get(connector)
        if entry is None or not entry.link.push(deliver):
            return False
        self._flush_queue.mark(entry.peer, entry.link)
        return True

    def send_outcome(self, outcome: CopyOutcome) -> bool:
        """Queue an outcome for its origin; it may wait for others (`meshim/protocol/coalescing.py`)."""
        entry = self._by_incarnation.get(outcome.origin)
        if entry is None or not entry.link.push(outcome, deferrable=True):
            return False
        self._flush_queue.mark(entry.peer, entry.link)
        return True

    @property
    def flush_at(self) -> float:
        """When an item that waits for others has to leave; `inf` when none does."""
        return self._flush_queue.flush_at

    @property
    def linked(self) -> int:
        """How many connectors are linked."""
        return len(self._by_peer)

    @property
    def idle(self) -> bool:
        """No link holds an item or owes an acknowledgement."""
        return all(entry.link.window.idle for entry in self._by_peer.values())

    # ---- frames in

    def receive(
        self, peer: bytes, data: bytes, now: float, incarnations: Mapping[bytes, str] | None = None
    ) -> Sequence[FromConnector]:
        """Take in one frame; return the items to process, in order.

        A frame that breaks the protocol is answered with Close and ends the link.  `incarnations` are those of
        `ConnectorsSent`.
        """
        entry = self._by_peer.get(peer)
        try:
            frame = wire.decode_from_connector(data)
            if isinstance(frame, Hello):
                if incarnations is None or incarnations.get(peer) == str(frame.incarnation):
                    self._greeted(peer, frame, now)
                else:
                    self._impersonated(peer, frame, incarnations.get(peer, ""))
            elif entry is not None and frame.link == entry.link.epoch:
                return self._frame(entry, frame, now)
            elif not isinstance(frame, Close | Reset):
                # R13: queued for an earlier incarnation of this transfer.
                self._statistics.unknown_links += 1
                self._send_frame(peer, Reset(frame.link))
        except (msgspec.DecodeError, PeerError) as error:
            self._statistics.malformed += 1
            code = error.code if isinstance(error, PeerError) else Code.MALFORMED
            self._send_frame(peer, Close(entry.link.epoch if entry is not None else 0, code, str(error)))
            if entry is not None:
                self._lose(entry)
        return ()

    def _frame(self, entry: _Connector, frame: wire.ConnectorToTransfer, now: float) -> Sequence[FromConnector]:
        link = entry.link
        items = link.receive(frame, now)[0]
        if link.closed_by is not None:
            self._lose(entry)
        else:
            self._flush_queue.mark(entry.peer, link)
        return items

    def _greeted(self, peer: bytes, hello: Hello, now: float) -> None:
        if hello.version != WIRE_VERSION:
            sentence = f"version {hello.version} is not spoken here, {WIRE_VERSION} is"
            self._send_frame(peer, Close(hello.link, Code.VERSION, sentence))
            return
        if self._closed:
            self._send_frame(peer, Close(hello.link, Code.SHUTTING_DOWN, _LEAVING))
            return
        for replaced in (self._by_peer.get(peer), self._by_incarnation.get(hello.incarnation)):
            if replaced is not None and replaced.peer in self._by_peer:
                self._lose(replaced)
        credit = self._options.window.credit
        link: Link[FromTransfer, FromConnector] = Link(hello.link, self._options, mesh_item_size, now)
        link.window.credit = max(1, min(hello.window, credit))
        self._by_peer[peer] = self._by_incarnation[hello.incarnation] = _Connector(peer, hello.incarnation, link)
        self._statistics.connectors = len(self._by_peer)
        ok = HelloOk(version=WIRE_VERSION, link=hello.link, incarnation=self._incarnation, window=credit)
        self._send_frame(peer, ok)

    def _impersonated(self, peer: bytes, hello: Hello, of_key: str) -> None:
        """Refuse a Hello that names a foreign incarnation, and leave all links as they are.

        Its own link, too: it is that of a connector which serves users.
        """
        self._statistics.impersonations += 1
        self._perform(ReportImpersonation(hello.incarnation, of_key))
        sentence = "the key of this connection belongs to another incarnation"
        self._send_frame(peer, Close(hello.link, Code.IMPERSONATION, sentence))

    def gone(self, peer: bytes) -> None:
        """End the link of a connection that no longer exists or has no room for a frame, if it has one."""
        if (entry := self._by_peer.get(peer)) is not None:
            self._lose(entry)

    def _lose(self, entry: _Connector) -> None:
        """End a link, and give back what it had not acknowledged (R4)."""
        del self._by_peer[entry.peer]
        self._flush_queue.discard(entry.peer)
        if self._by_incarnation.get(entry.incarnation) is entry:
            del self._by_incarnation[entry.incarnation]
        self._statistics.connectors = len(self._by_peer)
        for item in entry.link.window.abandon():
            if isinstance(item, CopyOutcome):
                self._statistics.outcomes_lost += 1
            else:
                self._on_undelivered(item)

    # ---- frames out

    def flush(self, now: float) -> None:
        """Send what is due: data, acknowledgements, pongs."""
        for peer, frame in self._flush_queue.flush(now):
            self._send_frame(peer, frame)

    def tick(self, now: float) -> None:
        """End the links that failed; on the others acknowledge and ping where that is due."""
        for entry in list(self._by_peer.values()):
            link = entry.link
            if link.failed(now):
                self._lose(entry)
                continue
            for frame in link.tick(now):
                self._send_frame(entry.peer, frame)

    def close(self, now: float) -> None:
        """Send all that waits, then Close; no new link is accepted from here on.

        The connectors take what they have in flight to other transfers.
        """
        self._closed = True
        self.flush(now)
        for peer, entry in self._by_peer.items():
            for frame in entry.link.flush_all(now):
                self._send_frame(peer, frame)
            self._send_frame(peer, Close(entry.link.epoch, Code.SHUTTING_DOWN, _LEAVING))

    def _send_frame(self, peer: bytes, frame: Frame) -> None:
        self._perform(SendConnector(peer, wire.encode(frame)))
