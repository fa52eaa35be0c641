"""The offline log: one stream per partition, fsynced before a message counts as stored (NATS JetStream)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class LogMessage(NamedTuple):
    """One message of a partition: its position and its bytes (a `wire.log.Record`)."""

    position: int
    data: bytes


class OfflineLog(Protocol):
    """One JetStream stream per partition: work queue, discard new, file storage."""

    async def ensure(self, partition: int, first: int) -> None:
        """Create the partition's stream if it is missing; its first message will then have position `first`."""

    async def publish(self, partition: int, data: bytes) -> int:
        """Append; returns the position once it is fsynced.  Raises `BackendUnavailable` (also when full)."""

    async def fetch(self, partition: int, most: int, wait_s: float) -> list[LogMessage]:
        """The next messages that are not acknowledged, in order; empty after `wait_s` without any.

        A message is given again when it was not acknowledged for a while.
        """

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        """Say that these are still being worked on."""

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        """Delete these from the log: they are in the database."""

    async def read(self, partition: int, position: int) -> bytes | None:
        """One message by its position; None when there is none any more."""

    async def dead_letter(self, partition: int, position: int, reason: str, data: bytes) -> None:
        """Keep what can never be written in the dead-letter stream; returns once it is fsynced."""
