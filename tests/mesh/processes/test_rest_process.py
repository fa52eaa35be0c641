"""`meshim rest` as a process on real backends, and the `user` and `friend` commands against it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from meshim.deploy.pdeathsig import die_with_parent
from meshim.stores.sql import migrate

_DEADLINE_S = 30.0


@dataclass
class Rest:
    """A running `meshim rest`."""

    api: str
    process: "subprocess.Popen[str]"
    folder: Path

    def cli(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return meshim(*arguments, "--api", self.api, stdin=stdin)

    def end(self) -> tuple[int, float]:
        """SIGTERM; return the exit code and how many seconds it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_DEADLINE_S), time.monotonic() - started


def meshim(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "meshim", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )


def write_topology(folder: Path, namespace: str, redis: str, nats: str, sql: str, port: int = 0) -> Path:
    path = folder / f"topology-{port}.yaml"
    mesh = {
        "namespace": namespace,
        "connectors": [{"name": "c1"}],
        "transfers": [{"name": "t1"}],
        "writers": [{"name": "w1"}],
        "rest": [{"name": "r1", "bind": f"http://127.0.0.1:{port}"}],
        "backends": {"redis": redis, "nats": nats, "sql": sql},
    }
    path.write_text(json.dumps(mesh))  # JSON is YAML
    return path


