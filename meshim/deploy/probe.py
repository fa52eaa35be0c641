"""Ask a backend whether it answers: a real round trip with the credentials of its URL."""

import asyncio
import errno
import os
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors
import redis.asyncio
import redis.exceptions
import sqlalchemy
import sqlalchemy.exc

from meshim.errors import BackendUnavailable


async def probe(url: str, timeout_s: float = 2.0) -> None:
    """Return when the backend answered; raise `BackendUnavailable` with a sentence that says why not."""
    scheme = urlsplit(url).scheme
    check = {"redis": _redis, "rediss": _redis, "nats": _nats, "tls": _nats}.get(scheme, _sql)
    try:
        async with asyncio.timeout(timeout_s):
            await check(url, timeout_s)
    except TimeoutError:
        raise BackendUnavailable(f"{public(url)} did not answer within {timeout_s:g} s.") from None
    except (OSError, redis.exceptions.RedisError, nats.errors.Error, sqlalchemy.exc.SQLAlchemyError) as error:
        raise BackendUnavailable(f"{public(url)} is not reachable: {_reason(error)}.") from error


def public(url: str) -> str:
    """The URL without its credentials, for people and logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else url


async def _redis(url: str, timeout_s: float) -> None:
    async with redis.asyncio.from_url(url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s) as client:
        await client.ping()


async def _nats(url: str, _timeout_s: float) -> None:
    async def quiet(error: Exception) -> None:
        """The failure comes out of `connect` too; by default it would also be logged with a traceback."""

    client = nats.aio.client.Client()
    try:
        await client.connect(url, allow_reconnect=False, reconnect_time_wait=0, error_cb=quiet)
        await client.flush()
    finally:
        await client.close()  # also after a refusal, which leaves its socket open


async def _sql(url: str, timeout_s: float) -> None:
    def select() -> None:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=connect_args)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))

    # The thread cannot be cancelled: the driver has to give up by itself.
    connect_args = {"connect_timeout": timeout_s, "read_timeout": timeout_s} if url.startswith("mysql") else {}
    await asyncio.to_thread(select)


def _reason(error: Exception) -> str:
    """The innermost reason, on one line."""
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
        return os.strerror(cause.errno).lower()
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
