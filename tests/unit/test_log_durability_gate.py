"""When the log's server is asked how it syncs: until it has told, and not on each publish."""

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
from meshim.stores.nats.durability import ASK_AGAIN_S, LogDurabilityGate
from meshim.topology import Durability, OnWeak
from tests.virtual_time import run

LOG = Log("test", "vouching", io.StringIO())
SAFE = durability.jetstream(True, 0.0)
WEAK = durability.jetstream(False, 120.0)
SILENT = durability.jetstream_unknown("its monitoring did not answer (ReadTimeout)")


class World:
    """A server that is asked `asked` times and says what it is told to, `slow_s` seconds later."""

    def __init__(self, patch: pytest.MonkeyPatch, unknown: OnWeak) -> None:
        self.says = SAFE
        self.slow_s = 0.0
        self.asked = 0
        self.nats = SimpleNamespace(server="A")
        policy = Durability(unknown=unknown, nats_monitor="http://127.0.0.1:8222")
        self.gate = LogDurabilityGate(cast("Any", self.nats), policy, LOG)
        patch.setattr(nats_durability, "read_settings", self._read_settings)

    async def _read_settings(self, server: str, monitor: str | None) -> list[Setting]:
        self.asked += 1
        await asyncio.sleep(self.slow_s)
        return [self.says]

    async def restarts(self, says: Setting) -> None:
        await self.gate.start()
        self.nats.server, self.says = "B", says


def test_a_server_that_was_slow_to_tell_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(monkeypatch, "refuse")
        await world.restarts(SILENT)
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match="did not answer"):
                await world.gate()
        assert world.asked == 2, "not on each publish"
        world.says = SAFE
        await asyncio.sleep(ASK_AGAIN_S)
        await world.gate()
        await asyncio.sleep(10 * ASK_AGAIN_S)
        await world.gate()
        assert world.asked == 3, "it has told"

    run(main)


def test_a_weak_server_is_found_out_though_it_was_slow_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(monkeypatch, "warn")
        await world.restarts(SILENT)
        await world.gate()
        world.says = WEAK
        await asyncio.sleep(ASK_AGAIN_S)
        with pytest.raises(BackendUnavailable, match="sync_interval: always"):
            await world.gate()

    run(main)


def test_who_publishes_does_not_wait_for_a_server_that_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(monkeypatch, "warn")
        await world.restarts(SILENT)
        await world.gate()
        world.slow_s = 1.5
        await asyncio.sleep(ASK_AGAIN_S)
        before = asyncio.get_running_loop().time()
        asking = asyncio.create_task(world.gate())
        await asyncio.sleep(0)
        await world.gate()
        assert asyncio.get_running_loop().time() == before
        await asking
        assert world.asked == 3

    run(main)
