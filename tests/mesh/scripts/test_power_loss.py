"""`scripts/power_loss.py` from the command line: no sent message is lost, and a missing sync loses some."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

POWER_LOSS = Path(__file__).resolve().parents[3] / "scripts" / "power_loss.py"


def lose_power(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, POWER_LOSS, "--json", "--seed", "3", *arguments],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def verdict(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_loss_of_power_loses_no_sent_message() -> None:
    done = lose_power("--seconds", "2", "--moments", "6")
    answer = verdict(done)
    assert done.returncode == 0, answer
    assert (answer["ok"], answer["lost"], answer["outbox_lost"], answer["broken"]) == (True, 0, 0, 0)
    assert answer["moments"] == 6
    assert min(answer["found"].values()) > 0, "copies were found in devices, database and log"
    assert answer["at_risk_bytes_max"] > 0


@pytest.mark.parametrize("weak", ["nats", "sql-normal"])
def test_a_missing_sync_loses_messages(weak: str) -> None:
    done = lose_power("--seconds", "1", "--moments", "4", "--weak", weak)
    answer = verdict(done)
    assert done.returncode == 1, answer
    assert answer["lost"] > 0
