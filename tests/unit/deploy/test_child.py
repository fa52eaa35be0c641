"""A child whose start fails again and again is started more and more rarely."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshim.deploy import child as child_module
from meshim.deploy.child import RoleChild


class Ended:
    """A process that has ended."""

    pid = 1
    returncode = 1

    async def wait(self) -> int:
        return self.returncode


async def test_starts_that_fail_on_a_full_disk_become_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], list[float]()

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        now[0] += pause_s
        if now[0] > 200.0:
            raise asyncio.CancelledError

    monkeypatch.setattr(child_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    # A log that cannot be opened, as on a full disk: here it is a folder.
    child = RoleChild("connector", "c1", ["/bin/true"], tmp_path, -1, lambda: None)
    child._process = cast("Any", Ended())
    with pytest.raises(asyncio.CancelledError):
        await child.supervise()
    assert pauses[:7] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    assert set(pauses[7:]) == {10.0}
