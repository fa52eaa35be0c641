"""`mesh`: one real mesh for all tests of a module; and the people of the tests with hostile clients."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.mesh.hostile import Cast, doing, undisturbed
from tests.mesh.real_mesh import PASSWORD, RealMesh, running
from tests.mesh.stranger import Stranger


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    folder: Path = tmp_path_factory.mktemp("mesh")
    with running(folder) as started:
        yield started


@pytest.fixture(scope="module")
def cast(mesh: RealMesh) -> Cast:
    cast = Cast(*asyncio.run(mesh.people("alice", "bob", "mallory", "trudy", friends=False)))
    asyncio.run(mesh.befriend(cast.alice, cast.bob))
    asyncio.run(mesh.befriend(cast.bob, cast.trudy))
    return cast


@pytest.fixture
async def bystanders(mesh: RealMesh, cast: Cast) -> AsyncIterator[None]:
    """alice and bob talk, from before the test until after it."""
    async with undisturbed(mesh, cast):
        yield


@pytest.fixture
async def mallory(mesh: RealMesh, cast: Cast, bystanders: None) -> AsyncIterator[Stranger]:
    """Connected; her device has a new epoch each time."""
    mallory = await doing(Stranger, mesh.api, cast.mallory, PASSWORD)
    await doing(mallory.connect)
    yield mallory
    mallory.socket.close(0)
