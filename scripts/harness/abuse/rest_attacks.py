"""Attacks on the REST service by strangers with plain sockets, while an honest client at another address asks."""

import asyncio
import time
from contextlib import suppress
from urllib.parse import urlsplit

from scripts.harness.clients.misbehaving import pause

HONEST_ADDRESS = "127.0.0.2"
HONEST_PAUSE_S = 0.1
GONE_S = 5.0
"""An honest request that is not answered by then has failed."""
BLOCK = b"a: " + b"x" * 997 + b"\r\n"
REQUEST = b"GET /healthz HTTP/1.1\r\nhost: meshim\r\n"
SLOW = b"POST /v1/login HTTP/1.1\r\nhost: meshim\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"

Counts = dict[str, float]


async def slow_requests(api: str, seconds: float, size: int) -> Counts:
    """Hold `size` connections with requests that do not go on, and open others for those that are cut."""
    stop_at = time.monotonic() + seconds
    opened = 0

    async def hold() -> None:
        nonlocal opened
        while time.monotonic() < stop_at:
            with suppress(OSError):
                reader, writer = await _connect(api)
                opened += 1
                writer.write(SLOW)
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(), max(0.0, stop_at - time.monotonic()))
                writer.close()
            await asyncio.sleep(0.05)

    holding = [asyncio.create_task(hold()) for _ in range(size)]
    honest = await _ask_honestly(api, stop_at)
    await asyncio.gather(*holding)
    return honest | {"connections": opened}


async def endless_headers(api: str, seconds: float, size: int) -> Counts:
    """Write headers without end on `size` connections, and again where one is cut."""
    stop_at = time.monotonic() + seconds
    opened = sent = 0

    async def write() -> None:
        nonlocal opened, sent
        while time.monotonic() < stop_at:
            with suppress(OSError):
                _, writer = await _connect(api)
                opened += 1
                writer.write(REQUEST)
                try:
                    while time.monotonic() < stop_at:
                        writer.write(BLOCK)
                        await writer.drain()
                        sent += len(BLOCK)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.01)

    writing = [asyncio.create_task(write()) for _ in range(size)]
    honest = await _ask_honestly(api, stop_at)
    await asyncio.gather(*writing)
    return honest | {"connections": opened, "sent_mib": round(sent / (1 << 20), 1)}


async def _ask_honestly(api: str, stop_at: float) -> Counts:
    """Ask from another address until then; return how often there was an answer, or none, and the longest wait."""
    answered = failed = 0
    slowest_s = 0.0
    while await pause(stop_at, HONEST_PAUSE_S):
        began = time.monotonic()
        try:
            async with asyncio.timeout(GONE_S):
                reader, writer = await _connect(api, HONEST_ADDRESS)
                writer.write(REQUEST + b"connection: close\r\n\r\n")
                status = (await reader.readline()).split()[1:2]
                writer.close()
        except (OSError, TimeoutError):
            status = []
        answered, failed = (answered + 1, failed) if status == [b"200"] else (answered, failed + 1)
        slowest_s = max(slowest_s, time.monotonic() - began)
    return {"answered": answered, "failed": failed, "slowest_s": round(slowest_s, 2)}


async def _connect(api: str, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(api)
    return await asyncio.open_connection(url.hostname, url.port, local_addr=(address, 0))
