"""What a connector counts."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters since start; `sessions` is how many there are now."""

    sessions: int = 0
    greeted: int = 0
    refused: int = 0
    """Greetings that were refused."""
    malformed: int = 0
    """Frames or envelopes that broke the protocol."""
    unknown_links: int = 0
    """Frames of links that are not known here, answered with Reset."""
    early: int = 0
    """Frames that came between a greeting and its welcome, dropped."""
    cut: int = 0
    """Sessions that were closed for what they did or did not do."""
    replaced: int = 0
    """Sessions, and greetings, that lost their binding to a later session of the device."""
    submitted: int = 0
    slowed: int = 0
    """Frames that were not acknowledged at once, because their sender was above the rate."""
    rejected: int = 0
    busy: int = 0
    delivered: int = 0
    returned: int = 0
    """Live copies given back to be stored."""
    unreturned: int = 0
    """Live copies that could not be given back because no transfer lived; their senders send them again."""
    unrouted: int = 0
    """Messages that went down with their transfer when no other lived; their senders send them again."""
    synced: int = 0
    """Stored copies that devices acknowledged."""
    deferred: int = 0
    """Live copies that had to wait for the queue (R2)."""
    overflowed: int = 0
    """Times that a device took so little that live copies for it had to be stored."""
    woken: int = 0
    """Devices here that a writer has stored something for."""
    fenced: int = 0
    """Times that another connector had claimed a queue after us."""
    not_connected: int = 0
    """Live copies for devices that are not connected here, whatever presence said."""
    resent: int = 0
    """Frames sent again because they were not acknowledged."""
    deduplicated: int = 0
    """Frames that had been taken before."""
    rerouted: int = 0
    """Messages, returned copies and outcomes taken to another transfer."""
    ephemeral_dropped: int = 0
    outcomes_lost: int = 0
    """Outcomes for devices that are not connected here any more, or take no more."""
