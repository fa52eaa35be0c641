"""The size of items on the wire: one function for each direction, and the limits of the frames that hold them.

Windows pack frames by these sizes, and bound queues.  They are estimates from the lengths of the fields that vary most:
encoding an item to measure it would cost more than sending it.  The overheads leave room for the difference, so that a
full frame stays below the limit of its socket.
"""

from meshim.wire.client import ConnectorItem, Delivery, Submit
from meshim.wire.mesh import FromConnector, FromTransfer
from meshim.wire.offline_log import Entry
from meshim.wire.outcome import CopyOutcome

FRAME_OVERHEAD_BYTES = 16_384
"""Room in a frame between client and connector, beside its items."""
BUNDLE_OVERHEAD_BYTES = 65_536
"""Room in a bundle between connector and transfer, beside its items.  Beyond both, a socket cuts the connection."""
RECORD_BYTES_MAX = 900 * 1024
"""Of one record of the log: NATS takes messages up to 1 MiB (`max_payload`), headers included."""

STORED_RECORD_OVERHEAD_BYTES = 4_096
"""Room in a stream for the headers of one record: a dead letter carries its reason, of up to 500 characters."""
DEAD_LETTERS_BYTES_MAX = 256 << 20

ENVELOPE_FIELDS_BYTES = 4_096
"""Limit of an envelope beside its body: far more than its fields take, also with fields of a later version."""


def dead_letters_bytes(log_bytes: int) -> int:
    """Return the limit of the dead-letter stream: a quarter of that of a partition, so that a small disk has room."""
    return min(log_bytes // 4, DEAD_LETTERS_BYTES_MAX)


def log_bytes_min(record_bytes: int) -> int:
    """Return the smallest limit of a partition whose dead-letter stream takes a record of that size."""
    return 4 * (record_bytes + STORED_RECORD_OVERHEAD_BYTES)


def submit_size(submit: Submit) -> int:
    """Return the bytes of an item from client to connector.  The rate limit of a session charges them."""
    return len(submit.envelope) + 16 + len(submit.cookie)


def connector_item_size(item: ConnectorItem) -> int:
    """Return the bytes of an item from connector to client."""
    return len(item.envelope) + 16 if isinstance(item, Delivery) else 64 + len(item.cookie)


def mesh_item_size(item: FromConnector | FromTransfer) -> int:
    """Return the bytes of an item between connector and transfer, in either direction."""
    if isinstance(item, CopyOutcome):
        return 104 + 24 * len(item.copies) + 30 * len(item.after)
    return len(item.envelope) + 136 + 30 * (len(item.stamp.copies) + len(item.stamp.after))


def entry_size(entry: Entry) -> int:
    """Return the bytes of an entry in a record of the log."""
    return len(entry.envelope) + 32 + 10 * len(entry.devices)
