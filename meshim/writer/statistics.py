"""The counters of a writer."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters since the process started.  Together they account for every message that the writer fetched."""

    records: int = 0
    """Log messages whose entries were committed, redelivered ones included."""
    entries: int = 0
    """Entries in those records."""
    left_out: int = 0
    """Copies for users and devices that do not exist (any more)."""
    transactions: int = 0
    duplicates: int = 0
    """Of `records`: redelivered by the log although they were committed before."""
    skipped: int = 0
    """Positions passed over because the log has no such message any more."""
    fenced: int = 0
    """Partitions lost to another writer."""
    dead_lettered: int = 0
    """Records, or the entries of a record that the database refused, put into the dead-letter stream."""
    retried: int = 0
    """Actions on a partition that failed because a backend was away."""
    woken: int = 0
    """Bound devices named in a wake-up that was sent."""
    wake_ups_lost: int = 0
    """Batches of devices that could not be looked up, and wake-ups that could not be sent; sweeps find those rows."""
    queues_counted: int = 0
    """Offline queues whose unread rows were counted."""
    queues_full: int = 0
    """Of these: a sender had its share, or the queue was full."""
    purged: int = 0
    """Rows deleted `read_retention_s` after they were read."""
    idle_devices: int = 0
    """Devices dropped `device_idle_s` after they were last seen."""
