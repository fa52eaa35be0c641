"""The settings of a client, and what `Client` uses by default."""

from math import inf

import msgspec

from meshim.protocol.link import LinkOptions
from meshim.protocol.ordering import OrderingOptions
from meshim.protocol.timeouts import (
    CLIENT_ACK_DELAY_S,
    CLIENT_GIVE_UP_S,
    CLIENT_RESEND_S,
    GAP_RELEASE_S,
    GREET_TIMEOUT_S,
)
from meshim.protocol.window import WindowOptions
from meshim.wire.client import Welcome
from meshim.wire.sizes import FRAME_OVERHEAD_BYTES


class OutboxOptions(msgspec.Struct, frozen=True):
    """When the outbox submits a message again.  Waits are in seconds and double from one attempt to the next."""

    resend_s: float = CLIENT_RESEND_S
    """The first wait for an outcome."""
    resend_max_s: float = 15.0
    """The longest wait for an outcome."""
    busy_s: float = 0.5
    """The first wait after the mesh answered `busy`; the longest is `resend_s`."""
    settled_max: int = 10_000
    """Settled messages that later outcomes and receipts are still matched with; the oldest is forgotten first."""


class ClientOptions(msgspec.Struct, frozen=True):
    """The settings of one client.  Where a connector's welcome has a lower limit, that limit applies."""

    link: LinkOptions
    outbox: OutboxOptions
    ordering: OrderingOptions
    greet_timeout_s: float = GREET_TIMEOUT_S
    """From the connection to the welcome."""
    submits_queued_max: int = 256
    """Messages that wait for room in the window of the link; the others wait in the outbox."""
    receipt_ranges_max: int = 64
    """Ranges of `seq` in one receipt; more are split over several receipts."""
    delivered_delay_s: float = 2.0
    """How long a `delivered` receipt waits that the sending device does not need; a `read` receipt replaces it."""
    typing_every_s: float = 3.0
    """Typing is sent to each friend at most once in so long."""
    typing_shown_s: float = 6.0
    """A friend types until so long after the last word of it."""
    presence_poll_s: float = 10.0
    """Between two requests for the presence of watched friends, times a random factor between 0.8 and 1.2."""
    watched_max: int = 500
    """Friends who are watched at once; a request asks for 100."""
    inbox_bytes_max: int = 256 << 20
    """Messages that the application may leave unread in the state file, in bytes.  At so many the client disconnects,
    and the mesh keeps what comes then; it connects again when the application has handled a quarter of them."""
    events_max: int = 1024
    """Events that wait for a reader of `Client.events`; see `client.application.event_stream`."""


DEFAULTS = ClientOptions(
    link=LinkOptions(
        WindowOptions(credit=32, queue=1024, frame_items=64, frame_bytes=65_536, give_up_s=CLIENT_GIVE_UP_S),
        heartbeat_s=inf,  # the connector pings
        silence_s=inf,  # the welcome tells it
        ack_delay_s=CLIENT_ACK_DELAY_S,
    ),
    outbox=OutboxOptions(),
    ordering=OrderingOptions(gap_release_s=GAP_RELEASE_S),
)


def within_limits(options: LinkOptions, welcome: Welcome) -> LinkOptions:
    """Return the options within the connector's limits: its silence, frames no larger, acknowledgements no later."""
    replace = msgspec.structs.replace
    bytes_max = max(1, welcome.frame_bytes - FRAME_OVERHEAD_BYTES)
    window = replace(options.window, frame_bytes=min(options.window.frame_bytes, bytes_max))
    ack_delay_s = min(options.ack_delay_s, welcome.ack_ms / 1000 / 4)
    return replace(options, window=window, silence_s=welcome.silence_ms / 1000, ack_delay_s=ack_delay_s)
