"""The options of the core of a connector; service.py derives them from the topology."""

import msgspec

from meshim.connector.offline_sync import OfflineSyncOptions
from meshim.protocol.link import LinkOptions
from meshim.protocol.token_bucket import FRAME_ITEMS_MAX


class ConnectorOptions(msgspec.Struct, frozen=True):
    """Times are seconds.

    Per session: `session_queue` limits the live copies under way and `session_bytes` their bytes, up to and including
    the copy that exceeds it; `session_rate` the submits in a second; `frame_items` the items of a frame; `unauthorized`
    the submits that wait until relations are read again.  A client may be silent
    for `clients.silence_s`, or for as long as it asks, up to `silence_max_s`.  Relations are read again after
    `relation_ttl_s`.  While no wake-up can come, queues are checked every `queue_poll_s`.  `greetings_per_s` is of one
    token.
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
    silence_max_s: float
    defer_s: float
    relation_ttl_s: float
    reconnect_s: float = 0.5
    queue_poll_s: float = 3.0
    unauthorized: int = 64
    frame_items: int = FRAME_ITEMS_MAX
    greetings_per_s: float = 10.0
