"""One way to Redis: bounded connections, time limits, and every outage as `BackendUnavailable`.

redis-py repeats a failed command ten times by default, with pauses.  Here nothing is repeated:
what to do after a failure is the caller's decision, who knows what else may have happened in
the meantime (a lease that ended, another session), and a failure is told within the time limits.
A connection that Redis closed while it waited in the pool is noticed when it is taken out of it.

Scripts find some of their keys themselves, so this is for one server or a primary with
replicas, not for Redis Cluster.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
import redis.asyncio
import redis.exceptions
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from meshim.errors import BackendUnavailable, UsageError, one_line
from meshim.runtime.cancellation import cancellable
from meshim.runtime.log import Log

Argument = bytes | str | int | float

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MOST_S = 1.0
_MESSAGES_AT_ONCE = 1024
_LATE_TIMEOUTS = 2.0

# The server is there and says "not now": it is full, read-only, loading, busy with a script, without its replicas.
_NOT_NOW = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")


class RedisStatistics(msgspec.Struct):
    """Counters of one client since its start."""

    subscription_failures: int = 0
    """Subscriptions that were lost or could not be made."""


class Script(Protocol):
    """A Lua script that runs atomically on the server; loaded there when it is missing."""

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        """Returns what the script returns.  Raises `BackendUnavailable`."""


class RedisClient:
    """Commands, scripts and subscriptions on one Redis.  Connects when first used; `close` it in the end."""

    def __init__(self, url: str, log: Log, *, timeout_s: float = 1.0, connections: int = 16) -> None:
        """`timeout_s` limits each of: waiting for a free connection, connecting, waiting for an answer.

        A subscription keeps one of the `connections` for itself.  Raises `UsageError` for a wrong URL.
        """
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # what RESP3 adds is not used, and its greeting costs two more round trips
                driver_info=None,
            )
            place = urlsplit(url)
            self._address = f"{place.hostname or 'localhost'}:{place.port or 6379}"
        except ValueError as error:
            raise UsageError(f"backends.redis is not a Redis URL: {error}.") from error
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        self._timeout_s = timeout_s
        self._log = log
        self.statistics = RedisStatistics()

    async def execute(self, command: str, *arguments: Argument) -> Any:
        """Run one command and return its reply.  Raises `BackendUnavailable`."""
        with self._failures_as_ours():
            return await cancellable(self._execute(command, *arguments))

    def script(self, lua: str) -> Script:
        """Return a script to be called with keys and arguments."""
        script: Callable[..., Awaitable[Any]] = self._redis.register_script(lua)

        async def run(keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
            with self._failures_as_ours():
                return await cancellable(script(keys=keys, args=arguments))

        return run

    async def subscribe(self, channel: str) -> AsyncGenerator[list[bytes] | None]:
        """Yield what is published on the channel, as many messages at once as are there.

        Yields None when the subscription begins, and again each time it was lost and begins anew: messages may have
        been missed.  Yields an empty list about every `timeout_s`, when the server has answered a question: what was
        published before the question has been yielded.  A server that takes longer than twice `timeout_s` for the
        answer counts as lost.  Outages are waited out, with growing pauses, for ever.
        """
        pause_s = 0.0
        while True:
            try:
                async with self._redis.pubsub() as pubsub, aclosing(self._messages(pubsub, channel)) as messages:
                    async for batch in messages:
                        pause_s = 0.0
                        yield batch
            except redis.exceptions.RedisError as error:
                if not _unavailable(error):
                    raise
                self.statistics.subscription_failures += 1
                if pause_s == 0.0:
                    self._log.warning("redis subscription lost", channel=channel, reason=one_line(error))
            pause_s = min(max(2 * pause_s, _BACKOFF_FIRST_S), _BACKOFF_MOST_S)
            await asyncio.sleep(pause_s)

    async def _messages(self, pubsub: PubSub, channel: str) -> AsyncGenerator[list[bytes] | None]:
        """Yield as `subscribe` does, from one connection; raise when it is lost, silent or late."""
        clock = asyncio.get_running_loop().time
        await cancellable(pubsub.subscribe(channel))
        asked, asked_at = True, clock()  # the answer to SUBSCRIBE has to come in time too
        while True:
            message = await cancellable(pubsub.get_message(timeout=self._timeout_s))
            if message is None and asked:
                # A connection whose other end has vanished or stopped looks like a quiet one.
                raise redis.exceptions.TimeoutError("it stopped answering")
            batch: list[bytes] = []
            answered = False
            while message is not None:
                if message["type"] == "subscribe":
                    batch.clear()
                    yield None
                elif message["type"] == "message":
                    batch.append(message["data"])
                answered = answered or message["type"] != "message"
                if len(batch) == _MESSAGES_AT_ONCE:
                    break
                message = await pubsub.get_message(timeout=0)
            if batch:
                yield batch
            if answered:
                asked = False
                yield []
            waited_s = clock() - asked_at
            if asked and waited_s > _LATE_TIMEOUTS * self._timeout_s:
                raise redis.exceptions.TimeoutError("it answers too late")
            if not asked and waited_s >= self._timeout_s:
                await cancellable(pubsub.ping())
                asked, asked_at = True, clock()

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    @contextmanager
    def _failures_as_ours(self) -> Iterator[None]:
        """Raise `BackendUnavailable` where Redis is away or says "not now"; anything else is a bug and stays one."""
        try:
            yield
        except redis.exceptions.RedisError as error:
            if not _unavailable(error):
                raise
            raise BackendUnavailable(f"Redis at {self._address} is not available: {one_line(error)}.") from error


def _unavailable(error: redis.exceptions.RedisError) -> bool:
    if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
        return True
    named = redis.exceptions.OutOfMemoryError | redis.exceptions.ReadOnlyError | redis.exceptions.NoPermissionError
    return isinstance(error, named) or str(error).startswith(_NOT_NOW)
