"""`mesh` is one real mesh for all tests of a module; the other fixtures are for the tests with hostile clients."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.mesh.harness.background_chat import Users, background_chat
from tests.mesh.harness.independent_client import IndependentClient
from tests.mesh.harness.real_mesh import PASSWORD, RealMesh, in_thread, running


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    folder: Path = tmp_path_factory.mktemp("mesh")
    with running(folder) as started:
        yield started


@pytest.fixture(scope="module")
def users(mesh: RealMesh) -> Users:
    users = Users(*asyncio.run(mesh.register_users("alice", "bob", "mallory", "trudy", friends=False)))
    asyncio.run(mesh.make_friends(users.alice, users.bob))
    asyncio.run(mesh.make_friends(users.bob, users.trudy))
    return users


@pytest.fixture
async def chat_in_background(mesh: RealMesh, users: Users) -> AsyncIterator[None]:
    """alice and bob talk from before the test until after it."""
    async with background_chat(mesh, users):
        yield


@pytest.fixture
async def mallory(mesh: RealMesh, users: Users, chat_in_background: None) -> AsyncIterator[IndependentClient]:
    """The hostile client, connected; its device has a new epoch in each test."""
    mallory = await in_thread(IndependentClient, mesh.api, users.mallory, PASSWORD)
    await in_thread(mallory.connect)
    yield mallory
    mallory.socket.close(0)
