"""Whether the offline log takes messages: each of its streams is asked, and nothing is written.

A port that answers says little.  nats-server gives a stream up when a write to it fails, and tells so only to those who
change it (`jetstream.py`).
"""

import io

from meshim.runtime.log import Log
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.jetstream import JetStream
from meshim.stores.nats.offline_log import dead_stream, partition_stream

_TIMEOUT_S = 2.0


async def check(client: NatsClient, namespace: str, partitions: int) -> None:
    """Return when every stream takes messages.

    Raises `StorageFailed` when nats-server has given one up, and `BackendUnavailable` when it does not answer, or when
    a stream does not exist.
    """
    jetstream = JetStream(client, _TIMEOUT_S)
    for stream in (*(partition_stream(namespace, number) for number in range(partitions)), dead_stream(namespace)):
        await jetstream.check(stream)


async def check_at(url: str, namespace: str, partitions: int) -> None:
    """As `check`, over a connection made for this."""
    client = await NatsClient.connect(url, Log("storing", "nats", io.StringIO()), timeout_s=_TIMEOUT_S)
    try:
        await check(client, namespace, partitions)
    finally:
        await client.close()
