"""The same conversations on backends that are not meshim's: Redis and NATS that run already, and MariaDB."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from meshim.stores.sql import migrate
from meshim.topology import Backends
from scripts.harness.mesh import local_mesh
from tests.mesh import conversations
from tests.mesh.conversations import restartable
from tests.mesh.real_mesh import RealMesh, running


@pytest.fixture(scope="module")
def external(valkey_url: str, nats_url: str, new_mariadb: Callable[[], str]) -> Backends:
    return Backends(redis=valkey_url, nats=nats_url, sql=new_mariadb())


@pytest.fixture(scope="module")
def mesh(external: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    topology = msgspec.structs.replace(local_mesh.topology(), backends=external, namespace="conversations")
    with running(tmp_path_factory.mktemp("mesh"), topology) as started:
        yield started


async def test_two_people_online(mesh: RealMesh) -> None:
    await conversations.two_people_online(mesh)


async def test_every_device_has_its_copy(mesh: RealMesh) -> None:
    await conversations.every_device_has_its_copy(mesh)


async def test_who_has_never_logged_in_gets_what_was_said_on_the_first_device(mesh: RealMesh) -> None:
    await conversations.never_logged_in(mesh)


async def test_receipts_reach_who_was_away(mesh: RealMesh) -> None:
    await conversations.receipts_for_who_is_away(mesh)


async def test_thousands_both_ways_arrive_once_and_in_order(mesh: RealMesh) -> None:
    await conversations.thousands_both_ways(mesh)


async def test_stored_messages_survive_a_restart_of_everything_and_come_first(
    valkey_url: str, nats_url: str, mariadb_url: str, tmp_path: Path
) -> None:
    migrate.upgrade(mariadb_url)
    backends = Backends(redis=valkey_url, nats=nats_url, sql=mariadb_url)
    async with restartable(tmp_path, backends, "restarted") as mesh:
        await conversations.stored_and_all_restarted(mesh)
