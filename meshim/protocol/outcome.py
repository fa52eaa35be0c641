"""The sender's book: when is a message sent, delivered, settled.

Every outcome names all copies of its message as the mesh knew them at that attempt, and what
became of some.  A copy is (user, device); (user, 0) stands for all devices of the user.

    sent        all copies of the latest attempt are accounted for: delivered or stored
    delivered   a device of the recipient acknowledged it
    rejected    refused for good
    settled     sent or rejected: it is not sent again

A later attempt may find other devices than an earlier one; the latest counts, and
what was accounted for stays so.
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
    """What is told of messages with one fate, each (stamp, copies done); neighbours of a stream share an outcome."""
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
                stamp.origin, stamp.user, stamp.device, stamp.epoch, stamp.to, stamp.seq, last,
                status, done, stamp.copies, position, code, sentence,
            )
        )  # fmt: skip
    return outcomes


class DeliveryStatus:
    """What is known of one message."""

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
        self.accounted: set[Copy] = set()

    @property
    def settled(self) -> bool:
        return self.state != DeliveryStatus.PENDING

    def add(self, outcome: Outcome, sender: int) -> bool:
        """Take in an outcome; whether it changed what is known.  `sender` is the sending user's id."""
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
    """`in_flight` bounds the messages from the lowest unsettled one on, and so what a recipient holds back."""

    in_flight: int = 256


AFTER_MOST = 32
"""Of the positions a stream carries along: the devices of two users, and some that they had."""


class OutStream:
    """The sending end of one stream: which `seq` is next, what is unsettled, what is owed.

    A run is the messages from one that was assigned while none was unsettled to the last before the
    next such one: only within a run does a message make recipients wait for others.  When they did not
    all go to the same copies, or only some were rejected, recipients may wait for one that will
    not come to all of them: a base update is owed as soon as the run is settled.  It is a message
    with no body, and belongs into the outbox in the transaction that settles the last of the run.
    """

    __slots__ = ("_after", "_last_result", "_options", "next_seq", "owes_base", "unsettled")

    def __init__(self, options: OutStreamOptions, next_seq: int = 1, after: Positions = ()) -> None:
        self._options = options
        self.next_seq = next_seq
        self._after: dict[Copy, int] = {(user, device): position for user, device, position in after}
        self.unsettled: dict[int, int] = {}
        """seq -> base it was first sent with, in order."""
        self.owes_base = False
        self._last_result: tuple[str, tuple[Copy, ...]] | None = None
        """What became of the message of this run that was settled last."""

    @property
    def base(self) -> int:
        """The lowest unsettled seq, or the next one."""
        return next(iter(self.unsettled), self.next_seq)

    @property
    def full(self) -> bool:
        return self.next_seq - self.base >= self._options.in_flight

    def assign(self) -> tuple[int, int]:
        """(seq, base) of a new message."""
        if not self.unsettled:
            # Whoever waits is released by the base of this very message.
            self.owes_base = False
            self._last_result = None
        seq, base = self.next_seq, self.base
        self.next_seq = seq + 1
        self.unsettled[seq] = base
        return seq, base

    def restore(self, seq: int, base: int) -> None:
        """An unsettled message of an earlier life of this process, in order of seq."""
        assert base <= seq < self.next_seq
        self.unsettled[seq] = base
        # What became of the settled ones of its run was forgotten.
        first = next(iter(self.unsettled.values()))
        self.owes_base = self.next_seq - first > len(self.unsettled)

    @property
    def after(self) -> Positions:
        """Where copies were stored that a later live copy for the same device must not overtake."""
        return tuple((user, device, position) for (user, device), position in self._after.items())

    def stored(self, copy: Copy, position: int) -> None:
        """A copy was stored there."""
        if position <= max(self._after.get(copy, 0), self._after.get((copy[0], 0), 0)):
            return
        if copy[1] == 0 or (copy not in self._after and len(self._after) >= AFTER_MOST):
            # One for all devices says no less of each, and keeps the list short.
            user = copy[0]
            highest = max((p for (of, _), p in self._after.items() if of == user), default=0)
            self._after = {key: p for key, p in self._after.items() if key[0] != user}
            self._after[user, 0] = max(highest, position)
        else:
            self._after[copy] = position

    def settle(self, seq: int, progress: DeliveryStatus) -> bool:
        """Mark it settled; True when a base update is owed now and nothing else is under way to carry it."""
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
