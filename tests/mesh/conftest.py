"""`mesh`: one real mesh for all tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.real_mesh import RealMesh, running


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    folder: Path = tmp_path_factory.mktemp("mesh")
    with running(folder) as started:
        yield started
