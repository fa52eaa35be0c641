"""The options of the core of a transfer; service.py derives them from the topology."""

import msgspec

from meshim.protocol.link import LinkOptions


class TransferOptions(msgspec.Struct, frozen=True):
    """Counts, bytes and seconds."""

    links: LinkOptions
    partitions: int
    """Of the log."""
    publishes: int
    """Records in flight to the log at once, over all partitions; at least one for each partition."""
    pending: int
    """Messages that may wait for a look-up of presence, and entries that may wait for the log."""
    pending_bytes: int
    """Of the envelopes of each of these two; the last envelope may exceed it."""
    record_bytes: int
    record_items: int
    presence_cache: int
    """Users in the cache."""
    presence_cache_ttl_s: float
    presence_silence_s: float
    """Without a heartbeat of presence for this long, no entry of the cache is used."""
