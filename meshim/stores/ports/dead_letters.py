"""Dead letters: records that no writer can ever write, kept for the operator (`meshim deadletter`).

`OfflineLog.dead_letter` adds them; this port reads and removes them.  Implemented on NATS JetStream
(`nats/dead_letters.py`) and in memory (`memory/nats.py`); contract: `tests/contract/nats/test_dead_letters.py`.
"""

from typing import Protocol

import msgspec


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that can never be written; or a record with only those of its entries that the database refused.

    `number` identifies the letter in the dead-letter stream, `position` is the position of the record in its
    partition, `dead_lettered_at` is in seconds since 1970 (clock of the backend), `reason` is a sentence of the writer.
    """

    number: int
    partition: int
    position: int
    dead_lettered_at: float
    reason: str
    data: bytes


class DeadLetters(Protocol):
    """The dead-letter stream of a namespace.  Numbers ascend and are never reused."""

    async def last(self) -> int:
        """Return the highest number given so far; 0 before the first."""

    async def get(self, number: int) -> DeadLetter | None:
        """Return the letter with that number; None when it does not exist (any more)."""

    async def following(self, number: int) -> DeadLetter | None:
        """Return the letter with the next higher number; None after the last."""

    async def remove(self, number: int) -> bool:
        """Delete the letter for good; return False when it does not exist."""
