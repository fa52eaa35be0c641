"""The judge checks the promises of `docs/guarantees.md` while a simulated mesh runs.

It sees at one instant what no process of a real mesh sees: every state file, the log and the database.  It shares no
code with the roles: it is told of events (`arrived`, `released`, `marked`), and compares them with what it saw before.

    sent            when a message becomes `sent`, each device that it is owed to has it, or the log or the database
                    has a copy for that device
    acknowledged    a record that the writer acknowledges to the log is in the database
    marked          a row is marked read only after its device has the message
    told            `delivered`: a device of the recipient has the message; `read`: an application was given it
    once, in order  the messages that a state file gives to its application, except those flagged after a gap
    private         no message reaches a device of a user who is neither sender nor recipient, nor one that its device
                    has not sent; a hostile device learns and stores nothing about strangers (`scope.py`)
    fenced          only the last process that claimed a queue or partition writes, reads or marks it
    taken over      a state file that lost its device to a newer one does not log in again
    revoked, held   who holds each device (`holders.py`)
    bounded         a connector takes no more frames of a hostile device than an honest one could need (`scope.py`)
    soon            a message stored for a connected device arrives within `SOON_S`, while there are no faults
    bounded         a friend that sends without an end to a device that is away gets its share of the queue, and what
                    another friend sends is stored; in the time without faults (`greed.py`)
    in the end      every message is settled, shown on each device that it is owed to, and reported as delivered
    agree           in the end, what a receipt says is known to every device of the sender of the messages, and what
                    was read to every device of the reader
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import inf

from meshim.protocol.ordering import Flag
from meshim.protocol.timeouts import GAP_RELEASE_S
from meshim.stores.memory.database import MemoryDatabase
from meshim.stores.ports import Written
from meshim.wire.envelope import Envelope, Kind, decode_envelope, decode_receipt
from meshim.wire.offline_log import Entry
from tests.sim.agreement import Agreement
from tests.sim.records import File, Key, Message, key_of
from tests.sim.scheduler import Process, Scheduler
from tests.sim.scope import Scope

SOON_S = 8.0
"""A message that is stored for a connected device arrives within this time; a sweep comes after 22 s or more."""
GAP_S = GAP_RELEASE_S - 1.0
"""Minimum age of a gap that is released; a second less than the rule, as clocks differ and files are written later."""
HEARD_S = 0.1
HEARD_LATE_S = 5.0 + 3.0
"""Until every transfer makes copies for a new device of the recipient: at once; or, where a transfer does not hear of
presence, when it drops what it has cached (`presence_silence_s`)."""
OWN_HEARD_S = 3.0
"""Until the connectors of a sender make copies for a new device of the sender, where no notification is lost."""
VIOLATIONS_MOST = 20


class Judge:
    """`violations` has a line for each broken promise, `races` counts how often each race R1 to R16 was entered."""

    def __init__(self, scheduler: Scheduler, lives: Callable[[int], bool]) -> None:
        """`lives(incarnation)` is whether a process of this incarnation is alive."""
        self.violations: list[str] = []
        self.races: Counter[str] = Counter({f"R{number}": 0 for number in range(1, 17)})
        self.gaps = 0
        """Messages that were released after a gap."""
        self.shown = 0
        self.via_store = 0
        self.messages: dict[Key, Message] = {}
        self.lives = lives
        self.fault_free_from: float | None = None
        """From this time on there are no faults."""
        self.presence_disturbed_until = 0.0
        """Until this time, and some seconds more, a transfer may not hear of presence."""
        self.database: MemoryDatabase
        self._scheduler = scheduler
        self._files: dict[int, File] = {}
        self.agreement = Agreement(self, self._files)
        self.scope = Scope(self)
        self._had: dict[int, set[Key]] = {}
        self._earlier: dict[int, set[Key]] = {}
        """By device: the messages that reached a file which is no longer the current one."""
        self._given: set[Key] = set()
        self._log: dict[tuple[int, int], list[tuple[Key, tuple[int, ...], tuple[int, ...], int]]] = {}
        """By partition and position: each message, the devices that the record names, those of then, and the user."""
        self._logged: Counter[tuple[Key, int, int]] = Counter()
        """How many records of the log have a message for a user and a device; device 0 means all devices."""
        self._holders: dict[int, tuple[Process | None, int]] = {}
        self._fences: dict[int, int] = {}
        self._online: dict[int, float] = {}
        self._flooded: dict[int, tuple[int, int]] = {}
        """By device: the greedy friend, and the rows that this friend may have there."""

    def entered(self, race: str, times: int = 1) -> None:
        """Count that a race was entered."""
        self.races[race] += times

    def violated(self, promise: str, what: str) -> None:
        """Record a broken promise; at most `VIOLATIONS_MOST` are kept."""
        if len(self.violations) < VIOLATIONS_MOST:
            self.violations.append(f"{self._scheduler.now:.3f} {promise}: {what}")

    # ---- state files

    def opened(self, user: int, device: int, epoch: int) -> File:
        """A new state file replaces any other of this device."""
        before = self._files.get(device)
        self._had.setdefault(device, set())
        self._earlier.setdefault(device, set())
        file = self._files[device] = File(user, device, epoch)
        if before is None:
            file.registered_at = file.owned_since = self._scheduler.now
        else:
            file.registered_at, file.owned_since = before.registered_at, inf
            self._lost(before)
        return file

    def _is_current(self, file: File) -> bool:
        return self._files[file.device] is file

    def _lost(self, file: File) -> None:
        """Messages in a lost file are owed to its device no more; rows in the queue are for the next file."""
        self._earlier[file.device] |= file.has
        for key in file.has:
            if (message := self.messages.get(key)) is not None:
                message.owed.discard(file.device)

    def queued(self, file: File, envelope: Envelope) -> None:
        """The outbox has a new message; each other device of sender and recipient is owed a copy."""
        if envelope.kind == Kind.RECEIPT:
            self.agreement.queued(file, envelope.to.id, decode_receipt(envelope.body), self._scheduler.now)
        if envelope.kind != Kind.TEXT:
            return
        devices = [d.device_id for user in (envelope.to.id, envelope.user) for d in self.database.devices_of(user)]
        owed = {
            device
            for device in devices
            if device != envelope.device and self.counts(device, file.user, self._scheduler.now)
        }
        self.messages[key_of(envelope)] = Message(file, envelope, owed)

    def counts(self, device: int, sender: int, sent_at: float) -> bool:
        """Whether a message of this user owes a copy to a device, of the recipient or of the sender.

        Its first login has returned, and the mesh has had the time to hear of it.
        """
        file = self._files.get(device)
        if file is None:
            return False
        if file.user == sender:
            fault_free = self.fault_free_from is not None and file.registered_at >= self.fault_free_from
            heard_s = OWN_HEARD_S if fault_free else inf
        else:
            heard_s = HEARD_S if file.registered_at > self.presence_disturbed_until else HEARD_LATE_S
        return not file.registered_at or sent_at - file.registered_at >= heard_s

    def was_given(self, key: Key) -> bool:
        """Whether an application has got this message."""
        return key in self._given

    def progressed(self, key: Key, state: str) -> None:
        """A message of the outbox has reached a state."""
        message = self.messages.get(key)
        if message is None:
            return
        before, message.state = message.state, state
        has_it = any(key in self._had.get(device.device_id, ()) for device in self.database.devices_of(key[4]))
        if state == "rejected":
            self.violated("sent", f"{key} was rejected")
        elif (state == "delivered" and not has_it) or (state == "read" and key not in self._given):
            self.violated("told", f"{key} is said to be {state}")
        elif before == "pending":
            for device in sorted(message.owed):
                if not self._is_safe(key, device):
                    self.violated("sent", f"{key} is {state}, and there is no copy for device {device}")

    def _is_safe(self, key: Key, device: int) -> bool:
        stored = self.database.devices.get(device)
        return (
            key in self._had[device]
            or stored is None
            or key in stored.messages
            or self._logged[key, stored.user_id, device] > 0
            or self._logged[key, stored.user_id, 0] > 0
        )

    def arrived(self, file: File, envelope: Envelope, *, stored: bool) -> None:
        """The inbox has a new message."""
        key = key_of(envelope)
        if file.user not in (envelope.to.id, envelope.user):
            self.violated("private", f"{key} reached device {file.device} of user {file.user}")
        self.scope.arrived(file.user, file.device, envelope)
        message = self.messages.get(key)
        if message is not None and message.body != envelope.body:
            self.violated("once", f"{key} was altered")
        elif message is None and envelope.kind == Kind.TEXT and not self.scope.has(envelope.user):
            self.violated(
                "private", f"{key} reached device {file.device}, and the device that it names did not send it"
            )
        if not self._is_current(file):
            self._earlier[file.device].add(key)
            if message is not None and not self._files[file.device].owns_queue:
                # An application on the earlier file acknowledged it before the new file claimed the queue.
                message.owed.discard(file.device)
        elif message is not None and key not in file.has and file.user != envelope.user:
            self.agreement.arrived(file, key, self._scheduler.now)
        file.has.add(key)
        file.waiting.setdefault(key[:-1], {})[key[-1]] = self._scheduler.now
        self._had[file.device].add(key)
        self.via_store += stored

    def released(self, file: File, key: Key, flag: int) -> None:
        """The inbox released a message to the application."""
        stream, seq = key[:-1], key[-1]
        if key in file.released:
            self.violated("once", f"{key} was released twice on device {file.device}")
        file.released.add(key)
        if self.scope.has(key[0]):
            return  # it disorders its own streams
        if flag == Flag.LATE:
            # A message that an earlier file of the device had may arrive once more.
            if seq >= file.gaps.get(stream, 0) and key not in self._earlier[file.device]:
                self.violated("in order", f"{key} came late to device {file.device}, and no gap was given up")
        elif seq <= file.last.get(stream, 0):
            self.violated("in order", f"{key} came after {file.last[stream]} to device {file.device}")
        if flag == Flag.AFTER_GAP:
            self.gaps += 1
            if self._scheduler.now - min(file.waiting[stream].values()) < GAP_S:
                self.violated(
                    "in order", f"{key} came after a gap to device {file.device}, which was given up too soon"
                )
            file.gaps[stream] = seq
        file.waiting.get(stream, {}).pop(seq, None)
        file.last[stream] = max(seq, file.last.get(stream, 0))

    def dropped(self, file: File, key: Key, flag: int) -> None:
        """A receipt or base update that was held back has taken its place in the order."""
        stream, seq = key[:-1], key[-1]
        since = file.waiting.get(stream, {}).pop(seq, self._scheduler.now)
        if self.scope.has(key[0]):
            return
        if flag == Flag.AFTER_GAP:
            if self._scheduler.now - min((since, *file.waiting[stream].values())) < GAP_S:
                self.violated("in order", f"{key} came after a gap to device {file.device}, given up too soon")
            file.gaps[stream] = seq

    def gave(self, file: File, key: Key) -> None:
        """The application gets a message; a second time only if it was killed before it handled it."""
        if key in file.handled:
            self.violated("once", f"{key} was shown twice on device {file.device}")
        self.shown += key not in file.given
        self._given.add(key)
        file.given.add(key)
        if self._is_current(file) and (message := self.messages.get(key)) is not None:
            message.owed.discard(file.device)

    def handled(self, file: File, key: Key) -> None:
        """The application is done with a message."""
        file.handled.add(key)

    # ---- the log

    def logged(self, partition: int, position: int, entries: Iterable[Entry]) -> None:
        """The log has a new record."""
        kept = []
        for entry in entries:
            envelope = decode_envelope(entry.envelope)
            self.scope.stored(entry.user, envelope)
            key = key_of(envelope)
            self._logged.update((key, entry.user, device) for device in entry.devices or (0,))
            # Without a list it is for all devices: those of now, and any that is registered before it is written.
            due = entry.devices or tuple(device.device_id for device in self.database.devices_of(entry.user))
            kept.append((key, entry.devices or (0,), due, entry.user))
        self._log[partition, position] = kept

    def unlogged(self, partition: int, positions: Sequence[int]) -> None:
        """The writer acknowledges records: they leave the log."""
        for position in positions:
            for key, devices, due, user in self._log.pop((partition, position), ()):
                self._logged.subtract((key, user, device) for device in devices)
                for device in due:
                    if (stored := self.database.devices.get(device)) is not None and key not in stored.messages:
                        self.violated("acknowledged", f"{key} is out of the log, and has no row for device {device}")

    # ---- the database

    def queue_claimed(self, device: int, process: Process | None, fence: int) -> None:
        """A process claimed the queue of a device."""
        self._holders[device] = process, fence

    def sync_began(self, device: int, epoch: int) -> None:
        """A session of this epoch claimed the queue: all unread rows are for its file now, not for an earlier one."""
        file = self._files.get(device)
        if file is None or file.epoch != epoch or file.owns_queue:
            return
        file.owns_queue = True
        file.owned_since = min(file.owned_since, self._scheduler.now)
        for envelope in self._unread(device):
            key = key_of(envelope)
            if key not in file.has and (message := self.messages.get(key)) is not None:
                message.owed.add(device)

    def _unread(self, device: int) -> list[Envelope]:
        rows = self.database.devices[device].queue
        unread = [decode_envelope(row.new.content) for row in rows if row.read_at is None]
        return [each for each in unread if each.kind == Kind.TEXT and not self.scope.has(each.user)]

    def queue_used(self, operation: str, device: int, process: Process | None, fence: int) -> None:
        """A process read or marked a queue."""
        if self._holders[device] != (process, fence):
            self.violated("fenced", f"the queue of device {device} was {operation} by a process that had lost it")

    def marked(self, device: int, row_ids: Sequence[int]) -> None:
        """Rows were marked read."""
        rows = {row.row_id: row.new for row in self.database.devices[device].queue}
        file = self._files.get(device)
        if file is None:
            return  # a hostile device
        has = file.has if file.owns_queue else self._had[device]
        for row_id in row_ids:
            envelope = decode_envelope(rows[row_id].content)
            key = key_of(envelope)
            if envelope.kind == Kind.TEXT and key not in has and not self.scope.has(envelope.user):
                self.violated("marked", f"{key} is marked read, and device {device} does not have it")

    def partition_claimed(self, partition: int, fence: int) -> None:
        """A writer claimed a partition."""
        self._fences[partition] = max(fence, self._fences.get(partition, 0))

    def partition_written(self, partition: int, fence: int, written: Written) -> None:
        """A writer committed records of a partition."""
        if fence < self._fences.get(partition, 0):
            self.violated(
                "fenced", f"partition {partition} was written under {fence}, {self._fences[partition]} has it"
            )
        for _, device in written.devices:
            self._expect(device)
            self._check_share(device)

    def flooded(self, device: int, greedy: int, rows_max: int) -> None:
        """A friend begins to send without an end to a device that is away."""
        self._flooded[device] = greedy, rows_max

    def _check_share(self, device: int) -> None:
        greedy, rows_max = self._flooded.get(device, (0, 0))
        rows = self.database.devices[device].queue if greedy else ()
        count = sum(row.read_at is None and row.new.from_user_id == greedy for row in rows)
        if count > rows_max:
            del self._flooded[device]
            self.violated("bounded", f"{count} rows of user {greedy} wait for device {device}, {rows_max} may")

    # ---- soon

    def online(self, device: int) -> None:
        """A device connected."""
        self._online[device] = self._scheduler.now
        self._expect(device)

    def offline(self, device: int) -> None:
        """A device lost its connection, or its application ended."""
        self._online.pop(device, None)

    def _expect(self, device: int) -> None:
        """Check after `SOON_S` that the rows of a device arrived, if it was connected all the time."""
        since = self._online.get(device)
        if since is None or self.fault_free_from is None or self._scheduler.now < self.fault_free_from:
            return
        file = self._files[device]
        waiting = [key for envelope in self._unread(device) if (key := key_of(envelope)) not in file.has]

        def check() -> None:
            stayed = self._online.get(device) == since and self._files[device] is file
            for key in waiting if stayed else ():
                if key not in file.has:
                    self.violated(
                        "soon",
                        f"{key} is stored for device {device}, which was connected for {SOON_S} s and did not get it",
                    )

        if waiting:
            self._scheduler.after(SOON_S, check)

    # ---- in the end

    def unfinished(self) -> list[str]:
        """The messages that are not settled, shown or known to be delivered, a sentence each."""
        left = []
        for key, message in self.messages.items():
            current = self._is_current(message.file)
            devices = self.database.devices_of(key[4])
            earlier = any(key in self._earlier.get(device.device_id, ()) for device in devices)
            if message.state == "pending":
                if current:  # otherwise no state file has it, and no client resends it
                    left.append(f"{key} is not settled")
            elif message.owed:
                left.append(f"{key} was not shown to devices {sorted(message.owed)}")
            elif message.state == "sent" and current and not earlier:  # receipts are lost with a file
                left.append(f"{key} is not known to be delivered")
        return left
