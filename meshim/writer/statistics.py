"""What a writer has done since it started."""

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Counts.  Nothing of what a writer does to messages is missing here."""

    records: int = 0
    """Log messages whose entries were committed, those given again included."""
    entries: int = 0
    """Entries in those records."""
    left_out: int = 0
    """Copies for users and devices that there are not any more."""
    transactions: int = 0
    duplicates: int = 0
    """Of `records`: given again by the log although they were committed before."""
    skipped: int = 0
    """Positions that were passed over because there is no such message in the log any more."""
    fenced: int = 0
    """Times that a partition was lost to another writer with work under way."""
    dead_lettered: int = 0
    """Records, or what of a record could not be written, that went to the dead-letter stream."""
    retried: int = 0
    """Actions that failed because a backend was away."""
    woken: int = 0
    """Devices with a binding that a connector was told of."""
    wake_ups_lost: int = 0
    """Batches of devices, or connectors, that could not be looked up or told; their sweep finds the rows."""
    purged: int = 0
    """Rows deleted after they were read and `read_retention_s` had passed."""
    idle_devices: int = 0
    """Devices dropped because they were not seen for `device_idle_s`."""
