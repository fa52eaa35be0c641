"""The options that both ends of a link between a connector and a transfer must share."""

from meshim.protocol.link import LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.topology import Topology


def mesh_link_options(topology: Topology) -> LinkOptions:
    """Return the options of these links: the same at both ends."""
    timers, limits = topology.timers, topology.limits
    window = WindowOptions(
        credit=limits.mesh_window,
        queue=limits.link_queue,
        frame_items=limits.bundle_items,
        frame_bytes=limits.bundle_bytes,
        give_up_s=timers.delivery_timeout_s,
        queue_bytes=limits.link_bytes,
    )
    return LinkOptions(
        window, timers.mesh_heartbeat_s, timers.mesh_silence_s, ack_delay_s=timers.ack_delay_s,
        coalesce_s=timers.outcome_delay_s,
    )  # fmt: skip
