"""Counters of a role: the role writes them when they have changed; a reader gets those of the given pid only."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

from meshim.runtime import counters
from meshim.runtime.log import Log
from tests.virtual_time import run


class Role:
    """A role that writes its counters during `running`."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.output = StringIO()
        self.count = {"sent": 1}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        log = Log("connector", "c1", self.output)
        writing = asyncio.create_task(
            counters.write_periodically(self.data, "connector", "c1", log, lambda: self.count)
        )
        await asyncio.sleep(0)
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    def read(self, pid: int | None = None) -> dict[str, int]:
        return counters.read(self.data, "connector", "c1", os.getpid() if pid is None else pid)

    @property
    def file(self) -> Path:
        return self.data / "run" / "counters" / "connector-c1.json"


def test_counters_are_written_within_a_second_and_at_the_end(tmp_path: Path) -> None:
    role = Role(tmp_path / "data")

    async def main() -> None:
        assert role.read() == {}
        async with role.running():
            assert role.read() == {"sent": 1}
            role.count = {"sent": 2}
            await asyncio.sleep(1.1)
            assert role.read() == {"sent": 2}
            role.count = {"sent": 3}
        assert role.read() == {"sent": 3}

    run(main)


def test_counters_of_another_pid_are_not_returned(tmp_path: Path) -> None:
    role = Role(tmp_path)

    async def main() -> None:
        async with role.running():
            assert role.read(pid=os.getpid() + 1) == {}

    run(main)


def test_an_idle_role_writes_nothing(tmp_path: Path) -> None:
    role = Role(tmp_path)

    async def main() -> None:
        async with role.running():
            role.file.unlink()
            await asyncio.sleep(60)
            assert not role.file.exists()

    run(main)


def test_a_failed_write_does_not_end_the_role_and_is_logged_once(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    role = Role(tmp_path)

    async def main() -> None:
        async with role.running():
            await asyncio.sleep(5)
            (tmp_path / "run").unlink()
            await asyncio.sleep(1.1)
            assert role.read() == {"sent": 1}

    run(main)
    assert role.output.getvalue().count("counters-not-written") == 1


def test_an_undecodable_file_counts_as_no_counters(tmp_path: Path) -> None:
    role = Role(tmp_path)
    role.file.parent.mkdir(parents=True)
    role.file.write_text("{")
    assert role.read() == {}
