"""Whether Redis answers: one round trip on a connection of its own."""

import redis.asyncio
import redis.exceptions

from meshim.errors import BackendUnavailable, innermost


async def probe(url: str, timeout_s: float) -> None:
    """Return when Redis has answered a PING; raise `BackendUnavailable` with the reason when it has not."""
    try:
        async with redis.asyncio.from_url(url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s) as client:
            await client.ping()
    except (OSError, redis.exceptions.RedisError) as error:
        raise BackendUnavailable(innermost(error)) from error
