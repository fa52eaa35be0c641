"""The scenarios of `bounds.py`: attacks on a mesh, and the bounds that have to hold during each."""

import msgspec

from meshim.topology import Security, Topology
from scripts.harness.abuse.background_clients import Latency
from scripts.harness.mesh import local_mesh

P99_FLOOR_MS = 5.0
"""Ratios of p99 are against at least this: with few messages a smaller p99 is noise of the machine."""

COUNTED = "counted_"
"""A count with this prefix is how far a counter of all connectors together has risen."""


class Scenario(msgspec.Struct, frozen=True):
    """An attack, its users, duration and size; then the bounds.

    Two background clients exchange messages for `quiet_s` before the attack, during it, and for `quiet_s` again from
    `calm_s` after its end.
    """

    name: str
    """Of the attack, a function of `attacks.py`."""
    people: int = 2
    seconds: float = 8.0
    size: int = 0
    stored: int = 0
    """Messages in the offline queue of the first user, before the attack."""
    grown_mib: float = 64.0
    """Memory that each process of the mesh may take on."""
    p50: float = 8.0
    """Median latency of the background clients during the attack, over that before."""
    p99: float = 20.0
    """The same for the 99th percentile."""
    p99_after: float = 3.0
    """99th percentile after the attack, over that before."""
    files_left: int = 150
    """Descriptors that the connector may hold at the end of the attack beyond those before: attackers close none."""
    curve: bool = True
    transports: tuple[str, ...] = ("zeromq", "websocket")
    """Over which it is an attack."""
    quiet_s: float = 3.0
    calm_s: float = 3.0
    expected: tuple[tuple[str, float], ...] = ()
    """Counts of the attack with their minimum: an attack that did less proves nothing."""
    at_most: tuple[tuple[str, float], ...] = ()
    """Counts of the attack with their maximum: what the mesh may let through."""


def topology(*, curve: bool) -> Topology:
    """Return the topology of the mesh under attack."""
    return msgspec.structs.replace(local_mesh.topology(), security=Security(curve=curve))


STORED = 100_000
LOGINS = 5_000
PASSWORDS = 200
"""A password hash takes 27 ms of a core: 5,000 would take minutes, and show the same."""

GROUPS: dict[str, tuple[Scenario, ...]] = {
    "never-reads": (
        Scenario(
            "never_reads", people=20, seconds=15.0, size=16_384, grown_mib=96,
            expected=(("sent", 1_000), ("connections", 20)),
        ),
    ),
    "floods": (
        Scenario("window_overrun", size=4_096, expected=(("sent", 200),)),
        Scenario(
            "endless_submits", people=4, size=128, expected=(("submitted", 5_000),), at_most=(("submitted", 80_000),),
        ),
        Scenario(
            "free_frames", expected=(("sent", 400), ("connections", 2)), at_most=(("counted_greeted", 20_000),),
        ),
        Scenario("huge_frames", expected=(("sent", 2),)),
        Scenario("endless_parts", grown_mib=96, curve=False, transports=("zeromq",), expected=(("sent_mib", 64),)),
        Scenario(
            "unfinished_messages", size=200, grown_mib=96, curve=False, transports=("zeromq",),
            expected=(("connections", 50), ("sent_mib", 64)),
        ),
        Scenario(
            "undecodable_frames", expected=(("sent", 1_000), ("counted_malformed", 100)),
            at_most=(("counted_malformed", 50_000),),
        ),
        Scenario(
            "reconnecting_strangers", size=32, grown_mib=160, p99=40.0, files_left=2_500, transports=("websocket",),
            expected=(("connections", 2_000),),
            at_most=(("counted_websocket_opened", 30_000), ("counted_malformed", 30_000)),
        ),
        Scenario(
            "repeated_greetings", size=20, files_left=2_000,
            expected=(("greetings", 300), ("counted_greetings_limited", 100)), at_most=(("counted_greeted", 260),),
        ),
        Scenario("never_greets", seconds=30.0, size=3_000, grown_mib=160, expected=(("connections", 3_000),)),
    ),
    "rest": (
        Scenario(
            "slow_requests", seconds=20.0, size=6_000, grown_mib=128, transports=("zeromq",),
            expected=(("connections", 6_000), ("answered", 20)), at_most=(("failed", 0), ("slowest_s", 2.0)),
        ),
        Scenario(
            "endless_headers", size=8, transports=("zeromq",),
            expected=(("connections", 100), ("answered", 20)), at_most=(("failed", 0), ("slowest_s", 2.0)),
        ),
    ),
    "stored": (Scenario("large_sync", seconds=90.0, size=STORED, stored=STORED, expected=(("synced", STORED),)),),
    "logins": (
        Scenario(
            "greeting_storm", people=LOGINS, seconds=20.0, grown_mib=400, p50=8.0, p99=200.0, files_left=2 * LOGINS,
            expected=(("welcomed", LOGINS),),
        ),
        Scenario(
            "login_storm", seconds=40.0, size=PASSWORDS, transports=("zeromq",), grown_mib=128, p50=8.0, p99=200.0,
            expected=(("logged_in", PASSWORDS),),
        ),
    ),
}  # fmt: skip
"""The scenarios by their name on the command line."""


def broken_bounds(
    scenario: Scenario, grown: dict[str, float], before: Latency, during: Latency, after: Latency, cut: int,
    counts: dict[str, float],
) -> list[str]:  # fmt: skip
    """Return a sentence for each broken bound; `grown` is MiB by process, `cut` the number of lost connections."""
    sentences = [
        f"{name} grew by {mib:g} MiB, {scenario.grown_mib:g} are allowed"
        for name, mib in grown.items()
        if mib > scenario.grown_mib
    ]
    for what, most, now_ms, was_ms in (
        ("p50 during", scenario.p50, during.p50_ms, before.p50_ms),
        ("p99 during", scenario.p99, during.p99_ms, max(before.p99_ms, P99_FLOOR_MS)),
        ("p99 after", scenario.p99_after, after.p99_ms, max(before.p99_ms, P99_FLOOR_MS)),
    ):
        if now_ms > most * was_ms:
            sentences.append(f"{what} the attack is {now_ms:g} ms: more than {most:g} times {was_ms:g} ms")
    sentences.extend(
        f"the background clients sent nothing {when} the attack: it proves nothing"
        for when, latency in (("before", before), ("during", during), ("after", after))
        if not latency.messages
    )
    if cut:
        sentences.append(f"a background client was cut {cut} times")
    sentences.extend(
        f"only {counts.get(name, 0):g} {name}, {least:g} were meant: it proves nothing"
        for name, least in scenario.expected
        if counts.get(name, 0) < least
    )
    sentences.extend(
        f"{counts.get(name, 0):g} {name} were let through, {most:g} are allowed"
        for name, most in scenario.at_most
        if counts.get(name, 0) > most
    )
    return sentences
