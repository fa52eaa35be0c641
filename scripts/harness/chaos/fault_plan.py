"""What a chaos run breaks, and when: a plan made from a seed alone.

A fault is a deed done to something, and its kind is named after both:

    kill   SIGKILL                                        connector, transfer, writer, rest, redis, nats
    stop   SIGSTOP for longer than the lease, SIGCONT     the same
    term   SIGTERM, and whoever supervises it starts it again
    wipe   redis forgets everything, and goes on
    lock   nobody can write to the SQLite database for a while
    kill   client: SIGKILL of a process with many client applications

Faults overlap at random, with two exceptions: at most `STOPPED_MOST` stand still at a time, and around the ones whose
recovery is promised (`LONE`) nothing else is broken, so that it can be measured.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import NamedTuple

ROLES = ("connector", "transfer", "writer", "rest")
SERVERS = ("redis", "nats")
DEEDS = ("kill", "stop", "term")

KINDS = (
    *(f"{deed}-{what}" for what in (*ROLES, *SERVERS) for deed in DEEDS),
    "wipe-redis",
    "lock-sql",
    "kill-client",
)

LONE: dict[str, float] = {"kill-connector": 5.5, "kill-transfer": 5.5, "term-connector": 3.5, "term-transfer": 3.5}
"""Kinds of which it is promised how soon they are over, and for how many seconds nothing else is broken."""
AFTERMATH_S = 10.0
"""How long other faults may be felt: the partitions of a dead writer are somebody else's when its lease has ended."""
STOPPED_MOST = 2
LEASE_S = {"writer": 6.0, "sql": 6.0}
"""How long the lease of a thing lasts that stands still (`timers` of the topology); 3 s for all others."""
OTHER_LEASE_S = 3.0

_FIRST_S, _LAST_S = 1.0, 1.5
"""No fault at the very begin of a run, nor at its end, and none lasts so long."""
_GAP_S = (0.4, 2.0)
_TIMES_AT_LEAST = 2


class Fault(NamedTuple):
    """One thing to break.  `dice` chooses among those of its kind that run when it is time."""

    at_s: float
    kind: str
    dice: int
    lasts_s: float
    """How long it stands still, or a client application stays away; 0 where nothing waits for us."""

    @property
    def deed(self) -> str:
        return self.kind.partition("-")[0]

    @property
    def what(self) -> str:
        return self.kind.partition("-")[2]


def plan(seed: int, seconds: float, kinds: Collection[str]) -> list[Fault]:
    """The faults of a run, in order; the same for the same arguments.

    As many as there is time for: first each kind twice, then any.
    """
    random = Random(f"faults {seed}")
    faults: list[Fault] = []
    at, still, felt_until = _FIRST_S, [0.0] * STOPPED_MOST, 0.0
    for kind in _in_order(random, kinds, seconds):
        lasts_s, quiet_s = _lasting(random, kind), LONE.get(kind, 0.0)
        stands_still = lasts_s > 0 and kind != "kill-client"
        begin = max(at, felt_until) if quiet_s else max(at, min(still)) if stands_still else at
        if begin + lasts_s > seconds - _LAST_S:
            continue  # another may be shorter
        faults.append(Fault(round(begin, 3), kind, random.getrandbits(16), round(lasts_s, 3)))
        if stands_still:
            still[still.index(min(still))] = begin + lasts_s + 1.0
        at = begin + (quiet_s or random.uniform(*_GAP_S))
        if not quiet_s:
            felt_until = max(felt_until, begin + lasts_s + AFTERMATH_S)
    return faults


def too_few(faults: Iterable[str], kinds: Collection[str]) -> list[str]:
    """The kinds out of `kinds` that were not done often enough to show anything."""
    times = Counter(faults)
    return [kind for kind in kinds if times[kind] < _TIMES_AT_LEAST]


def _in_order(random: Random, kinds: Collection[str], seconds: float) -> Sequence[str]:
    """More kinds than there is time for.  Lone ones stand together, since they wait for what was before them."""
    ordered: list[str] = []
    chosen = [kind for kind in KINDS if kind in kinds]
    rounds = 0
    while len(ordered) < 2 * seconds + len(chosen):
        lone = [kind for kind in chosen if kind in LONE]
        others = [kind for kind in chosen if kind not in LONE]
        random.shuffle(lone)
        random.shuffle(others)
        rounds += 1
        # They take the time of many others, so twice is enough where there are any.
        ordered += [*lone, *others] if rounds <= _TIMES_AT_LEAST or not others else others
    return ordered


def _lasting(random: Random, kind: str) -> float:
    deed, _, what = kind.partition("-")
    if kind == "kill-client":
        return random.uniform(0.2, 3.0)
    if deed not in ("stop", "lock"):
        return 0.0
    return LEASE_S.get(what, OTHER_LEASE_S) * random.uniform(1.2, 1.7)
