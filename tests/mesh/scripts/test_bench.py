"""The benchmarks on a real mesh: every workload, and measurements that are invalid."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from scripts.harness.bench import workloads
from scripts.harness.clients.connections import Transport
from scripts.harness.mesh.local_mesh import topology
from scripts.harness.mesh.measured_mesh import measured_mesh

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
PAIRS, MESSAGES = 3, 60


def no_progress(_what: str, _done: float) -> None:
    pass


@pytest.mark.parametrize("transport", ["zeromq", "websocket"])
def test_every_workload_on_one_mesh(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "RATE_SHARE_MIN", 0.5)  # other tests run beside this one
    users = 2 * PAIRS
    friends = [(one, other) for one in range(users) for other in range(one + 1, users)]
    with measured_mesh(topology(3, 1), users + 20, friends, transport) as mesh:
        online = uvloop.run(workloads.online(mesh, PAIRS, 4, 0.2, 0.5, no_progress))
        assert online["cpu_us_by"].keys() >= {"up", "c1", "c2", "c3", "t1", "w1", "r1", "redis", "nats"}
        least = online["cpu_us_by"]["t1"] / 5
        assert all(online["cpu_us_by"][name] > least for name in ("c1", "c2", "c3")), "a connector has nothing to do"
        paced = uvloop.run(workloads.paced(mesh, users, 200.0, 0.1, 0.5, no_progress))
        assert 0 < paced["p50_ms"] <= paced["p99_ms"] <= paced["max_ms"]
        idle = uvloop.run(workloads.idle(mesh, 5, 15, 0.1, no_progress))
        assert idle["things"] == 15
        offline = uvloop.run(workloads.offline(mesh, PAIRS, 4, PAIRS, MESSAGES, no_progress))
        assert [offline[step]["things"] for step in ("stored", "written", "collected", "marked")] == [MESSAGES] * 4
        assert offline["stored"]["seconds"] <= offline["written"]["seconds"]
        assert offline["collected"]["seconds"] <= offline["marked"]["seconds"]


def test_a_rejected_message_makes_the_measurement_invalid() -> None:
    with measured_mesh(topology(1, 1), 2, []) as mesh, pytest.raises(workloads.InvalidMeasurement, match="rejected"):
        uvloop.run(workloads.online(mesh, 1, 1, 0.1, 0.1, no_progress))


def test_a_rate_that_is_not_reached_makes_the_measurement_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "RATE_SHARE_MIN", 2.0)
    with (
        measured_mesh(topology(1, 1), 2, [(0, 1)]) as mesh,
        pytest.raises(workloads.InvalidMeasurement, match=r"100 were asked for"),
    ):
        uvloop.run(workloads.paced(mesh, 2, 100.0, 0.0, 0.2, no_progress))


def test_a_wrong_option_is_one_sentence() -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, SCRIPTS / "bench.py", *arguments], capture_output=True, text=True, check=False
        )
        assert not done.stdout
        return done.returncode, done.stderr

    code, error = run("online", "--pairs", "0")
    assert code == 2
    assert "Traceback" not in error
    assert "--pairs" in error
    assert run("nothing")[0] == 2


def test_the_command_prints_json() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", "online", "--pairs", "2", "--seconds", "1", "--plain", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert (result["pairs"], result["connectors"], result["transfers"]) == (2, 2, 1)
