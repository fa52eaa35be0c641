"""When the gate reads the settings of the NATS server: until they are known, and not on each publish."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshim.errors import BackendUnavailable
from meshim.runtime.log import Log
from meshim.stores import durability
from meshim.stores.durability import Setting
from meshim.stores.nats import durability as nats_durability
from meshim.stores.nats.durability import RETRY_S, LogDurabilityGate
from meshim.topology import Durability, OnWeak
from tests.virtual_time import run

LOG = Log("test", "vouching", io.StringIO())
SAFE = durability.jetstream(True, 0.0)
WEAK = durability.jetstream(False, 120.0)
SILENT = durability.jetstream_unknown("its monitoring did not answer (ReadTimeout)")


class World:
    """Settings that are read `reads` times, and returned as `setting` after `slow_s` seconds."""

    def __init__(self, patch: pytest.MonkeyPatch, unknown: OnWeak) -> None:
        self.setting = SAFE
        self.slow_s = 0.0
        self.reads = 0
        self.nats = SimpleNamespace(server_id="A")
        policy = Durability(unknown=unknown, nats_monitor="http://127.0.0.1:8222")
        self.gate = LogDurabilityGate(cast("Any", self.nats), policy, LOG)
        patch.setattr(nats_durability, "read_settings", self._read_settings)

    async def _read_settings(self, server_id: str, monitor: str | None) -> list[Setting]:
        self.reads += 1
        await asyncio.sleep(self.slow_s)
        return [self.setting]

    async def restarts(self, setting: Setting) -> None:
        await self.gate.start()
        self.nats.server_id, self.setting = "B", setting


def test_settings_of_a_slow_server_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(monkeypatch, "refuse")
        await world.restarts(SILENT)
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match="did not answer"):
                await world.gate()
        assert world.reads == 2, "not on each publish"
        world.setting = SAFE
        await asyncio.sleep(RETRY_S)
        await world.gate()
        await asyncio.sleep(10 * RETRY_S)
        await world.gate()
        assert world.reads == 3, "the settings are known"

    run(main)


def test_a_slow_server_with_weak_settings_is_refused_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(monkeypatch, "warn")
        await world.restarts(SILENT)
        await world.gate()
        world.setting = WEAK
        await asyncio.sleep(RETRY_S)
        with pytest.raises(BackendUnavailable, match="sync_interval: always"):
            await world.gate()

    run(main)


def test_publishing_does_not_wait_for_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(monkeypatch, "warn")
        await world.restarts(SILENT)
        await world.gate()
        world.slow_s = 1.5
        await asyncio.sleep(RETRY_S)
        before = asyncio.get_running_loop().time()
        retry = asyncio.create_task(world.gate())
        await asyncio.sleep(0)
        await world.gate()
        assert asyncio.get_running_loop().time() == before
        await retry
        assert world.reads == 3

    run(main)
