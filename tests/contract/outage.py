"""A server of one test, which the test may end and start again while its event loop runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshim.deploy.embedded import Embedded
from tests.servers import Server, running


@asynccontextmanager
async def up(backend: Embedded) -> AsyncIterator[Server]:
    """Run the server during the block; a later block runs it under the same URL."""
    context = running(backend)
    server = await asyncio.to_thread(context.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
