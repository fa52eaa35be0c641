"""A part of the judge: do the devices of one person agree on what is delivered and read?

A receipt may be lost with the file that made it, and what a device knew with its own file.  Everything else has to
reach every device of the sender of the messages, and what was read every device of the reader.  The sending device
knows from outcomes what is delivered; its siblings have to learn it as well (`judge.py` asks the sending device).  What
a receipt said before a device had its file need not be said to it again.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from meshim.client.events import PutReceipts
from meshim.protocol.ranges import Ranges
from meshim.wire.envelope import Receipt, ReceiptKind

if TYPE_CHECKING:
    from tests.sim.judge import Judge
    from tests.sim.records import File, Key


class Agreement:
    """The receipts of one run, and what each state file says of the messages of other devices."""

    def __init__(self, judge: "Judge", files: Mapping[int, "File"]) -> None:
        self._judge = judge
        self._files = files
        self._receipts: list[tuple[float, File, int, Receipt]] = []
        """Each receipt that an outbox had: when, its file, the user it is for, and its content."""
        self._arrivals: list[tuple[float, File, Key]] = []
        """Each message that a device of its recipient has: since when, the file, and the message."""
        self._told: dict[tuple[File, Key], tuple[Ranges, Ranges]] = {}
        """By file and stream: the messages that the file has as delivered, and as read."""

    def queued(self, file: "File", to: int, receipt: Receipt, now: float) -> None:
        """The outbox has a new receipt."""
        self._receipts.append((now, file, to, receipt))

    def arrived(self, file: "File", key: "Key", now: float) -> None:
        """A device has a message for the first time."""
        self._arrivals.append((now, file, key))

    def knows(self, file: "File", change: PutReceipts) -> None:
        """A device has written what it knows of a stream; nothing is `read` that no application was given."""
        name, to = change.stream, change.stream.to
        stream = (name.user, name.device, name.epoch, to.type, to.id, to.device)
        read = Ranges(change.read)
        self._told[file, stream] = Ranges((*change.delivered, *change.read)), read
        for key in self._messages(stream, read):
            if not self._judge.was_given(key):
                self._judge.violated("told", f"{key} is said to be read on device {file.device}")

    def _messages(self, stream: "Key", ranges: Ranges) -> "Iterator[Key]":
        """The messages in these ranges; receipts and base updates are none."""
        numbers = (seq for first, last in ranges for seq in range(first, last + 1))
        return ((*stream, seq) for seq in numbers if (*stream, seq) in self._judge.messages)

    def broken(self) -> list[str]:
        """What a receipt said and a device does not know that has had its file since before, a sentence each."""
        left: dict[str, None] = {}
        for made_at, file, user, receipt in self._receipts:
            readers = (file.user,) if receipt.kind == ReceiptKind.READ else ()
            for device in [d.device_id for each in (user, *readers) for d in self._judge.database.devices_of(each)]:
                if self._files[file.device] is not file or not self._judge.counts(device, file.user, made_at):
                    continue
                known_to = self._files[device]
                if known_to.owned_since <= made_at:
                    left |= dict.fromkeys(self._unknown(known_to, user, receipt))
        said = self._first_said()
        for arrived_at, file, key in self._arrivals:
            if self._files[file.device] is file:
                left |= dict.fromkeys(self._not_delivered(key, min(arrived_at, said.get(key, arrived_at))))
        return list(left)

    def _first_said(self) -> "dict[Key, float]":
        """When the first receipt about each message was made, by a file that is not lost; others then make none."""
        said: dict[Key, float] = {}
        for made_at, file, user, receipt in self._receipts:  # in the order of time
            if self._files[file.device] is not file:
                continue
            to = receipt.to
            stream = (user, receipt.device, receipt.epoch, to.type, to.id, to.device)
            for key in self._messages(stream, Ranges(receipt.ranges)):
                said.setdefault(key, made_at)
        return said

    def _not_delivered(self, key: "Key", arrived_at: float) -> Iterator[str]:
        """The sender's other devices that do not have this message as delivered, and have their file since before."""
        user, sending, stream = key[0], key[1], key[:-1]
        for device in self._judge.database.devices_of(user):
            if device.device_id == sending or not self._judge.counts(device.device_id, key[4], arrived_at):
                continue
            file = self._files[device.device_id]
            if file.owned_since <= arrived_at:
                told, _ = self._told.get((file, stream), (Ranges(), Ranges()))
                if key[-1] not in told:
                    yield f"device {file.device} does not know that {key} is delivered"

    def _unknown(self, file: "File", user: int, receipt: Receipt) -> Iterator[str]:
        """The messages of this receipt, about a stream of `user`, that the file does not have as the receipt says."""
        own = file.device == receipt.device
        if own and file.epoch != receipt.epoch:
            return  # the messages of an earlier file
        to, read = receipt.to, receipt.kind == ReceiptKind.READ
        stream = (user, receipt.device, receipt.epoch, to.type, to.id, to.device)
        told = self._told.get((file, stream), (Ranges(), Ranges()))[read]
        for key in self._messages(stream, Ranges(receipt.ranges)):
            state = self._judge.messages[key].state
            if not (state == "read" or (state == "delivered" and not read) if own else key[-1] in told):
                yield f"device {file.device} does not know that {key} is {'read' if read else 'delivered'}"
