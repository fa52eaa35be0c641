"""Probes a backend with the credentials of its URL: whether it answers, and whether it stores."""

import asyncio
from urllib.parse import urlsplit

from meshim.errors import BackendUnavailable
from meshim.stores.nats import storing
from meshim.stores.nats.probe import probe as probe_nats
from meshim.stores.redis.probe import probe as probe_redis
from meshim.stores.sql.probe import check_writable
from meshim.stores.sql.probe import probe as probe_sql
from meshim.topology import Topology

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


async def check_storing(topology: Topology, name: str, timeout_s: float = 5.0) -> None:
    """Return when the backend of this name (`nats` or `sql`) takes what has to be stored.

    Raises `BackendUnavailable` with a sentence that says why it does not.
    """
    url: str = getattr(topology.backends, name)
    try:
        async with asyncio.timeout(timeout_s):
            if name == "nats":
                await storing.check_at(url, topology.namespace, topology.limits.partitions)
            else:
                await check_writable(url, timeout_s)
    except TimeoutError:
        raise BackendUnavailable(f"{public(url)} did not store within {timeout_s:g} s.") from None


def public(url: str) -> str:
    """Return the URL without its credentials, for people and logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else url
