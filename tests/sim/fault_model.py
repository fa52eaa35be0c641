"""The fault model of the simulation, and the schedule of faults that a seed draws from it.

`FaultModel` says which kinds of faults there may be, how many, and how bad the links are.  Each seed takes only some of
the kinds, since faults hide each other (Groce et al., *Swarm Testing*, ISSTA 2012), and draws a schedule: what happens
when, to which target, for how long.  The schedule is drawn before the run, so that it can be printed and played again.
"""

from random import Random
from typing import NamedTuple

import msgspec

KINDS: dict[str, tuple[float, float]] = {
    # kill -9 and restart; seconds until the restart
    "kill-connector": (0.2, 2.0),
    "kill-transfer": (0.2, 2.0),
    "kill-writer": (0.2, 2.0),
    "kill-device": (0.1, 1.0),
    # kill -9 of the next device that syncs, or of its connector, during the sync; seconds until the trap is removed
    "trap-device": (2.0, 8.0),
    "trap-connector": (2.0, 8.0),
    # SIGTERM and restart
    "stop-connector": (0.2, 2.0),
    "stop-transfer": (0.2, 2.0),
    "stop-writer": (0.2, 2.0),
    # SIGSTOP, then SIGCONT: shorter and longer than leases
    "pause-connector": (0.5, 9.0),
    "pause-transfer": (0.5, 9.0),
    "pause-writer": (0.5, 12.0),
    "pause-device": (0.5, 9.0),
    # no frame passes between two processes, in both directions or one
    "cut-device": (0.5, 8.0),
    "cut-device-one-way": (0.5, 8.0),
    "cut-transfer": (0.5, 6.0),
    "cut-transfer-one-way": (0.5, 6.0),
    # servers: unreachable, stopped, or restarted with no or old data
    "redis-away": (0.5, 8.0),
    "redis-stalled": (0.3, 4.0),
    "redis-wiped": (0.1, 3.0),
    "redis-old": (0.1, 3.0),
    "nats-away": (0.5, 8.0),
    "nats-stalled": (0.3, 4.0),
    "sql-away": (0.5, 10.0),
    "sql-stalled": (0.3, 6.0),
    "calls-lost": (1.0, 8.0),
    "cut-redis": (0.5, 8.0),
    "cut-nats": (0.5, 8.0),
    "cut-sql": (0.5, 8.0),
    # clocks jump, and stay wrong
    "clock-redis": (0.0, 0.0),
    "clock-sql": (0.0, 0.0),
    # state files and users
    "lost-file": (0.0, 4.0),
    "taken-over": (0.0, 0.0),
    "away": (0.2, 8.0),
    # who holds a device: a logout; a second connection with the same token, for so long, that ends with a Close or not
    "logout": (0.0, 0.0),
    "second-connection": (0.0, 4.0),
    # two new devices of one user log in at once; how long one of them stays away before it connects
    "register-two": (0.5, 8.0),
    # a user with a client of its own attacks; for how long
    "hostile": (0.5, 4.0),
}
"""Every kind of fault, with the minimum and maximum of its duration in seconds."""
KINDS_LEAST = 3
"""With fewer kinds, most faults of a seed would hit a server that is away already."""


class FaultModel(msgspec.Struct, frozen=True):
    """The faults that a run may have.  Shares are of frames or calls; times are in seconds."""

    kinds: tuple[str, ...] = tuple(KINDS)
    count: tuple[int, int] = (5, 12)
    """Minimum and maximum number of faults of a run."""
    first_s: float = 2.0
    """No fault begins before this time."""
    last_s: float = 22.0
    """All faults begin and end between `first_s` and this time."""
    kinds_share: float = 0.45
    """Share of the kinds that a seed takes, at least `KINDS_LEAST` of them if there are so many."""
    breaks: float = 0.01
    silence: float = 0.002
    full: float = 0.005
    delay_s: float = 0.02
    calls_lost: float = 0.1
    replayed: float = 0.5
    clock_jump_s: float = 20.0


class Fault(NamedTuple):
    """One fault.  `target` and `other` choose its targets: each is taken modulo the number of candidates."""

    at: float
    lasts_s: float
    kind: str
    target: int
    other: int

    def __str__(self) -> str:
        return f"{self.at:7.3f} s  {self.kind:<22} for {self.lasts_s:6.3f} s  target {self.target}, {self.other}"


class Schedule(NamedTuple):
    """The faults of a run: those of all links, and single faults by time."""

    breaks: float
    silence: float
    full: float
    delay_s: float
    calls_lost: float
    replayed: float
    clock_jump_s: float
    ends: float
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        links = f"links: breaks {self.breaks:.4f}, silence {self.silence:.4f}, full {self.full:.4f}"
        return "\n".join([f"{links}, delay {self.delay_s:.3f} s", *map(str, self.faults)])


def schedule_of(faults: FaultModel, random: Random) -> Schedule:
    """Draw a schedule from a fault model."""
    kinds = [kind for kind in faults.kinds if random.random() < faults.kinds_share]
    if len(kinds) < KINDS_LEAST:
        kinds = random.sample(faults.kinds, min(KINDS_LEAST, len(faults.kinds)))
    drawn = []
    for _ in range(random.randint(*faults.count)):
        kind = random.choice(kinds)
        at = random.uniform(faults.first_s, faults.last_s)
        lasts_s = min(random.uniform(*KINDS[kind]), faults.last_s - at)
        drawn.append(Fault(at, lasts_s, kind, random.randrange(1 << 16), random.randrange(1 << 16)))
    has_link_faults = random.random() < 0.5
    share = random.random() if has_link_faults else 0.0
    return Schedule(
        breaks=faults.breaks * share,
        silence=faults.silence * share,
        full=faults.full * share,
        delay_s=max(0.002, faults.delay_s * random.random()),
        calls_lost=faults.calls_lost,
        replayed=faults.replayed,
        clock_jump_s=faults.clock_jump_s,
        ends=faults.last_s,
        faults=tuple(sorted(drawn)),
    )
