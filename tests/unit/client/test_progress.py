"""An application is told what became of messages of other devices, however slowly it reads."""

import asyncio
from contextlib import aclosing

import pytest

from meshim.client.events import StreamProgressed
from meshim.client.progress import Progress, ProgressReader
from meshim.errors import ClientClosed
from meshim.wire.envelope import Destination, DestinationType, Stream

STREAM, OTHER = (Stream(1, device, 6, Destination(DestinationType.USER, 2)) for device in (11, 12))


def progress(stream: Stream, state: str, *ranges: tuple[int, int]) -> Progress:
    return Progress(stream=stream, state=state, ranges=ranges)


async def test_what_comes_while_the_application_is_busy_is_gathered() -> None:
    reader = ProgressReader()
    reader.notify(StreamProgressed(STREAM, "read", ((1, 9),)))  # before the loop: `state_of` tells it
    async with aclosing(reader.read()) as reading:  # type: ignore[type-var]
        first = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        reader.notify(StreamProgressed(STREAM, "delivered", ((1, 2),)))
        assert await first == progress(STREAM, "delivered", (1, 2))
        for seq in (3, 4, 6):
            reader.notify(StreamProgressed(STREAM, "delivered", ((seq, seq),)))
            reader.notify(StreamProgressed(OTHER, "read", ((1, seq),)))
        assert await anext(reading) == progress(STREAM, "delivered", (3, 4), (6, 6))
        assert await anext(reading) == progress(OTHER, "read", (1, 6))
    reader.notify(StreamProgressed(STREAM, "read", ((1, 9),)))
    assert not reader._gathered, "nobody reads"


async def test_the_end_of_the_client_ends_the_loop() -> None:
    reader = ProgressReader()
    reading = asyncio.ensure_future(anext(aiter(reader.read())))
    await asyncio.sleep(0)
    reader.fail(ClientClosed("the client was closed"))
    with pytest.raises(ClientClosed):
        await reading
