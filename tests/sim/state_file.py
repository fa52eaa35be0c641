"""A state file in memory, with the same content and effects as `meshim.client.state.StateFile`."""

from collections.abc import Sequence
from typing import NamedTuple

from meshim.client.events import (
    AddToInbox,
    AddToOutbox,
    Change,
    DropFromInbox,
    DropFromOutbox,
    EarlyMessage,
    PutOrder,
    PutReceipts,
    PutStream,
    RecordReceipt,
    Release,
    SettleMessage,
    Snapshot,
)
from meshim.wire.envelope import Destination, Stream


class Received(NamedTuple):
    """A message for the application."""

    number: int
    stream: Stream
    seq: int
    envelope: bytes
    stored: bool
    flag: int


class MemoryStateFile:
    """Survives the process of the application; `token` is the one of the last login."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.token: bytes | None = None
        self._streams: dict[Destination, PutStream] = {}
        self._unsettled: dict[tuple[Destination, int], AddToOutbox] = {}
        self._settled: dict[tuple[Destination, int], SettleMessage] = {}
        self._seen: dict[Stream, PutOrder] = {}
        self._receipts: dict[Stream, PutReceipts] = {}
        self._inbox: dict[tuple[Stream, int], Received] = {}
        self._released: dict[int, tuple[Stream, int]] = {}
        self._number = 0

    def load(self) -> Snapshot:
        early = [EarlyMessage(row.stream, row.seq, row.envelope) for row in self._inbox.values() if not row.number]
        return Snapshot(
            streams=list(self._streams.values()),
            unsettled=list(self._unsettled.values()),
            settled=list(self._settled.values()),
            orders=list(self._seen.values()),
            early=sorted(early, key=lambda row: row.seq),
            receipts=list(self._receipts.values()),
        )

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._apply_to_outbox(change)
            self._apply_to_inbox(change)

    def _apply_to_outbox(self, change: Change) -> None:
        match change:
            case PutStream(to):
                self._streams[to] = change
            case AddToOutbox(to, seq):
                self._unsettled[to, seq] = change
            case RecordReceipt(to, seq, receipt):
                if (out := self._unsettled.get((to, seq))) is not None:
                    self._unsettled[to, seq] = out._replace(receipt=receipt)
            case SettleMessage(to, seq):
                self._unsettled.pop((to, seq), None)
                self._settled[to, seq] = change
            case DropFromOutbox(to, seq):
                self._unsettled.pop((to, seq), None)

    def _apply_to_inbox(self, change: Change) -> None:
        match change:
            case PutReceipts(stream):
                self._receipts[stream] = change
            case PutOrder(stream):
                self._seen[stream] = change
            case AddToInbox(stream, seq, envelope, stored):
                self._inbox[stream, seq] = Received(0, stream, seq, envelope, stored, 0)
            case Release(stream, seq, flag):
                self._number += 1
                self._inbox[stream, seq] = self._inbox[stream, seq]._replace(number=self._number, flag=flag)
                self._released[self._number] = stream, seq
            case DropFromInbox(stream, seq):
                self._inbox.pop((stream, seq), None)

    def next(self, after: int) -> Received | None:
        """The first message for the application with a number above `after`."""
        key = next((key for number, key in self._released.items() if number > after), None)
        return None if key is None else self._inbox[key]

    def handled(self, number: int) -> None:
        """The application is done with the message of this number."""
        self._inbox.pop(self._released.pop(number), None)
