"""The options of the core of a writer; service.py derives them from the topology.  Times are seconds."""

import msgspec


class QuotaOptions(msgspec.Struct, frozen=True):
    """`rows` and `bytes` are the limits of one queue, `queues_max` and `full_max` those of what is kept in memory."""

    rows: int
    bytes: int
    announced_s: float = 60.0
    """How long an announcement lasts that is not renewed."""
    renew_s: float = 20.0
    queues_max: int = 32_768
    """Queues of one partition of which it is known how much was inserted."""
    full_max: int = 10_000
    """Full queues of one partition."""


class PipelineOptions(msgspec.Struct, frozen=True):
    """`records` and `batch_bytes` bound one transaction.

    `records` also bounds the messages that wait for a transaction, and those that wait for their acknowledgement.
    """

    records: int
    batch_bytes: int
    extend_s: float
    """How often the log is told that unacknowledged messages are still in work."""
    quota: QuotaOptions


class MaintenanceOptions(msgspec.Struct, frozen=True):
    """`rows` and `devices` bound one transaction."""

    rows: int = 500
    devices: int = 50
    full_pause_s: float = 0.5
    """After a batch that was full."""
    long_pause_s: float = 600.0
    """After a batch that was not."""


class WriterOptions(msgspec.Struct, frozen=True):
    """`name` is the writer's in the topology; `seed` makes its pauses differ from those of other writers."""

    name: str
    seed: int
    partitions: int
    partition_lease_s: float
    pipeline: PipelineOptions
    maintenance: MaintenanceOptions

    @property
    def renew_interval_s(self) -> float:
        """Between two renewals of a lease."""
        return self.partition_lease_s / 3

    @property
    def claim_interval_s(self) -> float:
        """Between two rounds of claims."""
        return self.partition_lease_s / 3

    @property
    def takeover_s(self) -> float:
        """How long the shares must have been the same before partitions above the own share are claimed."""
        return self.partition_lease_s * 2

    @property
    def rebalance_s(self) -> float:
        """Between two rebalancings, when no writer appears or leaves."""
        return self.partition_lease_s * 100


class Retention(msgspec.Struct, frozen=True):
    """How long rows are kept after they were read, and devices after they were last seen."""

    read_s: float
    device_idle_s: float
