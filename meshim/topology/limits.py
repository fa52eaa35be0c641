"""Checks of limits: what has to fit into what."""

from collections.abc import Iterator
from typing import NamedTuple

from meshim.protocol.timeouts import CLIENT_GIVE_UP_S
from meshim.protocol.token_bucket import FRAME_ITEMS_MAX, SUBMIT_BYTES
from meshim.topology.finding import Finding
from meshim.topology.structs import Topology
from meshim.wire.bounds import ITEMS_MAX, LIST_MAX
from meshim.wire.sizes import ENVELOPE_FIELDS_BYTES, RECORD_BYTES_MAX, log_bytes_min


class _Fits(NamedTuple):
    """The limit `low` plus `overhead` must be at most the limit `high`, or the number behind its description."""

    low: str
    overhead: int
    high: str
    most: int | None = None


_FITS = (
    _Fits("body_bytes", ENVELOPE_FIELDS_BYTES, "frame_bytes"),
    _Fits("frame_bytes", 0, "bundle_bytes"),
    _Fits("bundle_bytes", 0, "what NATS takes", RECORD_BYTES_MAX),
    _Fits("body_bytes", ENVELOPE_FIELDS_BYTES, "sync_page_bytes"),
    _Fits("bundle_items", 0, "link_queue"),
    _Fits("bundle_bytes", 0, "link_bytes"),
    _Fits("bundle_bytes", 0, "queue_bytes"),
    _Fits("client_window", 0, "session_queue"),
    _Fits("client_window", 0, "what an acknowledgement can list", LIST_MAX),
    _Fits("mesh_window", 0, "what an acknowledgement can list", LIST_MAX),
    _Fits("devices_per_user", 0, "half of what an outcome can list", LIST_MAX // 2),
    _Fits("bundle_items", 0, "what decodes", ITEMS_MAX),
)


def fits(topology: Topology) -> Iterator[Finding]:
    limits = topology.limits
    for low, overhead, high, number in _FITS:
        value, most = getattr(limits, low), getattr(limits, high) if number is None else number
        if value + overhead > most:
            plus = f" + {overhead}" if overhead else ""
            yield Finding(f"$.limits.{low}", f"{value}{plus} must be at most {high} ({most})")


def log(topology: Topology) -> Iterator[Finding]:
    limits = topology.limits
    least = log_bytes_min(limits.bundle_bytes)
    if limits.log_bytes < least:
        text = (
            f"{limits.log_bytes} must be at least {least}: a quarter of it is the stream of dead letters, which takes "
            f"records of bundle_bytes ({limits.bundle_bytes})"
        )
        yield Finding("$.limits.log_bytes", text)


def rate(topology: Topology) -> Iterator[Finding]:
    per_s = topology.limits.session_rate
    largest = max(FRAME_ITEMS_MAX, topology.limits.frame_bytes // SUBMIT_BYTES)
    paid_s = largest / per_s
    if paid_s >= CLIENT_GIVE_UP_S / 2:
        text = (
            f"At {per_s} a second the largest frame, which counts as {largest} messages, is acknowledged "
            f"after {paid_s:g} s; it must be less than {CLIENT_GIVE_UP_S / 2:g} s, half of what every client waits "
            "before it gives its link up: raise the rate"
        )
        yield Finding("$.limits.session_rate", text)
