"""What a transfer counts."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters since start; `connectors` is how many are linked now."""

    connectors: int = 0
    malformed: int = 0
    """Frames that broke the protocol."""
    unknown_links: int = 0
    """Frames of links that are not known here, answered with Reset."""
    routed: int = 0
    forwarded: int = 0
    """Copies forwarded to the connectors of their devices."""
    returned: int = 0
    """Copies that connectors gave back."""
    stored: int = 0
    """Entries that the log acknowledged."""
    busy: int = 0
    """Messages refused for now, because the log does not take them."""
    stored_after_loss: int = 0
    """Copies under way to a connector that was lost, stored instead."""
    outcomes: int = 0
    outcomes_lost: int = 0
    """Outcomes for connectors that are not linked."""
    looked_up: int = 0
    unreadable: int = 0
    """Users stored for because presence did not answer."""
    ephemeral_dropped: int = 0
    resent: int = 0
    """Bundles sent again because they were not acknowledged."""
    deduplicated: int = 0
    """Bundles that had been taken before."""
