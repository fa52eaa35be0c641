"""Outcomes of copies where they are made, and the streams that a device sends.

The connector of the sender adds up the outcomes of copies (connector/accounting.py) and tells the device:

    sent        a final outcome: every copy of the latest attempt is accounted for, delivered or stored
    delivered   a device of the recipient acknowledged the message
    rejected    refused for good
    settled     sent or rejected: the sender does not submit it again
"""

from collections.abc import Sequence

import msgspec

from meshim.wire.mesh import Stamp
from meshim.wire.outcome import Copy, CopyOutcome, OutcomeStatus


def outcomes_of(
    copies: Sequence[tuple[Stamp, tuple[Copy, ...]]],
    status: OutcomeStatus,
    position: int = 0,
    code: int = 0,
    sentence: str = "",
) -> list[CopyOutcome]:
    """Return the outcomes that report one status for these messages, each given as (stamp, the copies it is true of).

    Neighbours in a stream share an outcome where all else is equal.
    """
    outcomes: list[CopyOutcome] = []
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
                or following.session != stamp.session
                or following.after != stamp.after
                or following.copies != stamp.copies
                or also_done != done
            ):
                break
            last += 1
            at += 1
        outcomes.append(
            CopyOutcome(
                origin=stamp.origin,
                session=stamp.session,
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
                after=stamp.after,
                code=code,
                sentence=sentence,
            )
        )
    return outcomes


class OutStreamOptions(msgspec.Struct, frozen=True):
    """`in_flight` is how many messages there may be from the lowest unsettled one on: recipients hold back no more."""

    in_flight: int = 256


REJECTED = 0
"""The fate of a message that was rejected; that of any other is the `audience` of its final outcome, never 0."""


class OutStream:
    """The sending end of one stream: the next `seq`, the unsettled messages, and whether a base update is owed.

    A run starts with a message that is assigned while none is unsettled, and ends before the next such message.  Only
    within a run can a message make recipients wait for earlier ones.  When the messages of a run went to different
    copies, or only some were rejected, a recipient may wait for a message that will never arrive there.  So a base
    update is owed as soon as such a run is settled: a message without a body, which belongs into the outbox in the
    transaction that settles the last message of the run.
    """

    __slots__ = ("_fate", "_mixed", "_options", "cookie", "next_seq", "unsettled")

    def __init__(self, options: OutStreamOptions, next_seq: int = 1, cookie: bytes = b"") -> None:
        self._options = options
        self.next_seq = next_seq
        self.cookie = cookie
        """That of the latest outcome: for the next Submit."""
        self.unsettled: dict[int, int] = {}
        """seq -> the base that the message was first sent with, in order of seq."""
        self._fate: int | None = None
        """Of the message of this run that was settled last."""
        self._mixed = False
        """Whether messages of this run had different fates."""

    @property
    def base(self) -> int:
        """The lowest unsettled seq, or the next one."""
        return next(iter(self.unsettled), self.next_seq)

    @property
    def full(self) -> bool:
        """Whether `in_flight` is reached: no further message may be assigned now."""
        return self.next_seq - self.base >= self._options.in_flight

    @property
    def owes_base(self) -> bool:
        """Whether a base update follows when nothing is unsettled."""
        return self._mixed

    def assign(self) -> tuple[int, int]:
        """Return (seq, base) of a new message."""
        if not self.unsettled:
            # The base of this very message releases recipients that wait.
            self._fate = None
            self._mixed = False
        seq, base = self.next_seq, self.base
        self.next_seq = seq + 1
        self.unsettled[seq] = base
        return seq, base

    def restore(self, seq: int, base: int) -> None:
        """Add an unsettled message from the state file after a restart; call it in order of seq."""
        assert base <= seq < self.next_seq
        self.unsettled[seq] = base
        # The fates of the settled messages of its run are not in the state file.
        first = next(iter(self.unsettled.values()))
        self._mixed = self.next_seq - first > len(self.unsettled)

    def settle(self, seq: int, fate: int) -> bool:
        """Mark a message settled; return whether a base update is owed and no unsettled message is left to carry it."""
        if self.unsettled.pop(seq, None) is None:
            return False
        self._mixed = self._mixed or self._fate not in (None, fate)
        self._fate = fate
        return self._mixed and not self.unsettled
