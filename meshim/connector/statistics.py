"""The counters of a connector.  Those of its sockets and backends have their own structs."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters since the start of the process; `sessions` is the number of sessions now."""

    sessions: int = 0
    greeted: int = 0
    """Greetings that became a session and were welcomed."""
    refused: int = 0
    """Greetings that were refused."""
    greetings_limited: int = 0
    """Of these, those above `greetings_per_s` of their token."""
    malformed: int = 0
    """Frames or envelopes that broke the protocol."""
    unknown_links: int = 0
    """Frames of links that no session here has, answered with Reset."""
    early: int = 0
    """Frames between a greeting and its Welcome, dropped."""
    cut: int = 0
    """Sessions that the connector ended with a Close, for a reason other than the client's wish."""
    replaced: int = 0
    """Sessions and greetings that lost their binding to a later session of the device."""
    submitted: int = 0
    """Envelopes that clients submitted."""
    rate_limited: int = 0
    """Frames that were not acknowledged at once, because their sender was above `session_rate`."""
    rejected: int = 0
    """Envelopes with the outcome REJECTED."""
    busy: int = 0
    """Envelopes with the outcome BUSY: their senders submit them again."""
    delivered: int = 0
    """Live copies that devices acknowledged."""
    returned: int = 0
    """Live copies that were returned to a transfer, to be stored."""
    return_failures: int = 0
    """Live copies that could not be returned, because no transfer was connected; their senders submit them again."""
    route_failures: int = 0
    """Messages on the link of a transfer that was lost when no other was connected; their senders submit them again."""
    synced: int = 0
    """Stored copies that devices acknowledged."""
    deferred: int = 0
    """Live copies that had to wait for the offline queue (R2)."""
    overflowed: int = 0
    """Times that a session synced again because live copies for its device had been stored: it read too slowly."""
    woken: int = 0
    """Wake-ups for devices that are connected here."""
    fenced: int = 0
    """Operations on a queue that failed because another connector had claimed it since."""
    not_connected: int = 0
    """Live copies for devices that are not connected here, although presence had a binding."""
    rerouted: int = 0
    """Messages, returned copies and outcomes that were sent to another transfer, because theirs was lost."""
    ephemeral_dropped: int = 0
    """Ephemeral copies that could not be delivered at once."""
    cookies_invalid: int = 0
    """Cookies that this mesh did not make for the stream, or under another secret: ignored."""
    secret_unknown: int = 0
    """Submits and outcomes with a cookie while the secret of the mesh was not known: submitted again."""
    outcomes_lost: int = 0
    """Outcomes that were dropped: their session is not here any more, or no link had room."""
    leases_unusable: int = 0
    """Attempts to connect to a transfer whose lease names an endpoint or a key that no socket takes."""
