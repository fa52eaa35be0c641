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
    cut: int = 0
    """Sessions that were closed for what they did or did not do."""
    replaced: int = 0
    submitted: int = 0
    rejected: int = 0
    busy: int = 0
    delivered: int = 0
    returned: int = 0
    """Live copies given back to be stored."""
    unreturned: int = 0
    """Live copies that could not be given back because no transfer lived; their senders send them again."""
    drained: int = 0
    """Stored copies that devices acknowledged."""
    held: int = 0
    poked: int = 0
    fenced: int = 0
    resent: int = 0
    rerouted: int = 0
    ephemeral_dropped: int = 0
    outcomes_lost: int = 0
    """Outcomes for devices that are not connected here any more, or take no more."""
