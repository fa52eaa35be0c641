"""What a connector is configured with, derived from the topology by its service."""

import msgspec

from meshim.connector.offline_sync import OfflineSyncOptions
from meshim.protocol.link import LinkOptions
from meshim.protocol.token_bucket import FRAME_ITEMS_MAX


class ConnectorOptions(msgspec.Struct, frozen=True):
    """Times are seconds.

    `session_queue`, `frame_items` and `unauthorized` are counts per session, `session_rate` submits a second of one;
    `session_bytes` bounds the live copies under way to one, beyond its last.  `relation_ttl_s` is after how long
    relations are read again; `queue_poll_s` is how often queues are looked at while nobody can wake-up us.
    """

    clients: LinkOptions
    transfers: LinkOptions
    sync: OfflineSyncOptions
    body_bytes: int
    frame_bytes: int
    sessions: int
    session_queue: int
    session_bytes: int
    session_rate: float
    heartbeat_s: float
    defer_s: float
    relation_ttl_s: float
    reconnect_s: float = 0.5
    queue_poll_s: float = 3.0
    unauthorized: int = 64
    frame_items: int = FRAME_ITEMS_MAX
