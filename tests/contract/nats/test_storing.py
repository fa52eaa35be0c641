"""Whether NATS stores: asked of the streams themselves, because a port that answers says nothing about the disk."""

import os
import signal
from pathlib import Path

import pytest

from meshim.deploy.embedded import Nats
from meshim.errors import BackendUnavailable, StorageFailed
from meshim.stores.nats import storing
from meshim.stores.nats.jetstream import JetStream
from meshim.stores.nats.offline_log import partition_stream
from tests.contract.nats.backends import NatsBackend
from tests.servers import running
from tests.small_disk import small_disk


async def test_streams_that_take_messages_are_left_as_they_are(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    log = await backend.log()
    for partition in (0, 1):
        await log.ensure(partition, 1)
    assert await log.publish(0, b"m1") == 1
    await storing.check_at(nats_url, namespace, 2)
    assert await log.publish(0, b"m2") == 2
    assert [message.data for message in await log.fetch(0, 10, 1.0)] == [b"m1", b"m2"]
    await backend.close()


async def test_a_stream_that_is_missing_is_named(nats_url: str, namespace: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"no stream {namespace}-offline-0: start a writer") as raised:
        await storing.check_at(nats_url, namespace, 1)
    assert not isinstance(raised.value, StorageFailed)


async def test_a_stream_whose_disk_was_full_says_so_until_the_server_is_restarted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 20) as disk:
        nats = Nats(disk.folder / "nats")
        with running(nats) as server:
            backend = NatsBackend(server.url, "ns")
            log = await backend.log(max_bytes=1 << 24)
            await log.ensure(0, 1)
            assert await log.publish(0, b"kept") == 1
            disk.fill()
            with pytest.raises(BackendUnavailable):
                await log.publish(0, bytes(5_000))
            disk.free()
            with pytest.raises(StorageFailed) as raised:
                await storing.check_at(server.url, "ns", 1)
            assert raised.value.sentence == (
                "NATS refuses to store in the stream ns-offline-0 (no space left on device): make room on its disk, "
                "and restart nats-server unless `meshim up` runs it."
            )
            with pytest.raises(StorageFailed):  # not "there is no such message": it was not deleted
                await JetStream(await backend.client(), 2.0).delete(partition_stream("ns", 0), 1)
            await backend.close()
            os.kill(server.pid, signal.SIGTERM)
        with running(nats) as server:
            await storing.check_at(server.url, "ns", 1)
            backend = NatsBackend(server.url, "ns")
            log = await backend.log(max_bytes=1 << 24)
            assert await log.publish(0, b"next") == 2
            assert [message.data for message in await log.fetch(0, 10, 1.0)] == [b"kept", b"next"]
            await backend.close()
