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

import msgspec

from meshim.wire.outcome import Copy, How, Outcome


class Tally:
    """What is known of one message."""

    __slots__ = ("accounted", "code", "copies", "delivered", "sentence", "state")

    PENDING, SENT, REJECTED = "pending", "sent", "rejected"

    def __init__(self) -> None:
        self.state = Tally.PENDING
        self.delivered = False
        self.code = 0
        self.sentence = ""
        self.copies: tuple[Copy, ...] = ()
        self.accounted: set[Copy] = set()

    @property
    def settled(self) -> bool:
        return self.state != Tally.PENDING

    def add(self, outcome: Outcome, sender: int) -> bool:
        """Take in an outcome; whether it changed what is known.  `sender` is the sending user's id."""
        before = (self.state, self.delivered)
        if outcome.how == How.REJECTED:
            if not self.settled:
                self.state, self.code, self.sentence = Tally.REJECTED, outcome.code, outcome.sentence
        elif outcome.how in (How.DELIVERED, How.STORED):
            self.copies = outcome.copies
            self.accounted.update(outcome.done)
            if outcome.how == How.DELIVERED and any(user != sender for user, _ in outcome.done):
                self.delivered = True
            if not self.settled and all(self._accounted(copy) for copy in self.copies):
                self.state = Tally.SENT
        return before != (self.state, self.delivered)

    def _accounted(self, copy: Copy) -> bool:
        return copy in self.accounted or (copy[0], 0) in self.accounted


class OutStreamOptions(msgspec.Struct, frozen=True):
    """`in_flight` bounds the unsettled messages of a stream, and so what a recipient holds back."""

    in_flight: int = 256


class OutStream:
    """The sending end of one stream: which `seq` is next, what is unsettled, what is owed.

    A base update is owed when recipients may wait for a message that will not come to all of them:
    one was rejected, or neighbours that overlapped in flight went to different sets of copies.
    """

    __slots__ = ("_last_copies", "_options", "after", "next_seq", "owes_base", "unsettled")

    def __init__(self, options: OutStreamOptions, next_seq: int = 1, after: dict[int, int] | None = None) -> None:
        self._options = options
        self.next_seq = next_seq
        self.after: dict[int, int] = dict(after or {})
        self.unsettled: dict[int, int] = {}
        """seq -> base it was first sent with, in order."""
        self.owes_base = False
        self._last_copies: tuple[Copy, ...] | None = None

    @property
    def base(self) -> int:
        """The lowest unsettled seq, or the next one."""
        return next(iter(self.unsettled), self.next_seq)

    @property
    def full(self) -> bool:
        return len(self.unsettled) >= self._options.in_flight

    def assign(self) -> tuple[int, int]:
        """(seq, base) of a new message."""
        seq = self.next_seq
        if not self.unsettled:
            # Whoever waits is released by the base of this very message.
            self.owes_base = False
            self._last_copies = None
        self.next_seq = seq + 1
        self.unsettled[seq] = 0
        base = self.base
        self.unsettled[seq] = base
        return seq, base

    def restore(self, seq: int, base: int) -> None:
        """An unsettled message of an earlier life of this process, in order of seq."""
        self.unsettled[seq] = base

    def stored(self, user: int, position: int) -> None:
        """A copy for this user was stored there: later live copies must not overtake it."""
        if position > self.after.get(user, 0):
            self.after[user] = position

    def settle(self, seq: int, tally: Tally) -> bool:
        """Mark it settled; True when a base update is owed now and nothing else is under way to carry it."""
        base = self.unsettled.pop(seq, None)
        if base is None:
            return False
        overlapped = base < seq or bool(self.unsettled)
        copies = tuple(sorted(tally.copies))
        if overlapped and (
            tally.state == Tally.REJECTED or (self._last_copies is not None and copies != self._last_copies)
        ):
            self.owes_base = True
        self._last_copies = copies
        return self.owes_base and not self.unsettled
