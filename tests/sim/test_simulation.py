"""A few seeds of the simulation keep every promise, and the judge notices each mesh that is broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.sim import greed
from tests.sim.breaks import BREAKS, broken
from tests.sim.fault_model import FaultModel
from tests.sim.mesh import TRANSPORTS
from tests.sim.simulation import run

SIMULATE = Path(__file__).resolve().parent.parent.parent / "scripts" / "simulate.py"
SEEDS = range(1, 11)
"""`scripts/simulate.py` runs thousands."""

NOTICED = {
    "gap": "in the end",
    "dedup": "once",
    "queue-lease": "fenced",
    "read-before-ack": "marked",
    "sent-before-puback": "sent",
    "sent-on-first-copy": "sent",
    "cookie": "in order",
    "wake-up": "soon",
    "queue-check": "soon",
    "late-goodbye": "soon",
    "epoch": "sent",
    "fencing": "fenced",
    "ack-before-commit": "acknowledged",
    "revoke": "in the end",
    "takeover": "taken over",
    "logout": "revoked",
    "kick": "held",
    "devices-lost": "sent",
    "charge": "bounded",
    "receipt-scope": "private",
    "devices-agree": "agree",
    "quota": "bounded",
}
"""The promise that the judge reports as broken, by the name of the break."""
FAULTS = {
    "queue-lease": FaultModel(kinds=("pause-connector", "away", "sql-stalled"), kinds_share=1.0),
    "epoch": FaultModel(kinds=("lost-file",), kinds_share=1.0),
    "fencing": FaultModel(kinds=("pause-writer", "sql-away", "away"), kinds_share=1.0),
    "revoke": FaultModel(kinds=("taken-over", "redis-away", "kill-connector"), kinds_share=1.0),
    "takeover": FaultModel(kinds=("taken-over", "kill-connector"), kinds_share=1.0),
    "logout": FaultModel(kinds=("logout",), kinds_share=1.0),
    "kick": FaultModel(kinds=("second-connection",), kinds_share=1.0),
    "charge": FaultModel(kinds=("hostile",), kinds_share=1.0),
    "receipt-scope": FaultModel(kinds=("hostile",), kinds_share=1.0),
    "devices-lost": FaultModel(
        kinds=("register-two", "register-two", "register-two", "nats-away"), kinds_share=1.0, count=(12, 12)
    ),
}
"""For breaks that the general fault model shows in few seeds; `scripts/simulate.py --break` uses that model."""
SEEDS_THAT_SHOW = range(1, 41)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_is_kept(seed: int, transport: str) -> None:
    outcome = run(seed, transport=transport)
    assert outcome.violations == [], f"{outcome.violations}\n{outcome.schedule}"
    assert outcome.messages >= 200
    assert sum(outcome.faults.values()) >= 3
    assert (outcome.counters["websocket_opened"] > 0) is (transport != "zeromq")
    assert (outcome.counters["websocket_pieces"] > 0) is (transport != "zeromq")


@pytest.mark.parametrize("seed", [3, 8])
def test_a_transfer_that_has_just_started_drops_no_outcome(seed: int) -> None:
    """Connectors find it at different times.  A resend would heal it, so the promises do not show it."""
    restarts = FaultModel(
        kinds=("kill-transfer",), kinds_share=1.0, count=(6, 6), first_s=0.1, last_s=10.0, breaks=0, silence=0, full=0
    )
    outcome = run(seed, restarts)
    assert outcome.violations == []
    assert outcome.faults["kill-transfer"] > 2
    assert outcome.counters["transfer_outcomes_lost"] == 0


def test_a_greedy_friend_of_a_device_that_is_away_is_stopped() -> None:
    """H4, with hardly any other fault."""
    calm = FaultModel(kinds=("away",), kinds_share=1.0, count=(1, 1), breaks=0, silence=0, full=0)
    with patch.object(greed, "SHARE", 1.0):
        outcomes = [run(seed, calm) for seed in (1, 2, 3)]
    assert [outcome.violations for outcome in outcomes if outcome.failed] == []
    assert all(outcome.counters["transfer_queue_full"] > 20 for outcome in outcomes)


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_mesh_is_noticed(name: str) -> None:
    with broken(name):
        outcomes = (run(seed, FAULTS.get(name)) for seed in SEEDS_THAT_SHOW)
        broken_promises = (violation.split(" ", 1)[1] for outcome in outcomes for violation in outcome.violations)
        assert any(promise.startswith(f"{NOTICED[name]}:") for promise in broken_promises)


def outcome(*options: str, **environment: str) -> dict[str, object]:
    """The JSON of two seeds, without the values that differ from one machine to the next."""
    done = subprocess.run(
        [sys.executable, SIMULATE, "--seeds", "2", "--from", "5", "--jobs", "1", "--json", *options],
        env=os.environ | environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return {name: value for name, value in answer.items() if name not in ("cpu_s", "seconds")}


@pytest.fixture(scope="module")
def plain_outcome() -> dict[str, object]:
    return outcome(PYTHONHASHSEED="1")


def test_the_same_seed_is_the_same_run(plain_outcome: dict[str, object]) -> None:
    """In another process with another hash seed, so that sets have another order."""
    assert outcome(PYTHONHASHSEED="2") == plain_outcome


CAN_COMPILE = shutil.which("cc") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
WANTS_PLAIN = os.environ.get("MESHIM_PLAIN", "0") not in ("", "0")


@pytest.mark.skipif(
    not CAN_COMPILE or WANTS_PLAIN,
    reason="the cores are not compiled here: MESHIM_PLAIN=1 is set, or there is no C compiler with Python's headers",
)
def test_compiled_cores_do_the_same(plain_outcome: dict[str, object]) -> None:
    """The digest of all frames is the same."""
    assert outcome("--compiled") == plain_outcome
