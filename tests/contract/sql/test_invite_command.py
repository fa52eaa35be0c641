"""`meshim user invite` on the database of a mesh."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshim.deploy.state import DataFolder
from meshim.runtime.crypto import hash_invite
from meshim.stores.sql import migrate
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database

TOPOLOGY = """
connectors: [{name: c1}]
transfers: [{name: t1}]
writers: [{name: w1}]
rest: [{name: r1}]
registration: invite
"""


def meshim(folder: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "meshim", "user", "invite", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """The data folder of a mesh with tables."""
    folder = DataFolder(tmp_path / "data")
    folder.create()
    migrate.upgrade(folder.sqlite_url)
    return folder


async def valid(data: DataFolder, code: str, later_s: float = 0.0) -> bool:
    database = Database(data.sqlite_url, 1)
    try:
        return await SqlAccounts(database).invited(hash_invite(code), time.time() + later_s)
    finally:
        await database.close()


async def test_the_command_prints_codes_that_are_valid_for_some_days(data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    code, said, complained = await asyncio.to_thread(meshim, tmp_path, "--count", "2", "--ttl", "2")
    assert (code, complained) == (0, "")
    first, second = said.split()
    assert first != second
    for each in (first, second):
        assert [await valid(data, each, days * 86400) for days in (0, 1.9, 2.1)] == [True, True, False]


async def test_the_command_says_that_nobody_is_asked_for_a_code(data: DataFolder, tmp_path: Path) -> None:
    code, said, complained = await asyncio.to_thread(meshim, tmp_path)
    assert (code, complained) == (0, "Registration is open: nobody is asked for a code.\n")
    assert await valid(data, said.strip())


def test_without_a_mesh_it_is_one_sentence(tmp_path: Path) -> None:
    code, said, complained = meshim(tmp_path)
    assert (code, said) == (2, "")
    advice = "start it with `meshim up`, or name its folder in --data."
    assert complained == f"meshim: There is no mesh in {tmp_path / 'data'}: {advice}\n"
