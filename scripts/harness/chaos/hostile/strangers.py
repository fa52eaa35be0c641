"""What strangers do to every port of a mesh: garbage, and handshakes and requests that are never finished."""

import asyncio
import secrets
from contextlib import AsyncExitStack, suppress

from scripts.harness.abuse.rest_attacks import BLOCK, REQUEST, SLOW
from scripts.harness.chaos.hostile.sessions import Attack
from scripts.harness.chaos.hostile.world import CUT, HostileClient, World
from scripts.harness.clients.raw_zmtp import GREETING, frame
from scripts.harness.clients.stranger_flood import handshake

UNFINISHED_MAX = 10
"""Connections to each port that one client holds unfinished at a time."""
HELD_S = 5.0
ANSWER_S = 0.2
"""So long a stranger waits whether it is cut, before it leaves."""

_TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def _garbage(name: str, address: tuple[str, int]) -> list[bytes]:
    """Return what to send to a port, each on a connection of its own."""
    upgrade = handshake(f"{address[0]}:{address[1]}")
    websocket = [
        upgrade + secrets.token_bytes(64),
        upgrade + b"\x82\xc0" + bytes(4) + b"\xc1" * 64,
        upgrade[:-2] + BLOCK * 40,
    ]
    rest = [
        REQUEST + BLOCK * 40,
        SLOW.replace(b"99", b"-5") + b"}",
        SLOW.replace(b"99", b"9" * 20),
        REQUEST[:-2] + b"\r\r\n\n",
    ]
    zmtp = [GREETING + frame(secrets.token_bytes(40), command=True), b"\xff" + bytes(8) + b"\x7f\x03" + bytes(53)]
    others = [secrets.token_bytes(secrets.randbelow(2_000) + 1), bytes(1_000), _TLS]
    return others + (rest if name == "rest" else websocket if name.endswith("websocket") else zmtp)


def _unfinished(name: str, address: tuple[str, int]) -> bytes:
    """Return the beginning of a handshake or request."""
    if name == "rest":
        return SLOW
    return handshake(f"{address[0]}:{address[1]}")[:-4] if name.endswith("websocket") else GREETING[:40]


async def send_garbage(world: World, client: HostileClient) -> None:
    """Send garbage to every port; and frames that do not decode to a connector, without a greeting."""
    tally = world.tallies[client.kind]
    for name, address in world.ports().items():
        for data in _garbage(name, address):
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*address)
                tally.connections += 1
                try:
                    writer.write(data)
                    tally.frames += 1
                    with suppress(TimeoutError):
                        async with asyncio.timeout(ANSWER_S):
                            while await reader.read(65_536):
                                pass
                        tally.ends[CUT] = tally.ends.get(CUT, 0) + 1
                finally:
                    writer.transport.abort()
    link = await world.connect(client, None)
    try:
        for _ in range(200):
            if link.closed_by is None and link.send_bytes(b"\xc1" * 64):
                tally.frames += 1
            await asyncio.sleep(0)
        tally.ended(link)
    finally:
        link.close()


async def begin_handshakes(world: World, client: HostileClient) -> None:
    """Hold connections to every port whose handshake or request does not go on."""
    tally = world.tallies[client.kind]
    async with AsyncExitStack() as stack:
        for name, address in world.ports().items():
            for _ in range(UNFINISHED_MAX):
                with suppress(OSError):
                    _, writer = await asyncio.open_connection(*address)
                    stack.callback(writer.transport.abort)
                    writer.write(_unfinished(name, address))
                    tally.connections += 1
                    tally.frames += 1
        await asyncio.sleep(HELD_S)


STRANGERS: dict[str, Attack] = {"garbage": send_garbage, "half-handshakes": begin_handshakes}
