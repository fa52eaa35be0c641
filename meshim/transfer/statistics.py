"""The counters of a transfer."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters since the process started, except for `connectors`."""

    connectors: int = 0
    """Connectors that are linked now."""
    malformed: int = 0
    """Frames that broke the protocol; each ended its link."""
    impersonations: int = 0
    """Hellos that named another incarnation than that of the key of their connection, refused."""
    unknown_links: int = 0
    """Frames of links that this transfer does not know, answered with Reset."""
    routed: int = 0
    """Messages received from connectors."""
    forwarded: int = 0
    """Copies sent to the connectors of their devices."""
    returned: int = 0
    """Copies that connectors could not deliver and returned."""
    stored: int = 0
    """Entries that the log acknowledged."""
    busy: int = 0
    """Messages answered with BUSY: no room for them here, or the log did not take an entry."""
    queue_full: int = 0
    """Messages answered with BUSY and QUEUE_FULL: a queue of the recipient, or of the sender, is full of them."""
    stored_after_loss: int = 0
    """Copies that a lost connector had not acknowledged, stored instead."""
    outcomes: int = 0
    """Outcomes sent to the connectors of the senders."""
    outcomes_lost: int = 0
    """Outcomes for connectors that are not linked, or whose link is full."""
    looked_up: int = 0
    """Users looked up in presence."""
    unreadable: int = 0
    """Users whose look-up failed; their messages were stored (R9)."""
    ephemeral_dropped: int = 0
    """Ephemeral messages and copies that could not be delivered at once."""
