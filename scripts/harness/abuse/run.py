"""Runs the scenarios of `bounds.py`: an attack on the first connector while two background clients talk through it.

Measured are the peak memory of every process of the mesh beyond its baseline, and the latency of the background
clients before, during and after the attack, compared within the same run.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from scripts.harness.abuse.attacks import AttackOptions, attack
from scripts.harness.abuse.background_clients import Conversation, exchange_messages
from scripts.harness.abuse.scenarios import COUNTED, Scenario, broken_bounds, topology
from scripts.harness.abuse.worker import END_S, progress, receive, worker
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.process_stats import (
    MemoryPeak,
    connector_counters,
    open_files,
    rest_url,
    role_pids,
    watch_memory,
)
from scripts.harness.mesh.users import MeshUser, living_connectors, user_factory

WARM_UP_S = 0.5
"""Messages of this first time do not count: the transfers look up the two users in Redis."""


def run_all(folder: Path, scenarios: Sequence[Scenario], transport: str) -> list[dict[str, Any]]:
    """Run the scenarios, those with CURVE on one mesh and those without on another; return a result for each.

    Progress goes to stderr.  Raises MeshimError when a mesh or a process of the measurement fails.
    """
    results: list[dict[str, Any]] = []
    for curve in (True, False):
        chosen = [scenario for scenario in scenarios if scenario.curve is curve]
        if not chosen:
            continue
        mesh_folder = folder / f"curve-{curve}"
        mesh_folder.mkdir()
        with local_mesh.running(mesh_folder, topology(curve=curve)):
            for scenario in chosen:
                with progress(f"{scenario.name} ({len(results) + 1} of {len(scenarios)})"):
                    results.append(asyncio.run(run(mesh_folder / "data", scenario, transport)))
    return results


async def run(data: Path, scenario: Scenario, transport: str = "zeromq") -> dict[str, Any]:
    """Run one scenario on the mesh of a data folder.

    Returns the figures, and as `broken` a sentence for each bound that did not hold.
    """
    connectors = await living_connectors(data)
    if transport == "websocket":
        connectors = [msgspec.structs.replace(each, endpoint="", key="") for each in connectors]
    users, pair = await _create_users(data, scenario)
    options = AttackOptions(connectors[0], users, scenario.seconds, scenario.size, rest_url(data))
    pids = role_pids(data)
    async with worker(exchange_messages, connectors, pair) as background:
        await receive(background)
        measured_from = time.monotonic() + WARM_UP_S
        await asyncio.sleep(WARM_UP_S + scenario.quiet_s)
        counted = connector_counters(data)
        with watch_memory(pids) as memory:
            began = time.monotonic()
            counts, files_left = await _attack(scenario, options, pids[connectors[0].name])
            ended = time.monotonic()
            await asyncio.sleep(scenario.calm_s)
            calm = time.monotonic()
            await asyncio.sleep(scenario.quiet_s)
        background.send("stop")
        conversation: Conversation = await receive(background)
    counts |= _counted(scenario, counted, connector_counters(data))
    before = conversation.between(measured_from, began)
    during = conversation.between(began, ended)
    after = conversation.between(calm, time.monotonic())
    broken = broken_bounds(scenario, memory.growth, before, during, after, conversation.cut, counts)
    broken += [f"{name} ended" for name, pid in pids.items() if role_pids(data).get(name) != pid]
    if files_left > scenario.files_left:
        broken.append(f"{files_left} descriptors were left, {scenario.files_left} are allowed")
    return {
        "scenario": scenario.name,
        "transport": transport,
        "broken": broken,
        "counts": counts,
        **_memory_figures(memory),
        "files_left": files_left,
        "before": before._asdict(),
        "during": during._asdict(),
        "after": after._asdict(),
        "ratio_p50": _ratio(during.p50_ms, before.p50_ms),
        "ratio_p99": _ratio(during.p99_ms, before.p99_ms),
        "background_cut": conversation.cut,
    }


def _counted(scenario: Scenario, before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Return how far the counters have risen for which the scenario has bounds."""
    names = {name for name, _ in (*scenario.expected, *scenario.at_most) if name.startswith(COUNTED)}
    return {name: after[name.removeprefix(COUNTED)] - before[name.removeprefix(COUNTED)] for name in names}


def _memory_figures(memory: MemoryPeak) -> dict[str, dict[str, float]]:
    """Return MiB by process: at the peak, the growth to the peak, and what is still kept of that now."""
    kept = {name: round(mib - memory.baseline[name], 1) for name, mib in memory.current().items()}
    return {"rss_mib": memory.peak, "grown_mib": memory.growth, "kept_mib": kept}


def _ratio(during_ms: float, before_ms: float) -> float:
    return round(during_ms / before_ms, 1) if before_ms else 0.0


async def _create_users(data: Path, scenario: Scenario) -> tuple[Sequence[MeshUser], tuple[MeshUser, MeshUser]]:
    """Create the users of the attack, friends in pairs unless there are more than 100, and the background clients."""
    async with user_factory(data) as factory:
        users = await factory.create(scenario.people, scenario.name.replace("_", "-"))
        one, other = await factory.create(2, "background")
        await factory.befriend(one, other)
        if scenario.people <= 100:
            for first, second in zip(users[::2], users[1::2], strict=True):
                await factory.befriend(first, second)
        if scenario.stored:
            await factory.store(users[1], users[0], scenario.stored, b"x" * 500)
    return users, (one, other)


async def _attack(scenario: Scenario, options: AttackOptions, connector_pid: int) -> tuple[dict[str, float], int]:
    """Run the attack; return its counts, and how many descriptors the connector held beyond those before."""
    files_before = open_files(connector_pid)
    async with worker(attack, scenario.name, options) as attacking:
        # An attack that counts its connections holds all of them shortly before its end, and none after.
        await asyncio.sleep(scenario.seconds - 0.5 if "connections" in dict(scenario.expected) else 0.0)
        files_left = open_files(connector_pid) - files_before
        counts: dict[str, float] = await receive(attacking, scenario.seconds + END_S)
    return counts, files_left
