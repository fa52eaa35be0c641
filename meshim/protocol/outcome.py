"""The sender's side of delivery: when a message is sent, delivered, settled.

Every outcome names all copies of its message as the mesh knew them at that attempt, and the copies that it reports on.
A copy is (user, device); (user, 0) stands for all devices of the user.

    sent        every copy of the latest attempt is accounted for: delivered or stored
    delivered   a device of the recipient acknowledged the message
    rejected    refused for good
    settled     sent or rejected: the sender does not submit it again

A later attempt may find other devices than an earlier one.  The copies of the latest attempt count, and a copy that was
accounted for once stays so.
"""

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from meshim.wire.bounds import Positions
from meshim.wire.mesh import Stamp
from meshim.wire.outcome import Copy, Outcome, OutcomeStatus


def outcomes_of(
    copies: Sequence[tuple[Stamp, tuple[Copy, ...]]],
    status: OutcomeStatus,
    position: int = 0,
    code: int = 0,
    sentence: str = "",
) -> list[Outcome]:
    """Return the outcomes that report one status for these messages, each given as (stamp, the copies it is true of).

    Neighbours in a stream share an outcome where all else is equal.
    """
    outcomes: list[Outcome] = []
    at, count = 0, len(copies)
    while at < count:
        stamp, done = copies[at]
        last = stamp.seq
        at += 1
        while at < count:
            following, also_done = copies[at]
            if (
                following.seq != last + 1
                or following.device != stamp.device
                or following.epoch != stamp.epoch
                or following.to != stamp.to
                or following.origin != stamp.origin
                or following.copies != stamp.copies
                or also_done != done
            ):
                break
            last += 1
            at += 1
        outcomes.append(
            Outcome(
                origin=stamp.origin,
                user=stamp.user,
                device=stamp.device,
                epoch=stamp.epoch,
                to=stamp.to,
                first=stamp.seq,
                last=last,
                status=status,
                done=done,
                copies=stamp.copies,
                position=position,
                code=code,
                sentence=sentence,
            )
        )
    return outcomes


class DeliveryStatus:
    """The progress of one message, as its outcomes tell it."""

    __slots__ = ("accounted", "code", "copies", "delivered", "sentence", "state")

    PENDING: ClassVar = "pending"
    SENT: ClassVar = "sent"
    REJECTED: ClassVar = "rejected"

    def __init__(self) -> None:
        self.state = DeliveryStatus.PENDING
        self.delivered = False
        self.code = 0
        self.sentence = ""
        self.copies: tuple[Copy, ...] = ()
        """All copies of the latest attempt."""
        self.accounted: set[Copy] = set()
        """The copies that are delivered or stored, of any attempt."""

    @property
    def settled(self) -> bool:
        """Whether the message is sent or rejected."""
        return self.state != DeliveryStatus.PENDING

    def add(self, outcome: Outcome, sender: int) -> bool:
        """Take in an outcome; return whether `state` or `delivered` changed.  `sender` is the sending user's id."""
        before = (self.state, self.delivered)
        if outcome.status == OutcomeStatus.REJECTED:
            if not self.settled:
                self.state, self.code, self.sentence = DeliveryStatus.REJECTED, outcome.code, outcome.sentence
        elif outcome.status in (OutcomeStatus.DELIVERED, OutcomeStatus.STORED):
            self.copies = outcome.copies
            self.accounted.update(outcome.done)
            if outcome.status == OutcomeStatus.DELIVERED and any(user != sender for user, _ in outcome.done):
                self.delivered = True
            if not self.settled and self.copies and all(self._accounted(copy) for copy in self.copies):
                self.state = DeliveryStatus.SENT
        return before != (self.state, self.delivered)

    def _accounted(self, copy: Copy) -> bool:
        return copy in self.accounted or (copy[0], 0) in self.accounted


class OutStreamOptions(msgspec.Struct, frozen=True):
    """`in_flight` is how many messages there may be from the lowest unsettled one on: recipients hold back no more."""

    in_flight: int = 256


AFTER_MAX = 32
"""Positions that a stream carries along: enough for the devices of two users, and for some that they replaced."""


class OutStream:
    """The sending end of one stream: the next `seq`, the unsettled messages, and whether a base update is owed.

    A run starts with a message that is assigned while none is unsettled, and ends before the next such message.  Only
    within a run can a message make recipients wait for earlier ones.  When the messages of a run went to different
    copies, or only some were rejected, a recipient may wait for a message that will never arrive there.  So a base
    update is owed as soon as such a run is settled: a message without a body, which belongs into the outbox in the
    transaction that settles the last message of the run.
    """

    __slots__ = ("_after", "_last_result", "_options", "next_seq", "owes_base", "unsettled")

    def __init__(self, options: OutStreamOptions, next_seq: int = 1, after: Positions = ()) -> None:
        self._options = options
        self.next_seq = next_seq
        self._after: dict[Copy, int] = {(user, device): position for user, device, position in after}
        self.unsettled: dict[int, int] = {}
        """seq -> the base that the message was first sent with, in order of seq."""
        self.owes_base = False
        self._last_result: tuple[str, tuple[Copy, ...]] | None = None
        """State and sorted copies of the message of this run that was settled last."""

    @property
    def base(self) -> int:
        """The lowest unsettled seq, or the next one."""
        return next(iter(self.unsettled), self.next_seq)

    @property
    def full(self) -> bool:
        """Whether `in_flight` is reached: no further message may be assigned now."""
        return self.next_seq - self.base >= self._options.in_flight

    def assign(self) -> tuple[int, int]:
        """Return (seq, base) of a new message."""
        if not self.unsettled:
            # The base of this very message releases recipients that wait.
            self.owes_base = False
            self._last_result = None
        seq, base = self.next_seq, self.base
        self.next_seq = seq + 1
        self.unsettled[seq] = base
        return seq, base

    def restore(self, seq: int, base: int) -> None:
        """Add an unsettled message from the state file after a restart; call it in order of seq."""
        assert base <= seq < self.next_seq
        self.unsettled[seq] = base
        # The results of the settled messages of its run are not in the state file.
        first = next(iter(self.unsettled.values()))
        self.owes_base = self.next_seq - first > len(self.unsettled)

    @property
    def after(self) -> Positions:
        """The highest position stored for each copy: a later live copy for the same device must not overtake it."""
        return tuple((user, device, position) for (user, device), position in self._after.items())

    def stored(self, copy: Copy, position: int) -> None:
        """Note that a copy was stored at this position of the log."""
        if position <= max(self._after.get(copy, 0), self._after.get((copy[0], 0), 0)):
            return
        if copy[1] == 0 or (copy not in self._after and len(self._after) >= AFTER_MAX):
            # The highest position, for all devices of the user, holds for each of them and keeps the list short.
            user = copy[0]
            highest = max((p for (of, _), p in self._after.items() if of == user), default=0)
            self._after = {key: p for key, p in self._after.items() if key[0] != user}
            self._after[user, 0] = max(highest, position)
        else:
            self._after[copy] = position

    def settle(self, seq: int, progress: DeliveryStatus) -> bool:
        """Mark a message settled; return whether a base update is owed and no unsettled message is left to carry it."""
        assert progress.settled
        if self.unsettled.pop(seq, None) is None:
            return False
        last_result = (
            progress.state,
            () if progress.state == DeliveryStatus.REJECTED else tuple(sorted(progress.copies)),
        )
        if self._last_result is not None and last_result != self._last_result:
            self.owes_base = True
        self._last_result = last_result
        return self.owes_base and not self.unsettled
