"""A connector with a valid key that claims to be another one, on real sockets with CURVE (H8)."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from meshim.errors import Code
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, Dealer, KeyPair
from meshim.stores.ports import Lease, Leases
from meshim.transfer import events as e
from meshim.transfer.allowlist import ConnectorAllowlist
from meshim.transfer.core import TransferCore
from meshim.transfer.shell import Backends, Shell
from meshim.wire import mesh
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Close, Ping, Pong
from meshim.wire.mesh import Hello, HelloOk, TransferToConnector
from tests.unit.runtime.test_sockets import until
from tests.unit.transfer.world import HERE, options

HONEST, LIAR = 2**62 - 1, 17
FRAME_BYTES = 65_536


class LivingConnectors:
    """The leases in Redis."""

    def __init__(self) -> None:
        self.keys = {HONEST: KeyPair.new(), LIAR: KeyPair.new()}
        self.reads = 0

    async def living(self, role: str) -> list[Lease]:
        self.reads += 1
        return [Lease(role, f"c{number}", number, mesh_key=pair.public.decode()) for number, pair in self.keys.items()]


class Connector:
    def __init__(self, context: Context, endpoint: str, server_key: bytes, keys: KeyPair) -> None:
        self.frames: list[TransferToConnector] = []
        self.dealer: Dealer = context.dealer(
            endpoint, server_key=server_key, keys=keys, frame_bytes=FRAME_BYTES,
            on_batch=lambda batch: self.frames.extend(map(mesh.decode_from_transfer, batch)), on_lost=None,
        )  # fmt: skip

    async def answer(self, frame: Hello | Ping) -> TransferToConnector:
        """Send a frame and return the answer to it."""
        before = len(self.frames)
        await until(lambda: self.dealer.send(mesh.encode(frame)))
        await until(lambda: len(self.frames) > before)
        return self.frames[before]


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    context = Context()
    yield context
    context.close()


async def test_a_valid_key_opens_the_link_of_its_own_incarnation_alone(context: Context) -> None:
    living, keys = LivingConnectors(), KeyPair.new()
    core = TransferCore(HERE, options())
    shell = Shell(core, Backends(cast("Any", None), cast("Any", None)), Service("transfer", "t1", shutdown_s=1.0))
    allowlist = ConnectorAllowlist(cast("Leases", living))
    router = shell.router = context.router(
        "tcp://127.0.0.1:0", keys=keys, domain="transfer-t1", admit=allowlist.admit, frame_bytes=FRAME_BYTES,
        on_batch=lambda batch: shell.driver.receive(e.ConnectorsSent(batch, router.user_ids)),
    )  # fmt: skip

    def connector(own: int) -> Connector:
        return Connector(context, router.endpoint, keys.public, living.keys[own])

    honest, liar = connector(HONEST), connector(LIAR)
    assert isinstance(await honest.answer(Hello(WIRE_VERSION, 1, HONEST, "c1", 8)), HelloOk)
    refusal = await liar.answer(Hello(WIRE_VERSION, 2, HONEST, "c1", 8))
    assert isinstance(refusal, Close)
    assert (refusal.link, refusal.code) == (2, Code.IMPERSONATION)
    assert isinstance(await honest.answer(Ping(1)), Pong), "its link is as it was"
    assert (core.statistics.impersonations, core.statistics.connectors) == (1, 1)
    assert isinstance(await liar.answer(Hello(WIRE_VERSION, 3, LIAR, "c2", 8)), HelloOk), "this is what it may say"
    assert living.reads == 1, "the second key was known by then, and no Hello asked Redis"
    # A connector that starts again has another key; the leases of both are there for a moment.
    living.keys[HONEST + 1] = KeyPair.new()
    again = connector(HONEST + 1)
    assert isinstance(await again.answer(Hello(WIRE_VERSION, 4, HONEST + 1, "c1", 8)), HelloOk)
    # Its lease ends while the link lives: a Hello on the connection is still judged by the key.
    allowlist.living("connector", [])
    assert isinstance(await honest.answer(Hello(WIRE_VERSION, 5, HONEST, "c1", 8)), HelloOk)
    shell.driver.stop()
