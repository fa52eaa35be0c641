"""Probes a backend: one round trip with the credentials of its URL."""

import asyncio
from urllib.parse import urlsplit

from meshim.errors import BackendUnavailable
from meshim.stores.nats.probe import probe as probe_nats
from meshim.stores.redis.probe import probe as probe_redis
from meshim.stores.sql.probe import probe as probe_sql

_PROBES = {"redis": probe_redis, "rediss": probe_redis, "nats": probe_nats, "tls": probe_nats}
"""By the scheme of the URL; every other scheme is one of SQLAlchemy."""


async def probe(url: str, timeout_s: float = 2.0) -> None:
    """Return when the backend answered; raises BackendUnavailable with a sentence that says why not."""
    check = _PROBES.get(urlsplit(url).scheme, probe_sql)
    try:
        async with asyncio.timeout(timeout_s):
            await check(url, timeout_s)
    except TimeoutError:
        raise BackendUnavailable(f"{public(url)} did not answer within {timeout_s:g} s.") from None
    except BackendUnavailable as error:
        raise BackendUnavailable(f"{public(url)} is not reachable: {error.sentence}.") from error


def public(url: str) -> str:
    """Return the URL without its credentials, for people and logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else url
