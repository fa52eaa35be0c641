"""The client of Redis: bounded connections, time limits, and every outage as `BackendUnavailable`.

redis-py repeats a failed command ten times by default, with pauses.  This client repeats nothing and fails within its
time limits: only the caller knows whether a command still makes sense later (its lease may have ended, the device may
have another session).  A connection that Redis closed while it was idle in the pool is replaced when it is taken out.

Some scripts compute the names of keys, so this works with one server or a primary with replicas, not with Redis
Cluster.
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
_BACKOFF_MAX_S = 1.0
_BATCH_MAX = 1024
"""Messages of a subscription yielded at once."""
_LATE_TIMEOUTS = 2.0
"""A subscription is lost when the answer to a PING takes this many timeouts."""

# Errors that pass: the server is full, read-only, loading its data, busy with a script, or without its replicas.
_TEMPORARY = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
)


class RedisStatistics(msgspec.Struct):
    """Counters of the clients of one process since its start."""

    subscription_failures: int = 0
    """Subscriptions that were lost or could not be made."""
    malformed: int = 0
    """Values and messages that were skipped, because no meshim of this version wrote them."""


class Script(Protocol):
    """A Lua script that runs atomically on the server, which loads it when it is missing there."""

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        """Return the result of the script.  Raises `BackendUnavailable`."""


class RedisClient:
    """Commands, scripts and subscriptions on one Redis.  Connects when first used; close it at the end."""

    def __init__(
        self,
        url: str,
        log: Log,
        *,
        timeout_s: float = 1.0,
        connections: int = 16,
        statistics: RedisStatistics | None = None,
    ) -> None:
        """`timeout_s` limits each wait: for a free connection, for the connection to be made, for an answer.

        A subscription occupies one of the `connections`.  Clients may count in the same `statistics`.  Raises
        `UsageError` for a wrong URL.
        """
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # nothing here needs RESP3, and its handshake costs two more round trips
                driver_info=None,
            )
            parts = urlsplit(url)
            self._address = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
        except ValueError as error:
            raise UsageError(f"backends.redis is not a Redis URL: {error}.") from error
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        self._timeout_s = timeout_s
        self._log = log
        self.statistics = statistics or RedisStatistics()
        self._malformed: set[str] = set()
        """Kinds of malformed values that were logged; the code names a handful."""

    def skip(self, kind: str, reason: object) -> None:
        """Count a malformed value that the caller skips, and log the first of each kind (`login`, `lease`)."""
        self.statistics.malformed += 1
        if kind not in self._malformed:
            self._malformed.add(kind)
            self._log.warning("malformed value in redis", kind=kind, reason=reason, more="is counted only")

    async def execute(self, command: str, *arguments: Argument) -> Any:
        """Run one command and return its reply.  Raises `BackendUnavailable`."""
        with self._translated_errors():
            return await cancellable(self._execute(command, *arguments))

    def script(self, lua: str) -> Script:
        """Return a script that is called with keys and arguments."""
        script: Callable[..., Awaitable[Any]] = self._redis.register_script(lua)

        async def run(keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
            with self._translated_errors():
                return await cancellable(script(keys=keys, args=arguments))

        return run

    async def subscribe(self, channel: str) -> AsyncGenerator[list[bytes] | None]:
        """Yield the messages of the channel in batches.

        Yields None when the subscription begins, and again each time it begins anew after a loss: messages may have
        been missed.  Yields an empty list about every `timeout_s`, when the server has answered a PING: every message
        published before that PING has been yielded.  The connection counts as lost when the answer takes longer than
        twice `timeout_s`.  Subscribes again for ever after a loss, with growing pauses.
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
            pause_s = min(max(2 * pause_s, _BACKOFF_FIRST_S), _BACKOFF_MAX_S)
            await asyncio.sleep(pause_s)

    async def _messages(self, pubsub: PubSub, channel: str) -> AsyncGenerator[list[bytes] | None]:
        """Yield as `subscribe` does, from one connection; raise when the connection is lost, silent or late."""
        clock = asyncio.get_running_loop().time
        await cancellable(pubsub.subscribe(channel))
        pinged, pinged_at = True, clock()  # the answer to SUBSCRIBE has a deadline too
        while True:
            message = await cancellable(pubsub.get_message(timeout=self._timeout_s))
            if message is None and pinged:
                # Without the PING, a connection to a stopped or vanished server would look like a quiet one.
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
                if len(batch) == _BATCH_MAX:
                    break
                message = await pubsub.get_message(timeout=0)
            if batch:
                yield batch
            if answered:
                pinged = False
                yield []
            waited_s = clock() - pinged_at
            if pinged and waited_s > _LATE_TIMEOUTS * self._timeout_s:
                raise redis.exceptions.TimeoutError("it answers too late")
            if not pinged and waited_s >= self._timeout_s:
                await cancellable(pubsub.ping())
                pinged, pinged_at = True, clock()

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise `BackendUnavailable` for outages and temporary errors; any other error of Redis is our bug."""
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
    return isinstance(error, named) or str(error).startswith(_TEMPORARY)
