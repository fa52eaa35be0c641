"""Checks of timers: how they depend on each other, and on what every client waits.

Relations between two timers are a table.
"""

from collections.abc import Iterator
from typing import NamedTuple

from meshim.protocol.flush_queue import TICK_S
from meshim.protocol.timeouts import CLIENT_RESEND_S
from meshim.topology.finding import Finding
from meshim.topology.structs import Topology

_DETECTION_S_MAX = 5.0
"""A dead process must be noticed within it: lease and silence together."""
_SILENCE_S_MAX = ((1 << 31) - 1) // 1000
_PRESENCE_ANSWER_S_MAX = 3.0
"""Between two answers of Redis: it is asked every second and has two seconds for its answer."""


class _Below(NamedTuple):
    """`factor` times the timer `low` must be less than the timer `high`, or else."""

    factor: int
    low: str
    high: str
    otherwise: str


_BELOW = (
    _Below(2, "lease_renew_s", "lease_ttl_s", "one lost renewal ends a lease"),
    _Below(1, "lease_ttl_s", "partition_lease_s", "a partition changes hands before its writer counts as dead"),
    _Below(2, "mesh_heartbeat_s", "mesh_silence_s", "one lost heartbeat cuts a link"),
    _Below(50, "outcome_delay_s", "delivery_timeout_s", "senders wait longer for outcomes than deliveries take"),
    _Below(2, "client_heartbeat_s", "client_silence_s", "one lost heartbeat cuts a client"),
)
_TIMES = {1: "Its value of", 2: "Twice", 50: "Fifty times"}


def timers_below(topology: Topology) -> Iterator[Finding]:
    for factor, low, high, otherwise in _BELOW:
        low_s, high_s = getattr(topology.timers, low), getattr(topology.timers, high)
        if factor * low_s >= high_s:
            text = f"{_TIMES[factor]} {low_s:g} s must be less than {high} ({high_s:g} s), or {otherwise}"
            yield Finding(f"$.timers.{low}", text)


def client_timeouts(topology: Topology) -> Iterator[Finding]:
    for timer, still in (("delivery_timeout_s", "delivering"), ("publish_timeout_s", "storing")):
        value_s = getattr(topology.timers, timer)
        if value_s >= CLIENT_RESEND_S:
            text = (
                f"Its value of {value_s:g} s must be less than what every client waits ({CLIENT_RESEND_S:g} s), "
                f"or clients resend what the mesh is still {still}"
            )
            yield Finding(f"$.timers.{timer}", text)


def acknowledgements(topology: Topology) -> Iterator[Finding]:
    acknowledged_s, give_up_s = topology.timers.ack_delay_s + TICK_S, topology.timers.delivery_timeout_s
    if 2 * acknowledged_s >= give_up_s:
        text = (
            f"An acknowledgement may take {acknowledged_s:g} s, it and the {TICK_S:g} s between two looks at the "
            f"clock; twice that must be less than delivery_timeout_s ({give_up_s:g} s), or links end that only wait "
            "for it"
        )
        yield Finding("$.timers.ack_delay_s", text)


def silence(topology: Topology) -> Iterator[Finding]:
    silence_s, silence_max_s = topology.timers.client_silence_s, topology.timers.client_silence_max_s
    if silence_max_s < silence_s:
        text = (
            f"Its value of {silence_max_s:g} s must be at least client_silence_s ({silence_s:g} s), which every client "
            "is granted"
        )
        yield Finding("$.timers.client_silence_max_s", text)
    if silence_max_s > _SILENCE_S_MAX:
        text = (
            f"Its value of {silence_max_s:g} s must be at most {_SILENCE_S_MAX} s, since Welcome names it in "
            "milliseconds of 31 bits"
        )
        yield Finding("$.timers.client_silence_max_s", text)


def detection(topology: Topology) -> Iterator[Finding]:
    detection_s = topology.timers.lease_ttl_s + topology.timers.mesh_silence_s
    if detection_s >= _DETECTION_S_MAX:
        text = (
            f"Together with mesh_silence_s it is {detection_s:g} s and must be less than {_DETECTION_S_MAX:g} s, "
            "or a dead process is noticed too late"
        )
        yield Finding("$.timers.lease_ttl_s", text)


def presence_silence(topology: Topology) -> Iterator[Finding]:
    silence_s = topology.timers.presence_silence_s
    if silence_s <= _PRESENCE_ANSWER_S_MAX:
        text = (
            f"Its value of {silence_s:g} s must be more than {_PRESENCE_ANSWER_S_MAX:g} s, as so much may "
            "pass between two answers of Redis"
        )
        yield Finding("$.timers.presence_silence_s", text)