@contextmanager
def running(topology: Path) -> Iterator[Rest]:
    folder = topology.parent
    command = [sys.executable, "-m", "meshim", "rest", "r1", "-t", str(topology), "--data", str(folder / "data")]
    with (folder / "rest.log").open("a") as log:
        process = subprocess.Popen(
            die_with_parent(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    with process.stdout:
        try:
            ready = process.stdout.readline().split()
            assert ready[:3] == ["ready", "rest", "r1"], (folder / "rest.log").read_text()
            yield Rest(ready[3], process, folder)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def topology(tmp_path: Path, namespace: str, valkey_url: str, nats_url: str, sqlite_url: str) -> Path:
    migrate.upgrade(sqlite_url)
    return write_topology(tmp_path, namespace, valkey_url, nats_url, sqlite_url)


def test_two_users_become_friends_on_the_command_line(topology: Path) -> None:
    with running(topology) as rest:
        for name in ("alice", "Bob"):
            done = rest.cli("user", "register", name, "--password-stdin", stdin=f"{name} secret\n")
            assert (done.returncode, done.stdout) == (0, f"{name.lower()} is registered.\n"), done.stderr
        done = rest.cli("friend", "add", "alice", "bob", "--password-stdin", stdin="alice secret\n")
        assert "meshim friend accept bob alice" in done.stdout, done.stderr
        done = rest.cli("friend", "list", "bob", "--password-stdin", stdin="Bob secret\n")
        assert done.stdout == "alice has asked: answer with `meshim friend accept bob alice`\n"
        done = rest.cli("friend", "accept", "bob", "alice", "--password-stdin", stdin="Bob secret\n")
        assert done.stdout == "bob and alice are friends.\n"
        done = rest.cli("friend", "list", "alice", "--json", "--password-stdin", stdin="alice secret\n")
        assert json.loads(done.stdout) == [{"name": "bob", "state": "friends", "online": False}]
        done = rest.cli("friend", "remove", "alice", "bob", "--password-stdin", stdin="alice secret\n")
        assert done.returncode == 0
        done = rest.cli("friend", "list", "alice", "--password-stdin", stdin="alice secret\n")
        assert "no friends yet" in done.stdout
        assert rest.cli("friend", "add", "bob", "alice", "--password-stdin", stdin="Bob secret\n").returncode == 0
        done = rest.cli("friend", "block", "alice", "bob", "--password-stdin", stdin="alice secret\n")
        assert done.stdout == "bob is blocked.\n", done.stderr
        done = rest.cli("friend", "list", "alice", "--password-stdin", stdin="alice secret\n")
        assert done.stdout == "bob is blocked\n"
        done = rest.cli("friend", "unblock", "alice", "bob", "--password-stdin", stdin="alice secret\n")
        assert done.stdout == (
            "bob is not blocked any more.\nbob has asked: answer with `meshim friend accept alice bob`\n"
        )
        assert rest.end()[0] == 0
    assert (topology.parent / "data" / "master.key").stat().st_mode & 0o777 == 0o600


def test_an_error_is_one_sentence_and_an_exit_code(topology: Path) -> None:
    with running(topology) as rest:
        alice = ("alice", "--password-stdin")
        assert rest.cli("user", "register", *alice, stdin="secret\n").returncode == 0
        for arguments, stdin, code, sentence in (
            (("user", "register", *alice), "other\n", 1, "taken"),
            (("user", "register", *alice), "", 2, "no password on standard input"),
            (("user", "register", "alice"), "secret\n", 2, "use --password-stdin"),
            (("friend", "list", *alice), "wrong\n", 1, "password is wrong"),
            (("friend", "accept", "alice", "nobody", "--password-stdin"), "secret\n", 1, "no user nobody"),
            (("user", "import", "-"), "only-a-name\n", 2, "Line 1"),
        ):
            done = rest.cli(*arguments, stdin=stdin)
            assert done.returncode == code, done
            assert sentence in done.stderr
            assert done.stderr.startswith("meshim: ")
            assert done.stderr.count("\n") == 1
            assert done.stdout == ""
        address = rest.api
    done = meshim("user", "register", "carol", "--password-stdin", "--api", address, stdin="secret\n")
    assert (done.returncode, "is it running" in done.stderr) == (1, True)


def test_an_import_registers_the_valid_users_and_names_the_others(topology: Path) -> None:
    lines = ["# people", "", *(f"user{number} pass word {number}" for number in range(120)), "user7 x", "not/a/name x"]
    with running(topology) as rest:
        done = rest.cli("user", "import", "-", stdin="\n".join(lines))
        assert (done.returncode, done.stdout) == (1, "Registered 120 of 122 users.\n"), done.stderr
        assert "user7: " in done.stderr
        assert "not/a/name: A name is" in done.stderr
        done = rest.cli("friend", "list", "user119", "--password-stdin", stdin="pass word 119\n")
        assert done.returncode == 0, done.stderr


def test_sigterm_finishes_requests_under_way(topology: Path) -> None:
    users = [{"name": f"user{number}", "password": "secret"} for number in range(20)]  # half a second of hashing
    body = json.dumps({"users": users})
    head = ("POST /v1/import HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    with running(topology) as rest, httpx.Client(base_url=rest.api) as idle:
        host, port = rest.api.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall("\r\n".join((*head, f"Content-Length: {len(body)}", "", body)).encode())
            for _ in range(
                3
            ):  # each is one run of its event loop, which has to accept the other connection and read from it
                idle.get("/healthz")
            code, took_s = rest.end()  # although `idle` stays open
            answer = slow.makefile("rb").read()
    assert code == 0
    assert took_s < 5.0
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"user_id") == 20


def test_a_port_in_use_is_one_sentence(
    topology: Path, namespace: str, valkey_url: str, nats_url: str, sqlite_url: str
) -> None:
    with running(topology) as rest:
        port = int(rest.api.rpartition(":")[2])
        again = write_topology(topology.parent, namespace, valkey_url, nats_url, sqlite_url, port)
        done = meshim("rest", "r1", "-t", str(again), "--data", str(rest.folder / "data"))
        assert done.returncode == 2
        assert f"http://127.0.0.1:{port} is in use" in done.stderr
        assert done.stdout == ""


def test_a_restart_after_a_crash_gets_the_same_port(
    topology: Path, namespace: str, valkey_url: str, nats_url: str, sqlite_url: str
) -> None:
    with running(topology) as rest, httpx.Client(base_url=rest.api) as client:
        credentials = {"name": "alice", "password": "secret"}
        assert client.post("/v1/users", json=credentials).status_code == 201
        os.kill(rest.process.pid, signal.SIGKILL)
        rest.process.wait()
        port = int(rest.api.rpartition(":")[2])
        again = write_topology(topology.parent, namespace, valkey_url, nats_url, sqlite_url, port)
        with running(again) as successor:
            assert successor.api == rest.api
            assert client.post("/v1/login", json=credentials).status_code == 200
            assert successor.end()[0] == 0


def test_it_starts_and_serves_without_redis(tmp_path: Path, namespace: str, nats_url: str, sqlite_url: str) -> None:
    migrate.upgrade(sqlite_url)
    nowhere = "redis://127.0.0.1:1/0"
    with running(write_topology(tmp_path, namespace, nowhere, nats_url, sqlite_url)) as rest:
        with httpx.Client(base_url=rest.api) as client:
            credentials = {"name": "alice", "password": "secret"}
            assert client.post("/v1/users", json=credentials).status_code == 201
            assert client.post("/v1/login", json=credentials).json()["token"]
            refused = client.post("/v1/login", json=credentials | {"device": "phone"})
            assert (refused.status_code, refused.json()["code"]) == (503, "backend_unavailable")
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["backends"]["redis"]["ok"]) == (503, False)
        assert rest.end()[0] == 0
