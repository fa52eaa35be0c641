"""The ordeals of `bounds.py`: what is done to a mesh, for how long, and what it may cost."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from meshim.errors import MeshimError
from meshim.topology import Security, Topology
from scripts.harness.abuse.attacks import Means, attack
from scripts.harness.abuse.background_clients import Latency, Talked, talk
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.process_stats import api, files, processes, watched
from scripts.harness.mesh.users import connectors, population

END_S = 30.0
P99_FLOOR_MS = 5.0
"""A tail of a few messages below this is noise of the machine: ratios are against at least so much."""


class Ordeal(NamedTuple):
    """An attack, how many people take part, how long and how large it is; then what it may cost.

    `grown_mib` bounds the memory that a process of the mesh takes on; `p50` and `p99` are the bystanders' latencies
    during the attack over those before it, `p99_after` those after it.  The two talk for `quiet_s` before the attack,
    and again `calm_s` after its end.
    """

    name: str
    people: int = 2
    seconds: float = 8.0
    size: int = 0
    stored: int = 0
    grown_mib: float = 64.0
    p50: float = 8.0
    p99: float = 20.0
    p99_after: float = 3.0
    files_left: int = 150
    """Descriptors that the connector may hold beyond those before, at the end: who attacks closes none."""
    curve: bool = True
    quiet_s: float = 3.0
    calm_s: float = 3.0
    expected: tuple[tuple[str, float], ...] = ()
    """Counts of the attack, each with the least it has to be: an attack that did nothing proves nothing."""
    at_most: tuple[tuple[str, float], ...] = ()
    """The same with the most that may be let through."""


def topology(*, curve: bool) -> Topology:
    """The mesh that has to endure them."""
    return msgspec.structs.replace(local_mesh.topology(), security=Security(curve=curve))


STORED = 100_000
LOGINS = 5_000
PASSWORDS = 200
"""A hash takes 27 ms of a core: 5,000 would take minutes, and show the same."""

GROUPS: dict[str, tuple[Ordeal, ...]] = {
    "never-reads": (
        Ordeal(
            "never_reads", people=20, seconds=15.0, size=16_384, grown_mib=96,
            expected=(("sent", 1_000), ("connections", 20)),
        ),
    ),
    "floods": (
        Ordeal("over_the_window", size=4_096, expected=(("thrown", 200),)),
        Ordeal("early_frames", people=40, expected=(("thrown", 200),)),
        Ordeal(
            "endless_submits", people=4, size=128, expected=(("submitted", 5_000),), at_most=(("submitted", 80_000),),
        ),
        Ordeal("huge_frames", expected=(("thrown", 2),)),
        Ordeal("endless_parts", grown_mib=400, curve=False, expected=(("poured_mib", 64),)),
        Ordeal("nonsense", expected=(("thrown", 1_000),), at_most=(("thrown", 50_000),)),
        Ordeal("never_greets", seconds=30.0, size=3_000, grown_mib=160, expected=(("connections", 3_000),)),
    ),
    "stored": (Ordeal("syncs", seconds=90.0, size=STORED, stored=STORED, expected=(("synced", STORED),)),),
    "logins": (
        Ordeal(
            "everybody_greets", people=LOGINS, seconds=20.0, grown_mib=400, p50=8.0, p99=200.0, files_left=2 * LOGINS,
            expected=(("welcomed", LOGINS),),
        ),
        Ordeal(
            "everybody_logs_in", seconds=40.0, size=PASSWORDS, grown_mib=128, p50=8.0, p99=200.0,
            expected=(("logged_in", PASSWORDS),),
        ),
    ),
}  # fmt: skip


async def endure(data: Path, ordeal: Ordeal) -> dict[str, Any]:
    """Do it; what was measured, and as `broken` the sentences about bounds that did not hold."""
    living = await connectors(data)
    async with population(data) as made:
        people = await made.people(ordeal.people, ordeal.name.replace("_", "-"))
        pair = await made.people(2, "bystander")
        await made.befriend(*pair)
        if ordeal.people <= 100:
            for one, other in zip(people[::2], people[1::2], strict=True):
                await made.befriend(one, other)
        if ordeal.stored:
            await made.store(people[1], people[0], ordeal.stored, b"x" * 500)
    means = Means(living[0], people, ordeal.seconds, ordeal.size, api(data))
    pids = processes(data)
    async with _process(talk, living, (pair[0], pair[1])) as talking:
        await _said(talking)
        talk_from = time.monotonic() + 0.5  # after the first look-ups
        await asyncio.sleep(0.5 + ordeal.quiet_s)
        attacked = pids[living[0].name]
        files_before = files(attacked)
        with watched(pids) as memory:
            async with _process(attack, ordeal.name, means) as attacking:
                began = time.monotonic()
                # Everything that the attacker holds, before it lets go.
                await asyncio.sleep(ordeal.seconds - 0.5 if "connections" in dict(ordeal.expected) else 0.0)
                files_left = files(attacked) - files_before
                counts = await _said(attacking, ordeal.seconds + END_S)
                ended = time.monotonic()
            await asyncio.sleep(ordeal.calm_s)
            calm = time.monotonic()
            await asyncio.sleep(ordeal.quiet_s)
        talking.send("enough")
        talked: Talked = await _said(talking)
    before = talked.between(talk_from, began)
    during = talked.between(began, ended)
    after = talked.between(calm, time.monotonic())
    left = memory.now()
    return {
        "ordeal": ordeal.name,
        "broken": broken(ordeal, memory.grown, before, during, after, talked.cut, counts)
        + [f"{name} ended" for name, pid in pids.items() if processes(data).get(name) != pid]
        + [f"{files_left} descriptors were left, {ordeal.files_left} are allowed"] * (files_left > ordeal.files_left),
        "counts": counts,
        "rss_mib": memory.most,
        "grown_mib": memory.grown,
        "files_left": files_left,
        "kept_mib": {name: round(left[name] - memory.before[name], 1) for name in left},
        "before": before._asdict(),
        "during": during._asdict(),
        "after": after._asdict(),
        "ratio_p50": _ratio(during.p50_ms, before.p50_ms),
        "ratio_p99": _ratio(during.p99_ms, before.p99_ms),
        "bystanders_cut": talked.cut,
    }


def _ratio(during_ms: float, before_ms: float) -> float:
    return round(during_ms / before_ms, 1) if before_ms else 0.0


def broken(
    ordeal: Ordeal, grown: dict[str, float], before: Latency, during: Latency, after: Latency, cut: int,
    counts: dict[str, float],
) -> list[str]:  # fmt: skip
    sentences = [
        f"{name} grew by {mib:g} MiB, {ordeal.grown_mib:g} are allowed"
        for name, mib in grown.items()
        if mib > ordeal.grown_mib
    ]
    for what, most, now_ms, was_ms in (
        ("p50 during", ordeal.p50, during.p50_ms, before.p50_ms),
        ("p99 during", ordeal.p99, during.p99_ms, max(before.p99_ms, P99_FLOOR_MS)),
        ("p99 after", ordeal.p99_after, after.p99_ms, max(before.p99_ms, P99_FLOOR_MS)),
    ):
        if now_ms > most * was_ms:
            sentences.append(f"the bystanders' {what} it is {now_ms:g} ms: more than {most:g} times {was_ms:g} ms")
    sentences.extend(
        f"the bystanders said nothing {when} it: it proves nothing"
        for when, latency in (("before", before), ("during", during), ("after", after))
        if not latency.messages
    )
    if cut:
        sentences.append(f"a bystander was cut {cut} times")
    sentences.extend(
        f"only {counts.get(name, 0):g} {name}, {least:g} were meant: it proves nothing"
        for name, least in ordeal.expected
        if counts.get(name, 0) < least
    )
    sentences.extend(
        f"{counts.get(name, 0):g} {name} were let through, {most:g} are allowed"
        for name, most in ordeal.at_most
        if counts.get(name, 0) > most
    )
    return sentences


@asynccontextmanager
async def _process(body: Callable[..., None], *arguments: object) -> AsyncIterator[Connection]:
    """Run something in a process; the connection to it."""
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=body, args=(theirs, *arguments), daemon=True)
    await asyncio.to_thread(process.start)
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
        process.close()
        ours.close()


async def _said(process: Connection, within_s: float = END_S) -> Any:
    if not await asyncio.to_thread(process.poll, within_s):
        raise MeshimError("A process of this measurement did not answer: is the machine busy?")
    try:
        return process.recv()
    except EOFError:
        raise MeshimError("A process of this measurement ended by itself: its last words are above.") from None
