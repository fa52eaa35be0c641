"""Adds up the outcomes of copies, for the messages of one session: when a message is `final`.

A message is final when every copy of its latest attempt is accounted for, delivered or stored.  A later attempt may
find other devices than an earlier one; a copy that was accounted for once stays so.  What is forgotten here, when the
session ends or when too many messages are incomplete, the client heals: it submits every message again that is not
final.
"""

from typing import NamedTuple
from zlib import crc32

from meshim.wire.bounds import Copies
from meshim.wire.codec import encode
from meshim.wire.envelope import Destination
from meshim.wire.outcome import Copy, CopyOutcome, OutcomeStatus

MESSAGES_MAX = 512
"""Messages of a session of which only some copies are accounted for; the oldest is forgotten."""


class Progress(NamedTuple):
    """What to tell the client of the messages `first` to `last`."""

    first: int
    last: int
    status: OutcomeStatus
    final: bool


def audience(copies: Copies) -> int:
    """Return a number that is equal for equal copies, in any order; never 0."""
    return crc32(encode(sorted(copies))) & 0x7FFFFFFF or 1


class _Message:
    """A message of which some copies are not accounted for."""

    __slots__ = ("accounted", "delivered", "told")

    def __init__(self) -> None:
        self.accounted: set[Copy] = set()
        self.delivered = False
        """To a device of the recipient."""
        self.told = 0
        """The status in the last outcome for the client."""


def _complete(accounted: set[Copy], copies: Copies) -> bool:
    """Whether all of the copies are accounted for; an outcome without copies completes nothing."""
    return bool(copies) and all(copy in accounted or (copy[0], 0) in accounted for copy in copies)


class Accounting:
    """The messages of one session that are not final yet and of which some copies are accounted for."""

    __slots__ = ("messages",)

    def __init__(self) -> None:
        self.messages: dict[tuple[Destination, int], _Message] = {}

    def add(self, outcome: CopyOutcome) -> list[Progress]:
        """Take in an outcome DELIVERED or STORED; return what is news for the client."""
        told: list[Progress] = []
        for seq in range(outcome.first, outcome.last + 1):
            news = self._add_one(outcome, seq)
            if news is None:
                continue
            if told and told[-1].last == seq - 1 and told[-1][2:] == news[2:]:
                told[-1] = told[-1]._replace(last=seq)
            else:
                told.append(news)
        return told

    def _add_one(self, outcome: CopyOutcome, seq: int) -> Progress | None:
        key = outcome.to, seq
        message = self.messages.get(key)
        if message is None:
            message = _Message()
        message.accounted.update(outcome.done)
        if outcome.status == OutcomeStatus.DELIVERED and any(user != outcome.user for user, _ in outcome.done):
            message.delivered = True
        status = OutcomeStatus.DELIVERED if message.delivered else OutcomeStatus.STORED
        if _complete(message.accounted, outcome.copies):
            self.messages.pop(key, None)
            return Progress(seq, seq, status, True)
        if key not in self.messages:
            if len(self.messages) >= MESSAGES_MAX:
                del self.messages[next(iter(self.messages))]
            self.messages[key] = message
        # A copy that was stored changes the cookie, even where the status stays the same.
        if status == message.told and outcome.status == OutcomeStatus.DELIVERED:
            return None
        message.told = status
        return Progress(seq, seq, status, False)
