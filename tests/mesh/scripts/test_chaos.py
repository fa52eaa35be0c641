"""`scripts/chaos.py` from the command line: a short run, and a run that notices a missing mechanism."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim import topology as topologies
from scripts.harness.mesh.local_mesh import topology

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def chaos(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPTS / "chaos.py", "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run a small mesh with 12 users for some seconds; return exit code and answer."""
    file = tmp_path / "topology.yaml"
    mesh = topology(2, 2, 2)
    # Three lost wake-ups would take three sweeps.
    file.write_text(
        topologies.dump(msgspec.structs.replace(mesh, timers=msgspec.structs.replace(mesh.timers, sweep_s=4.0)))
    )

    def run(seed: int, *arguments: str) -> tuple[int, dict[str, Any]]:
        small = (
            "--users",
            "12",
            "--minimal",
            "4",
            "--rate",
            "120",
            "--topology",
            file,
            "--folder",
            tmp_path / str(seed),
        )
        done = chaos(*small, "--seed", str(seed), *arguments)
        assert done.returncode in (0, 1), done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, answer

    return run


def test_a_short_run_keeps_every_promise(run: Any) -> None:
    kinds = "kill-connector,kill-nats,kill-writer,kill-client"
    code, answer = run(0, "--seconds", "10", "--only", kinds)  # a seed whose plan has all of them
    assert (code, answer["why"]) == (0, [])
    assert {injection["kind"] for injection in answer["kills"]} == set(kinds.split(","))
    assert answer["minimal"] == {"python": 2, "javascript": 2}
    killed = [injection["name"] for injection in answer["kills"] if injection["kind"] == "kill-client"]
    assert killed[0].count("process-") == 2, "a process of the client library, and a minimal client"
    assert answer["recovery_s"]["kill-connector"]["max"] < 5
    assert answer["sent"] > 500
    assert answer["delivered"] == answer["sent"]
    for name in ("via_offline", "stored", "synced"):
        assert answer[name] > 0
    notes = [json.loads(line) for line in Path(answer["history"]).read_text().splitlines() if '"fault"' in line]
    assert [note["fault"] for note in notes] == [injection["kind"] for injection in answer["kills"]]


def test_hostile_clients_cost_the_honest_ones_nothing(run: Any) -> None:
    """H1, H2, H3, H6, H7 and H11 at once.  Latencies tell nothing in so short a run, on a machine that is busy."""
    _, answer = run(0, "--seconds", "21", "--hostile", "--only", "term-connector,kill-transfer")
    reasons = [reason for reason in answer["why"] if not reason.startswith("the p99 of honest clients")]
    assert reasons == []
    assert answer["delivered"] == answer["sent"] > 500
    assert all(answer["hostile_frames"].values()), answer["hostile_frames"]
    assert {"IMPERSONATION", "MALFORMED", "WINDOW_EXCEEDED", "BAD_TOKEN", "REPLACED"} <= answer["hostile_ends"].keys()
    for phase in ("latency_quiet", "latency_hostile"):
        assert answer[phase]["messages"] > 50
        assert 0 < answer[phase]["p50_ms"] <= answer[phase]["p99_ms"] < 10_000
    assert 0 < answer["p99_ratio"] < 50


def test_a_run_without_deduplication_fails(run: Any) -> None:
    """A client that is killed leaves frames that it did not acknowledge: some of them come again in one run of four."""
    for seed in range(1, 5):
        code, answer = run(seed, "--seconds", "6", "--break", "dedup", "--only", "kill-client")
        if code:
            break
    assert code == 1
    assert answer["duplicated"] > 0
    assert f"{answer['duplicated']} duplicated" in answer["why"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--break", "wake-up"), "'wake-up' cannot be broken on a real mesh: choose one of dedup, "),
        (("--only", "kill-unknown"), "'kill-unknown' is no kind of fault: choose out of "),
        (("--only", "kill-nats", "--nats", "nats://127.0.0.1:9"), "kill-nats cannot be done here: "),
        (("--folder", "/"), "/ cannot be made: "),
    ],
)
def test_a_run_that_cannot_be_done_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = chaos("--seconds", "5", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"chaos: {sentence}")
    assert done.stderr.count("\n") == 1
