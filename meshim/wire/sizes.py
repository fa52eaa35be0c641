"""The size of items on the wire: one function for each place where items are packed, and the limits of what holds them.

Windows pack frames, and queues are bounded, by these sizes.  They are estimates, made of the few fields whose length
varies: encoding an item to measure it would cost more than sending it.  The overheads leave room for what an estimate
misses, so that a full frame stays below the limit of its socket.
"""

from meshim.wire.client import ConnectorItem, Delivery, Submit
from meshim.wire.mesh import FromConnector, FromTransfer
from meshim.wire.offline_log import Entry
from meshim.wire.outcome import Outcome

FRAME_OVERHEAD_BYTES = 16_384
"""Of a frame between client and connector, beside its items."""
BUNDLE_OVERHEAD_BYTES = 65_536
"""Of a bundle between connector and transfer, beside its items.  A socket cuts a connection beyond both together."""
RECORD_BYTES_MAX = 900 * 1024
"""Of one record of the log: NATS takes messages up to 1 MiB (`max_payload`), headers included."""


def submit_size(submit: Submit) -> int:
    """Bytes from client to connector; the rate limit of a session charges them, too."""
    return len(submit.envelope) + 16 + 30 * len(submit.after)


def connector_item_size(item: ConnectorItem) -> int:
    """Bytes from connector to client."""
    return len(item.envelope) + 16 if isinstance(item, Delivery) else 96 + 24 * len(item.copies)


def mesh_item_size(item: FromConnector | FromTransfer) -> int:
    """Bytes between connector and transfer, in either direction."""
    if isinstance(item, Outcome):
        return 96 + 24 * len(item.copies)
    return len(item.envelope) + 128 + 30 * (len(item.stamp.copies) + len(item.stamp.after))


def entry_size(entry: Entry) -> int:
    """Bytes in a record of the log."""
    return len(entry.envelope) + 32 + 10 * len(entry.devices)
