"""Dead letters: records that can never be written (NATS JetStream)."""

from typing import Protocol

import msgspec


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that can never be written, or a record of just those entries that the database refused.

    `number` names it among the dead letters, `position` is where it stood in its partition, `dead_lettered_at` is
    in seconds since 1970 (clock of the backend).
    """

    number: int
    partition: int
    position: int
    dead_lettered_at: float
    reason: str
    data: bytes


class DeadLetters(Protocol):
    """What `OfflineLog.dead-letter` keeps, by ascending numbers; a number is given once."""

    async def last(self) -> int:
        """The highest number that was given so far; 0 before the first."""

    async def get(self, number: int) -> DeadLetter | None:
        """The letter of that number; None where there is none (any more)."""

    async def following(self, number: int) -> DeadLetter | None:
        """The letter with the next higher number; None behind the last."""

    async def remove(self, number: int) -> bool:
        """Delete it for good; False where there was none."""
