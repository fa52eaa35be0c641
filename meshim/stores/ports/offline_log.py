"""The offline log: messages that cannot be delivered now, fsynced before they count as stored.

One stream per partition: a work queue on file storage that refuses new messages when it is full.  Implemented on NATS
JetStream (`nats/offline_log.py`) and in memory (`memory/nats.py`); contract: `tests/contract/nats/test_offline_log.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class LogMessage(NamedTuple):
    """One message of a partition: its position and its bytes (a `wire.offline_log.Record`)."""

    position: int
    data: bytes


class OfflineLog(Protocol):
    """Transfers publish; the one writer of a partition fetches, and acknowledges what it has committed to SQL."""

    async def ensure(self, partition: int, first: int) -> None:
        """Create the stream of the partition if it is missing; its first message then has position `first`."""

    async def publish(self, partition: int, data: bytes) -> int:
        """Append one message; return its position once it is fsynced.

        Raises `BackendUnavailable` also when the partition is full.
        """

    async def fetch(self, partition: int, limit: int, wait_s: float) -> list[LogMessage]:
        """Return at most `limit` unacknowledged messages in order of position; none after `wait_s` without any.

        A message that is neither acknowledged nor extended for a while (30 s by default) is given out again.
        """

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        """Postpone the redelivery of these positions: the writer still works on them."""

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        """Delete these positions from the log: they are in the database."""

    async def read(self, partition: int, position: int) -> bytes | None:
        """Return one message by its position; None when it does not exist any more."""

    async def dead_letter(self, partition: int, position: int, reason: str, data: bytes) -> None:
        """Append a record that can never be written to the dead-letter stream; return once it is fsynced."""
