"""`scripts/replay.py` from the command line, on short logs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.harness.real_mesh import RealMesh

REPLAY = Path(__file__).resolve().parents[3] / "scripts" / "replay.py"

LOG = b"""\
[23:40] <Bob> anybody here?
[23:41] <ann> Bob: yes
[23:41] <ann> Bob: still there?
[23:42]  * cy waves
[23:43] <[dee]> ann, hello \xe9
[23:44] <ann> [dee]: hello, [dee]
[00:30] <ann> Bob: you left
[00:30] <ann> Bob: without a word
[00:31] <cy> ann: he does that
"""
"""Bob addresses no message and does not come back: the last two messages to Bob are stored."""


def replay(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, REPLAY, *arguments], capture_output=True, text=True, timeout=180, check=False
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "log.txt"
    file.write_bytes(LOG)
    return file


def counts(verdict: dict[str, Any]) -> dict[str, Any]:
    names = (
        "ok",
        "users",
        "expected",
        "sent",
        "settled",
        "delivered",
        "lost",
        "duplicated",
        "reordered",
        "misdelivered",
    )
    return {name: verdict[name] for name in names}


def test_on_a_mesh_of_its_own(log: Path, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    done = replay(log, "--json", "--history", history, "--seed", "7")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert counts(verdict) == {
        "ok": True,
        "users": 4,
        "expected": 7,
        "sent": 7,
        "settled": 7,
        "delivered": 7,
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "misdelivered": 0,
    }
    assert verdict["via_offline"] >= 2
    assert verdict["seconds"] > 0

    judge = REPLAY.with_name("check_history.py")
    judged = subprocess.run([sys.executable, judge, history, "--json"], capture_output=True, check=True)
    assert json.loads(judged.stdout).items() <= verdict.items()
    nicks = {record["nick"] for record in map(json.loads, history.read_text().splitlines()) if record["type"] == "user"}
    assert nicks == {"ann", "Bob", "cy", "[dee]"}


def test_several_days_on_a_mesh_that_runs(mesh: RealMesh, log: Path) -> None:
    done = replay(log, log, "--json", "--api", mesh.api, "--speedup", "3600", "--places", "2")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["ok"]
    assert (verdict["users"], verdict["sent"], verdict["delivered"]) == (4, 14, 14)
    assert verdict["online_max"] <= 2


def test_what_cannot_be_replayed_is_one_sentence(log: Path, tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("Once upon a time\n")
    for arguments, sentence in (
        ((tmp_path / "nowhere",), "No such file or directory."),
        ((prose,), "These logs have no message that is addressed to anybody: are they IRC logs?"),
        ((log, "--api", "http://127.0.0.1:9"), "is it running, and is the URL right?"),
        ((log, "--history", tmp_path / "no" / "folder"), "No such file or directory."),
    ):
        done = replay(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("replay: ")
        assert done.stderr.endswith(f"{sentence}\n")
        assert done.stderr.count("\n") == 1
