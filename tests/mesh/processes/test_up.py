"""`meshim up`, `status` and `down` with the real roles."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from meshim import compiled, topology
from meshim.topology import Backends, Durability, Limits, RestListener
from tests.servers import UnsyncedNats, running


def meshim(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "meshim", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


def written(folder: Path, bind: str) -> str:
    file = folder / "written.yaml"
    mesh = msgspec.structs.replace(topology.default(), rest=(RestListener("r1", bind),))
    file.write_text(topology.dump(mesh))
    return str(file)


def counters(*data: str) -> dict[str, dict[str, int]]:
    """The counters of each role in `status`, once all roles have written them."""
    deadline = time.monotonic() + 20.0
    while True:
        roles = json.loads(meshim("status", "--json", *data).stdout)["roles"]
        if all(role["counters"] for role in roles):
            return {role["name"]: role["counters"] for role in roles}
        assert time.monotonic() < deadline, roles


def test_up_status_down(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    up = meshim("up", "-t", written(tmp_path, "http://127.0.0.1:0"), "--detach", *data)
    assert up.returncode == 0, up.stderr
    assert up.stdout.startswith("meshim is ready: http://127.0.0.1:")
    try:
        shown = json.loads(meshim("status", "--json", *data).stdout)
        again = meshim("up", "--detach", *data)
        table = meshim("status", *data).stdout
        counted = counters(*data)
        logs = [file.read_text() for file in (tmp_path / "data" / "log").glob("*-*.log")]
    finally:
        down = meshim("down", *data)
    assert shown["state"] == "running"
    built = compiled.available() is not None
    assert [f"compiled={built}\n" in log for log in logs] == [True] * len(shown["roles"]), (
        "a log does not say whether the core is compiled"
    )
    assert up.stdout.split()[3] == shown["api"]
    assert sorted((role["role"], role["name"]) for role in shown["roles"]) == [
        ("connector", "c1"),
        ("connector", "c2"),
        ("rest", "r1"),
        ("transfer", "t1"),
        ("transfer", "t2"),
        ("writer", "w1"),
    ]
    assert {role["state"] for role in shown["roles"]} == {"running"}
    assert all(role["pid"] for role in shown["roles"])
    assert {role["name"] for role in shown["roles"] if role["endpoint"] is None} == {"w1"}
    assert [(each["name"], each["reachable"], each["stores"], each["reason"]) for each in shown["backends"]] == [
        ("redis", True, None, None),
        ("nats", True, True, None),
        ("sql", True, True, None),
    ]
    assert {each["state"] for each in shown["backends"]} == {"running"}
    assert [
        (each["name"], [(setting["name"], setting["value"], setting["verdict"]) for setting in each["settings"]])
        for each in shown["backends"]
    ] == [
        ("redis", [("maxmemory_policy", "noeviction", "safe"), ("role", "master", "safe")]),
        ("nats", [("sync_interval", "always", "safe")]),
        ("sql", [("synchronous", "FULL", "safe"), ("journal_mode", "wal", "safe")]),
    ]
    assert "c2" in table
    assert re.search(r"^nats +sync_interval +always +yes$", table, re.MULTILINE)
    assert all({"lease_losses", "lease_failed_renewals", "nats_dropped"} <= each.keys() for each in counted.values())
    assert {name for name, each in counted.items() if "database_retries" in each} == {"c1", "c2", "w1", "r1"}
    assert counted["r1"]["notify_failures"] == 0
    assert again.returncode == 2
    assert "A mesh runs on" in again.stderr
    assert (down.returncode, down.stdout) == (0, "The mesh has ended.\n")
    assert not any(Path(f"/proc/{role['pid']}").exists() for role in shown["roles"])
    assert meshim("status", *data).returncode == 2


def test_up_says_what_to_type_next_and_it_works(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "my data"))
    mesh = written(tmp_path, "http://127.0.0.1:0")
    up = meshim("up", "-t", mesh, "--detach", *data)
    assert up.returncode == 0, up.stderr
    try:
        api = up.stdout.split()[3]
        hint = re.fullmatch(r"(.*)\nMake an account with `(.*)`; end the mesh with `(.*)`\.\n", up.stdout)
        assert hint is not None, up.stdout
        ready, register, end = hint.groups()
        assert (ready, register) == (f"meshim is ready: {api}", f"meshim user register NAME --api {api}")
        typed = [*shlex.split(register.replace("NAME", "ann"))[1:], "--password-stdin"]
        registered = meshim(*typed, stdin="correct horse\n")
        assert registered.stdout == "ann is registered.\n", registered.stderr
    finally:
        down = meshim("down", *data)
    assert shlex.split(end) == ["meshim", "down", *data]
    assert down.stdout == "The mesh has ended.\n", down.stderr
    command = [sys.executable, "-m", "meshim", "up", "-t", mesh, *data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as again:
        assert again.stdout is not None
        api = again.stdout.readline().split()[3]
        talk = again.stdout.readline()
        again.send_signal(signal.SIGINT)
    in_data = shlex.join(data)
    assert talk == (
        f"Talk with `meshim chat ME --to PEER --api {api}`; see its processes with `meshim status {in_data}`; "
        f"end the mesh with `meshim down {in_data}` or Ctrl-C.\n"
    )


def test_up_detached_says_why_it_cannot_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"http://127.0.0.1:{taken.getsockname()[1]}"
        up = meshim("up", "-t", written(tmp_path, bind), "--detach", "--data", str(tmp_path / "data"))
    assert (up.returncode, up.stdout) == (2, "")
    assert up.stderr == f"meshim: The address {bind} of r1 is in use: end what listens there, or choose another one.\n"


def test_up_in_the_foreground_says_when_it_has_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meshim", "up", "-t", written(tmp_path, "http://127.0.0.1:0")]
    with subprocess.Popen([*command, "--data", str(tmp_path / "data")], stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("meshim is ready: ")
        up.stdout.readline()  # the hint
        up.send_signal(signal.SIGINT)
        assert up.stdout.read() == "The mesh has ended.\n"
    assert up.returncode == 0


def test_a_log_that_would_lose_messages_is_refused_or_warned_about(tmp_path: Path) -> None:
    recipe = UnsyncedNats(tmp_path / "nats")
    data = ("--data", str(tmp_path / "data"))
    with running(recipe) as nats:
        mesh = msgspec.structs.replace(
            topology.default(),
            rest=(RestListener("r1", "http://127.0.0.1:0"),),
            backends=Backends(nats=nats.url),
            limits=Limits(log_bytes=4 << 20),
            durability=Durability(nats_monitor=recipe.monitor),
        )
        file = tmp_path / "mesh.yaml"
        file.write_text(topology.dump(mesh))
        refused = meshim("up", "-t", str(file), "--detach", *data)
        file.write_text(topology.dump(msgspec.structs.replace(mesh, durability=Durability("warn"))))
        warned = meshim("up", "-t", str(file), "--detach", *data)
        try:
            table = meshim("status", *data).stdout
        finally:
            meshim("down", *data)
    assert refused.returncode == 2
    assert "NATS syncs what it has acknowledged only every 120 s: set `sync_interval: always`" in refused.stderr
    assert "durability.weak: warn" in refused.stderr
    assert warned.returncode == 0, warned.stderr
    assert re.search(r"^nats +sync_interval +- +unknown: .*`durability.nats_monitor`", table, re.MULTILINE)
    assert "setting-not-safe" in (tmp_path / "data" / "log" / "transfer-t1.log").read_text()
