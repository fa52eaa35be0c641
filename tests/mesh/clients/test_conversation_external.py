"""The scenarios of test_conversation on external backends: Redis, NATS and MariaDB that run already."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from meshim.stores.sql import migrate
from meshim.topology import Backends
from scripts.harness.mesh import local_mesh
from tests.mesh.harness import scenarios
from tests.mesh.harness.real_mesh import RealMesh, restartable_mesh, running


@pytest.fixture(scope="module")
def external(valkey_url: str, nats_url: str, new_mariadb: Callable[[], str]) -> Backends:
    return Backends(redis=valkey_url, nats=nats_url, sql=new_mariadb())


@pytest.fixture(scope="module")
def mesh(external: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    topology = msgspec.structs.replace(local_mesh.topology(), backends=external, namespace="conversations")
    with running(tmp_path_factory.mktemp("mesh"), topology) as started:
        yield started


async def test_two_users_online(mesh: RealMesh) -> None:
    await scenarios.two_users_online(mesh)


async def test_every_device_gets_a_copy(mesh: RealMesh) -> None:
    await scenarios.every_device_gets_a_copy(mesh)


async def test_the_first_device_of_a_user_gets_the_stored_messages(mesh: RealMesh) -> None:
    await scenarios.first_device_gets_the_stored_messages(mesh)


async def test_receipts_reach_a_disconnected_sender(mesh: RealMesh) -> None:
    await scenarios.receipts_reach_a_disconnected_sender(mesh)


async def test_thousands_both_ways_arrive_once_and_in_order(mesh: RealMesh) -> None:
    await scenarios.thousands_both_ways(mesh)


async def test_stored_messages_survive_a_restart_of_all_processes_and_come_first(
    valkey_url: str, nats_url: str, mariadb_url: str, tmp_path: Path
) -> None:
    migrate.upgrade(mariadb_url)
    backends = Backends(redis=valkey_url, nats=nats_url, sql=mariadb_url)
    async with restartable_mesh(tmp_path, backends, "restarted") as mesh:
        await scenarios.stored_messages_survive_a_restart(mesh)
