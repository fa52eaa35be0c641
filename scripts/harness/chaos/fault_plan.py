"""The faults of a chaos run and their times: a plan made from a seed alone.

The kind of a fault is an action and its target:

    kill   SIGKILL                                        connector, transfer, writer, rest, redis, nats
    stop   SIGSTOP for longer than the lease, SIGCONT     the same
    term   SIGTERM; the supervisor starts it again        the same
    wipe   FLUSHALL                                       redis
    lock   a write transaction that blocks all others     sql (SQLite)
    kill   SIGKILL of a process of client applications    client

Faults overlap at random, with two exceptions: at most `STOPPED_MAX` processes are stopped at a time, and no other fault
overlaps the kinds in `ISOLATED_S`, so that their recovery can be measured.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import NamedTuple

ROLES = ("connector", "transfer", "writer", "rest")
SERVERS = ("redis", "nats")
ACTIONS = ("kill", "stop", "term")

KINDS = (
    *(f"{action}-{target}" for target in (*ROLES, *SERVERS) for action in ACTIONS),
    "wipe-redis",
    "lock-sql",
    "kill-client",
)

ISOLATED_S: dict[str, float] = {
    "kill-connector": 5.5,
    "kill-transfer": 5.5,
    "term-connector": 3.5,
    "term-transfer": 3.5,
}
"""Kinds with a promised recovery time, and the seconds after each without another fault."""
AFTEREFFECT_S = 10.0
"""Seconds that other faults may have effects: a dead writer's partitions move when its lease has ended."""
STOPPED_MAX = 2
LEASE_S = {"writer": 6.0, "sql": 6.0}
"""Lease of each target in seconds (`timers` of the topology)."""
OTHER_LEASE_S = 3.0

_FIRST_S, _LAST_S = 1.0, 1.5
"""No fault in the first second of a run, nor in the last 1.5 s; none lasts beyond them."""
_GAP_S = (0.4, 2.0)
_TIMES_MIN = 2


class Fault(NamedTuple):
    """One fault.  `draw` is a random number that chooses one of the running targets."""

    at_s: float
    kind: str
    draw: int
    duration_s: float
    """Seconds until SIGCONT or unlock, or until a killed client process starts again; 0 for other kinds."""

    @property
    def action(self) -> str:
        return self.kind.partition("-")[0]

    @property
    def target(self) -> str:
        return self.kind.partition("-")[2]


def plan(seed: int, seconds: float, kinds: Collection[str]) -> list[Fault]:
    """Return the faults of a run, sorted by time; the same for the same arguments.

    As many as fit: each kind twice first, then random ones.
    """
    random = Random(f"faults {seed}")
    faults: list[Fault] = []
    at, stopped_until, effects_until = _FIRST_S, [0.0] * STOPPED_MAX, 0.0
    for kind in _kinds_in_order(random, kinds, seconds):
        duration_s, isolated_s = _duration(random, kind), ISOLATED_S.get(kind, 0.0)
        stops = duration_s > 0 and kind != "kill-client"
        begin = max(at, effects_until) if isolated_s else max(at, min(stopped_until)) if stops else at
        if begin + duration_s > seconds - _LAST_S:
            continue  # a later kind may be shorter
        faults.append(Fault(round(begin, 3), kind, random.getrandbits(16), round(duration_s, 3)))
        if stops:
            stopped_until[stopped_until.index(min(stopped_until))] = begin + duration_s + 1.0
        at = begin + (isolated_s or random.uniform(*_GAP_S))
        if not isolated_s:
            effects_until = max(effects_until, begin + duration_s + AFTEREFFECT_S)
    return faults


def too_few(faults: Iterable[str], kinds: Collection[str]) -> list[str]:
    """Return the kinds that happened less than twice: too few to show anything."""
    times = Counter(faults)
    return [kind for kind in kinds if times[kind] < _TIMES_MIN]


def _kinds_in_order(random: Random, kinds: Collection[str], seconds: float) -> Sequence[str]:
    """Return more kinds than fit.  Isolated kinds stand together: each waits for the effects of earlier faults."""
    ordered: list[str] = []
    chosen = [kind for kind in KINDS if kind in kinds]
    rounds = 0
    while len(ordered) < 2 * seconds + len(chosen):
        isolated = [kind for kind in chosen if kind in ISOLATED_S]
        others = [kind for kind in chosen if kind not in ISOLATED_S]
        random.shuffle(isolated)
        random.shuffle(others)
        rounds += 1
        # An isolated kind takes the time of many others: twice is enough, unless there are no others.
        ordered += [*isolated, *others] if rounds <= _TIMES_MIN or not others else others
    return ordered


def _duration(random: Random, kind: str) -> float:
    action, _, what = kind.partition("-")
    if kind == "kill-client":
        return random.uniform(0.2, 3.0)
    if action not in ("stop", "lock"):
        return 0.0
    return LEASE_S.get(what, OTHER_LEASE_S) * random.uniform(1.2, 1.7)
