"""What can go wrong, how often, and what a seed makes of it.

`Faults` is the model: which faults there may be, and how bad the weather is.  Each seed takes some of them only, since
faults hide each other (Groce et al., *Swarm Testing*, ISSTA 2012), and makes a schedule: what happens when, to whom,
for how long.  The schedule is made before anything runs, so that it can be printed, read, and played again.
"""

from random import Random
from typing import NamedTuple

import msgspec

KINDS: dict[str, tuple[float, float]] = {
    # kill -9 and start again; how long it is gone
    "kill-connector": (0.2, 2.0),
    "kill-transfer": (0.2, 2.0),
    "kill-writer": (0.2, 2.0),
    "kill-device": (0.1, 1.0),
    # kill -9 of who syncs next, while it does; how long the trap is set
    "trap-device": (2.0, 8.0),
    "trap-connector": (2.0, 8.0),
    # SIGTERM and start again
    "stop-connector": (0.2, 2.0),
    "stop-transfer": (0.2, 2.0),
    "stop-writer": (0.2, 2.0),
    # SIGSTOP, SIGCONT: shorter and longer than leases
    "pause-connector": (0.5, 9.0),
    "pause-transfer": (0.5, 9.0),
    "pause-writer": (0.5, 12.0),
    "pause-device": (0.5, 9.0),
    # what one sends does not reach the other
    "cut-device": (0.5, 8.0),
    "cut-device-one-way": (0.5, 8.0),
    "cut-transfer": (0.5, 6.0),
    "cut-transfer-one-way": (0.5, 6.0),
    # servers: gone, or stopped, or with another memory
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
    # clocks jump: for good
    "clock-redis": (0.0, 0.0),
    "clock-sql": (0.0, 0.0),
    # people
    "lost-file": (0.0, 4.0),
    "taken-over": (0.0, 0.0),
    "away": (0.2, 8.0),
}
"""Every kind of fault, and for how many seconds it lasts, at least and at most."""
KINDS_LEAST = 3
"""Where a seed takes fewer, most of their faults find a server that is away already."""


class Faults(msgspec.Struct, frozen=True):
    """The fault model of a run.  Shares are of frames or calls, times are seconds."""

    kinds: tuple[str, ...] = tuple(KINDS)
    count: tuple[int, int] = (5, 12)
    """Least and most faults of a run."""
    first_s: float = 2.0
    """Before it everything works."""
    over: float = 22.0
    """All faults begin and end between `first_s` and that."""
    kinds_share: float = 0.45
    """Of the kinds that a seed takes, three at least where there are as many."""
    loss: float = 0.05
    doubling: float = 0.05
    overtaking: float = 0.1
    delay_s: float = 0.02
    calls_lost: float = 0.1
    replayed: float = 0.5
    clock_jump_s: float = 20.0


class Fault(NamedTuple):
    """One fault.  `target` is a number that is taken modulo what there is to choose from; so is `other`."""

    at: float
    lasts_s: float
    kind: str
    target: int
    other: int

    def __str__(self) -> str:
        return f"{self.at:7.3f} s  {self.kind:<22} for {self.lasts_s:6.3f} s  target {self.target}, {self.other}"


class Schedule(NamedTuple):
    """What a seed does: the weather and the faults, in order."""

    loss: float
    doubling: float
    overtaking: float
    delay_s: float
    calls_lost: float
    replayed: float
    clock_jump_s: float
    ends: float
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        weather = f"weather: loss {self.loss:.3f}, doubling {self.doubling:.3f}, overtaking {self.overtaking:.3f}"
        return "\n".join([f"{weather}, delay {self.delay_s:.3f} s", *map(str, self.faults)])


def schedule_of(faults: Faults, random: Random) -> Schedule:
    """What happens under this model, drawn from `random`."""
    kinds = [kind for kind in faults.kinds if random.random() < faults.kinds_share]
    if len(kinds) < KINDS_LEAST:
        kinds = random.sample(faults.kinds, min(KINDS_LEAST, len(faults.kinds)))
    happening = []
    for _ in range(random.randint(*faults.count)):
        kind = random.choice(kinds)
        at = random.uniform(faults.first_s, faults.over)
        lasts_s = min(random.uniform(*KINDS[kind]), faults.over - at)
        happening.append(Fault(at, lasts_s, kind, random.randrange(1 << 16), random.randrange(1 << 16)))
    stormy = random.random() < 0.5
    share = random.random() if stormy else 0.0
    return Schedule(
        loss=faults.loss * share,
        doubling=faults.doubling * share,
        overtaking=faults.overtaking * share,
        delay_s=max(0.002, faults.delay_s * random.random()),
        calls_lost=faults.calls_lost,
        replayed=faults.replayed,
        clock_jump_s=faults.clock_jump_s,
        ends=faults.over,
        faults=tuple(sorted(happening)),
    )
