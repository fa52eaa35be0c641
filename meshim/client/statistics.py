"""The counters of one client, since it was opened."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters that only grow; read them with `msgspec.structs.asdict`."""

    resent: int = 0
    """Messages submitted again, after a timeout or over another connection."""
    queue_full: int = 0
    """Times that the mesh did not take a message because too much waits for a device; it is submitted again."""
    deduplicated: int = 0
    """Messages received again, and not given to the application again."""
    gaps_released: int = 0
    """Times that messages were released although an earlier one had not arrived within `gap_release_s`."""
    unreadable: int = 0
    """Deliveries and receipts that did not decode."""
    receipts_ignored: int = 0
    """Receipts of a friend about streams of which this device has no message, beyond those that may be ahead of it."""
    skipped: int = 0
    """Messages of kinds that this version does not know."""
    inbox_failures: int = 0
    """Messages in the state file that could not be opened, for a reason that was not expected; each has a `problem`."""
    inbox_full: int = 0
    """Times that the client disconnected because the application had left too much unread (`inbox_bytes_max`)."""
    unsendable: int = 0
    """Messages in the state file that no connector would take: rejected when the client was opened."""
    events_lost: int = 0
    """Events that found no room while a reader of `Client.events` was slow."""
    typing_not_sent: int = 0
    """Calls of `Client.typing` that sent nothing: too soon after the last one, no connection, or no room."""
    relation_requests_failed: int = 0
    """Requests for relations that changed, which REST did not answer; they are repeated."""
    presence_requests_failed: int = 0
    """Requests for the presence of watched friends, which REST did not answer; they are repeated."""
