"""Real processes with a file, a key or a database that does not fit: one sentence and exit status 2 (H9)."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from meshim import topology
from meshim.deploy.embedded import Valkey
from meshim.deploy.pdeathsig import die_with_parent
from meshim.stores.sql import migrate
from meshim.topology import Backends, Limits, RestListener, Topology
from tests.servers import MariaDB, running

_DEADLINE_S = 60.0


def meshim(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "meshim", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, timeout=_DEADLINE_S, check=False)


class Host:
    """A folder with a topology and a data folder, as one host of a mesh has them."""

    def __init__(self, folder: Path, mesh: Topology) -> None:
        folder.mkdir()
        self.data = folder / "data"
        self.mesh = mesh
        self._file = folder / "mesh.yaml"

    def command(self, *role: str) -> list[str]:
        self._file.write_text(topology.dump(self.mesh))
        return [*role, "-t", str(self._file), "--data", str(self.data)]

    def refusal(self, *role: str) -> str:
        """Start a process that must be refused; return what it says."""
        done = meshim(*self.command(*role))
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        *_, sentence = done.stderr.splitlines()
        assert sentence.startswith("meshim: ")
        return sentence.removeprefix("meshim: ")

    def log(self, role: str) -> str:
        return (self.data.parent / f"{role}.log").read_text()

    @contextmanager
    def running(self, *role: str) -> "Iterator[subprocess.Popen[str]]":
        """Run a process during the block, which begins when it is ready."""
        with (self.data.parent / f"{role[0]}.log").open("a") as output:
            process = subprocess.Popen(
                die_with_parent([sys.executable, "-m", "meshim", *self.command(*role)]),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            try:
                assert process.stdout.readline().startswith("ready "), self.log(role[0])
                yield process
            finally:
                process.terminate()
                process.wait(_DEADLINE_S)


@pytest.fixture
def mesh(namespace: str, valkey_url: str, nats_url: str, sqlite_url: str) -> Topology:
    return msgspec.structs.replace(
        topology.default(),
        namespace=namespace,
        backends=Backends(valkey_url, nats_url, sqlite_url),
        rest=tuple(RestListener(name, "http://127.0.0.1:0") for name in ("r1", "r2")),
        limits=Limits(partitions=4, log_bytes=4 << 20),
    )


def test_a_second_rest_host_needs_the_key_of_the_first(tmp_path: Path, mesh: Topology, sqlite_url: str) -> None:
    migrate.upgrade(sqlite_url)
    first, second = Host(tmp_path / "first", mesh), Host(tmp_path / "second", mesh)
    key = second.data / "master.key"
    with first.running("rest", "r1"):
        assert second.refusal("rest", "r2") == (
            f"The mesh of this database has a master key, and {key} does not exist: copy it from the host where the "
            "mesh was started first, or restore it from your backup."
        )
        assert not key.exists(), "a key of its own would be taken for that of the mesh"
        key.write_bytes(b"k" * 32)
        key.chmod(0o600)
        assert second.refusal("rest", "r2").startswith("The master key here is not that of the mesh: copy the file")
        shutil.copy(first.data / "master.key", key)
        with second.running("rest", "r2"):
            pass


def test_a_changed_number_of_partitions_is_refused(tmp_path: Path, mesh: Topology, sqlite_url: str) -> None:
    host = Host(tmp_path / "host", _partitions(mesh, 4))
    assert meshim(*host.command("db", "upgrade")).returncode == 0
    for partitions, roles in ((8, [("writer", "w1"), ("connector", "c1"), ("rest", "r1")]), (2, [("up",)])):
        host.mesh = _partitions(mesh, partitions)
        for role in roles:
            assert host.refusal(*role) == (
                f"The mesh of this database has 4 partitions, and the topology says {partitions}: set it back, or "
                "messages are delayed, or stored where no writer reads - at `$.limits.partitions`."
            ), role


def _partitions(mesh: Topology, partitions: int) -> Topology:
    return msgspec.structs.replace(mesh, limits=msgspec.structs.replace(mesh.limits, partitions=partitions))


def test_two_meshes_in_one_namespace_are_refused(
    tmp_path: Path, mesh: Topology, sqlite_url: str, valkey_url: str
) -> None:
    """Also while the other one is down: its keys are still there."""
    migrate.upgrade(sqlite_url)
    first = Host(tmp_path / "first", mesh)
    with first.running("writer", "w1"):
        pass
    other_database = f"sqlite:///{tmp_path / 'other.db'}"
    migrate.upgrade(other_database)
    other = Host(tmp_path / "other", _database(mesh, other_database))
    for role in (("writer", "w1"), ("connector", "c1"), ("rest", "r1")):
        assert f"The namespace {mesh.namespace} of this Redis belongs to a mesh with another database" in other.refusal(
            *role
        )
    elsewhere = msgspec.structs.replace(other.mesh.backends, redis=valkey_url.removesuffix("0") + "1")
    other.mesh = msgspec.structs.replace(other.mesh, backends=elsewhere)
    assert f"The NATS stream {mesh.namespace}-offline-0 belongs to a mesh" in other.refusal("writer", "w1")
    renamed = Host(tmp_path / "renamed", msgspec.structs.replace(mesh, namespace=f"{mesh.namespace}-b"))
    for role in (("writer", "w1"), ("connector", "c1"), ("rest", "r1"), ("db", "upgrade")):
        assert f"is that of the namespace {mesh.namespace}, and" in renamed.refusal(*role)


def _database(mesh: Topology, url: str) -> Topology:
    return msgspec.structs.replace(mesh, backends=msgspec.structs.replace(mesh.backends, sql=url))


def test_no_role_starts_on_a_database_without_tables(tmp_path: Path, mesh: Topology) -> None:
    host = Host(tmp_path / "host", mesh)
    for role in (("writer", "w1"), ("connector", "c1"), ("rest", "r1")):
        assert host.refusal(*role) == "The database has no tables, or old ones: run `meshim db upgrade`.", role
    assert not (host.data / "master.key").exists()


def test_a_redis_that_evicts_is_refused(tmp_path: Path, mesh: Topology) -> None:
    recipe = Valkey(tmp_path / "valkey")
    with running(recipe) as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "64mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
        backends = msgspec.structs.replace(mesh.backends, redis=server.url)
        host = Host(tmp_path / "host", msgspec.structs.replace(mesh, backends=backends))
        sentence = host.refusal("transfer", "t1")
    assert "Redis runs with `maxmemory-policy allkeys-lru`" in sentence
    assert "durability.weak: warn" in sentence


def test_a_database_that_comes_later_is_checked_then(
    tmp_path: Path, mesh: Topology, mariadb_url: str, mariadb: MariaDB
) -> None:
    """A connector starts while its database is not there; when it is there and does not fit, the connector ends."""
    later = f"{mariadb_url}_later"
    host = Host(tmp_path / "host", _database(mesh, later))
    with host.running("connector", "c1") as process:
        assert "mesh-not-checked" in host.log("connector")
        mariadb.create(later.rpartition("/")[2])
        assert process.wait(_DEADLINE_S) == 2
    *_, sentence = host.log("connector").splitlines()
    assert sentence == "meshim: The database has no tables, or old ones: run `meshim db upgrade`."
