"""Two users who write to each other all the time, while processes between them are taken away."""

import asyncio
from collections.abc import Sequence

from meshim.client import Client
from tests.mesh.harness.library_client import receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import until

BACK_S = 10.0
"""How long clients may take to come back.  It takes about a second, and four when a connector is stopped."""


async def some_device_goes_offline(devices: Sequence[Client], within_s: float) -> bool:
    tasks = [asyncio.ensure_future(device.offline()) for device in devices]
    done, waiting = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return bool(done)


class Talk:
    """Two users, who write to each other all the time between `begin` and `end`."""

    def __init__(self, first: Client, second: Client, names: tuple[str, ...]) -> None:
        self.devices = (first, second)
        self._directions = ((first, second, names[1]), (second, first, names[0]))
        """Writer, reader and the name of the reader."""
        self._over = asyncio.Event()
        self._texts: tuple[list[str], list[str]] = ([], [])
        """What each of the two wrote."""
        self._writing: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._writing = [
            asyncio.create_task(self._write(texts, writer, peer))
            for texts, (writer, _, peer) in zip(self._texts, self._directions, strict=True)
        ]

    async def _write(self, texts: list[str], writer: Client, peer: str) -> None:
        while not self._over.is_set():
            await writer.send(peer, f"number {len(texts)}")
            texts.append(f"number {len(texts)}")
            await asyncio.sleep(0.01)

    async def go_on(self) -> None:
        """Wait until each of the two has written some more."""
        before = [len(texts) for texts in self._texts]
        await until(
            lambda: all(len(texts) > 30 + count for texts, count in zip(self._texts, before, strict=True)),
            "they do not write",
        )

    async def end(self) -> None:
        """Stop writing; each of the two has to see what the other one wrote: all of it, once, in order."""
        await self.go_on()
        self._over.set()
        await asyncio.gather(*self._writing)
        for texts, (_, reader, _) in zip(self._texts, self._directions, strict=True):
            assert await receive_texts(reader, len(texts)) == texts
        await self.exchange("nothing more")

    async def exchange(self, text: str) -> None:
        """Each of the two sends this, and the other one sees it next."""
        for writer, reader, peer in self._directions:
            await send_and_wait(writer, peer, text)
            assert await receive_texts(reader, 1) == [text]

    async def until_some_device_is_offline(self) -> None:
        assert await some_device_goes_offline(self.devices, within_s=BACK_S)

    async def until_online(self) -> None:
        async with asyncio.timeout(BACK_S):
            await asyncio.gather(*(device.online() for device in self.devices))
