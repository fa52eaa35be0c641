"""Whether Redis keeps what it is told, and whether its clock is ours: read once at the start of each process.

`stores/durability.py` judges the settings.  INFO has them where CONFIG is forbidden, as managed servers forbid it.
"""

import io
import time
from typing import Any

from meshim.errors import BackendUnavailable
from meshim.runtime.log import Log
from meshim.stores import durability
from meshim.stores.durability import Setting
from meshim.stores.redis.client import RedisClient


async def read_settings(client: RedisClient) -> list[Setting]:
    """Return the settings of the server.  Raises `BackendUnavailable`."""
    memory: dict[str, Any] = await client.execute("INFO", "memory")
    replication: dict[str, Any] = await client.execute("INFO", "replication")
    return durability.redis(memory.get("maxmemory_policy"), memory.get("maxmemory"), replication.get("role"))


async def read_settings_at(url: str) -> list[Setting]:
    """As `read_settings`, over a connection made for this; unknown while Redis does not answer."""
    client = RedisClient(url, Log("settings", "redis", io.StringIO()), connections=1)
    try:
        return await read_settings(client)
    except BackendUnavailable:
        return durability.redis(None, None, None)
    finally:
        await client.close()


async def clock_ahead_s(client: RedisClient) -> float:
    """Return by how many seconds the clock of Redis is ahead of ours; negative: behind.

    Raises `BackendUnavailable`.
    """
    seconds, microseconds = await client.execute("TIME")
    return int(seconds) + int(microseconds) / 1e6 - time.time()
