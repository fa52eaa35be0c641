"""The port `OfflineLog`: a published message has a position and stays until it is acknowledged."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshim.deploy.embedded import Nats, embedded_log_bytes
from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.memory.nats import MemoryNats, MemoryOfflineLog
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.nats.pull_consumer import position_of
from meshim.stores.ports import DeadLetter, LogMessage, OfflineLog
from meshim.wire.sizes import log_bytes_min
from tests.contract.nats.backends import MAX_BYTES, Backend, NatsBackend, open_backend
from tests.contract.outage import up
from tests.servers import running

SOON_S = 5.0


@pytest.fixture(params=["memory", "nats"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("nats_url")), namespace) as backend:
        yield backend


async def publish(log: OfflineLog, *data: bytes) -> list[int]:
    return [await log.publish(0, each) for each in data]


async def test_positions_start_at_first_and_have_no_gaps(backend: Backend) -> None:
    one, other = await backend.log(), await backend.log()
    await one.ensure(0, 1000)
    assert await publish(one, b"a", b"b") == [1000, 1001]
    assert await publish(other, b"c") == [1002]
    assert sorted(await asyncio.gather(*(one.publish(0, b"x") for _ in range(200)))) == list(range(1003, 1203))


async def test_partitions_are_independent(backend: Backend) -> None:
    log = await backend.log()
    await log.ensure(0, 1)
    await log.ensure(1, 500)
    assert await log.publish(1, b"one") == 500
    assert await log.publish(0, b"zero") == 1
    assert await log.fetch(0, 10, 0.0) == [LogMessage(1, b"zero")]
    assert await log.fetch(1, 10, 0.0) == [LogMessage(500, b"one")]


async def test_fetch_returns_messages_in_order_up_to_the_limit(backend: Backend) -> None:
    writer, reader = await backend.log(), await backend.log()
    await writer.ensure(0, 1)
    await publish(writer, *(b"%d" % number for number in range(10)))
    assert await reader.fetch(0, 4, SOON_S) == [LogMessage(1 + n, b"%d" % n) for n in range(4)]
    assert await reader.fetch(0, 100, SOON_S) == [LogMessage(1 + n, b"%d" % n) for n in range(4, 10)]
    assert await reader.fetch(0, 100, 0.05) == []


async def test_fetch_waits_for_a_message(backend: Backend) -> None:
    writer, reader = await backend.log(), await backend.log()
    await writer.ensure(0, 1)
    fetching = asyncio.ensure_future(reader.fetch(0, 10, 60.0))
    await asyncio.sleep(0)
    began = time.monotonic()
    await publish(writer, b"a")
    assert await fetching == [LogMessage(1, b"a")]
    assert time.monotonic() - began < SOON_S


async def test_unacknowledged_messages_are_redelivered(backend: Backend) -> None:
    reader, elsewhere = await backend.log(ack_wait_s=0.3), await backend.log(ack_wait_s=0.3)
    await reader.ensure(0, 1)
    await publish(reader, b"a", b"b", b"c")
    assert len(await reader.fetch(0, 10, SOON_S)) == 3
    await reader.acknowledge(0, [1, 3])
    given: list[LogMessage] = []

    async def again() -> bool:
        given.extend(await elsewhere.fetch(0, 10, 0.0))
        return bool(given)

    await backend.until(again)
    assert given == [LogMessage(2, b"b")]
    await elsewhere.acknowledge(0, [2])
    assert [await elsewhere.read(0, position) for position in (1, 2, 3)] == [None, None, None]


async def test_extended_messages_are_not_redelivered(backend: Backend) -> None:
    reader, elsewhere = await backend.log(ack_wait_s=0.4), await backend.log(ack_wait_s=0.4)
    await reader.ensure(0, 1)
    await publish(reader, b"held", b"left")
    await reader.fetch(0, 10, SOON_S)
    given: list[LogMessage] = []

    async def the_other_was_given_twice() -> bool:
        await reader.extend(0, [1, 77])
        given.extend(await elsewhere.fetch(0, 10, 0.0))
        return len(given) >= 2

    await backend.until(the_other_was_given_twice)
    assert given == [LogMessage(2, b"left")] * 2


async def test_a_writer_acknowledges_messages_fetched_by_another(backend: Backend) -> None:
    """A new writer reads the messages that its predecessor had fetched, and deletes them."""
    gone, reader = await backend.log(), await backend.log()
    await gone.ensure(0, 1)
    await publish(gone, b"a", b"b", b"c")
    assert len(await gone.fetch(0, 2, SOON_S)) == 2
    assert await reader.fetch(0, 10, SOON_S) == [LogMessage(3, b"c")]
    assert [await reader.read(0, position) for position in (1, 2, 3, 4)] == [b"a", b"b", b"c", None]
    for _ in range(2):  # the second time it is missing, between messages that are there
        await reader.acknowledge(0, [2])
    await reader.acknowledge(0, [1, 2, 3])
    assert [await gone.read(0, position) for position in (1, 2, 3)] == [None, None, None]
    # No error: an acknowledgement may be repeated, or come late.
    await reader.acknowledge(0, [1, 2, 3, 4])
    await gone.acknowledge(0, [1, 2])
    await reader.acknowledge(0, [])


async def test_ensure_can_be_called_at_once_and_again(backend: Backend) -> None:
    logs = [await backend.log() for _ in range(4)]
    await asyncio.gather(*(log.ensure(0, 7) for log in logs for _ in range(3)))
    assert await publish(logs[0], b"a", b"b") == [7, 8]
    await logs[1].ensure(0, 3)
    await logs[1].ensure(0, 9)
    larger = await backend.log(max_bytes=2 * MAX_BYTES)
    await larger.ensure(0, 7)
    assert await publish(larger, b"c") == [9]
    assert len(await larger.fetch(0, 10, SOON_S)) == 3


async def test_an_empty_older_log_continues_at_the_position_of_the_database(backend: Backend) -> None:
    log = await backend.log()
    await log.ensure(0, 1)
    await log.ensure(0, 1000)
    assert await publish(log, b"a") == [1000]
    assert await log.fetch(0, 10, SOON_S) == [LogMessage(1000, b"a")]
    with pytest.raises(UsageError, match=r"ends at position 1000"):
        await log.ensure(0, 5000)
    await log.acknowledge(0, [1000])
    await log.ensure(0, 5000)
    assert await publish(log, b"b") == [5000]
    assert await log.fetch(0, 10, SOON_S) == [LogMessage(5000, b"b")]


async def test_a_full_partition_refuses_until_there_is_room(backend: Backend) -> None:
    log = await backend.log(max_bytes=250_000)
    await log.ensure(0, 1)
    await publish(log, bytes(100_000), bytes(100_000))
    with pytest.raises(BackendUnavailable):
        await publish(log, bytes(100_000))
    messages = await log.fetch(0, 10, SOON_S)
    assert [message.position for message in messages] == [1, 2]
    await log.acknowledge(0, [1])
    assert await publish(log, bytes(100_000)) == [3]


async def test_publishing_without_a_stream_fails(backend: Backend) -> None:
    log = await backend.log()
    with pytest.raises(BackendUnavailable):
        await publish(log, b"a")
    with pytest.raises(BackendUnavailable):
        await log.fetch(0, 1, 0.1)
    with pytest.raises(BackendUnavailable):
        await log.read(0, 1)


async def test_memory_outage_and_dead_letters() -> None:
    broker = MemoryNats(lambda: 0.0)
    log = MemoryOfflineLog(broker, "n")
    await log.ensure(0, 1)
    await log.dead_letter(0, 1, "too long", b"data")
    assert broker.dead == {"n": [DeadLetter(1, 0, 1, 0.0, "too long", b"data")]}
    broker.stop()
    with pytest.raises(BackendUnavailable):
        await log.publish(0, b"a")
    broker.start()
    assert await log.publish(0, b"a") == 1


# ---------------------------------------------------------------- what only a real server has


async def test_dead_letters_are_kept_with_their_reason(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    log, client = await backend.log(), await backend.client()
    await log.ensure(3, 1)
    await log.dead_letter(3, 17, "the id\r\nis “too long” " + "x" * 1000, b"data")
    letter = await client.request(f"$JS.API.STREAM.MSG.GET.{namespace}-dead", b'{"seq":1}', 2.0)
    assert f"{namespace}.dead.3".encode() in letter.data
    direct = await client.request(f"$JS.API.DIRECT.GET.{namespace}-dead", b'{"seq":1}', 2.0)
    assert direct.data == b"data"
    assert direct.headers is not None
    assert direct.headers["Meshim-Position"] == "17"
    assert direct.headers["Meshim-Reason"].startswith("the id  is “too long” xxx")
    await backend.close()


async def test_a_stream_that_would_lose_messages_is_refused(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    log, client = await backend.log(), await backend.client()
    stream = f"{namespace}-offline-0"
    config = f'{{"name":"{stream}","subjects":["{namespace}.offline.0"],"retention":"workqueue","discard":"old"}}'
    await client.request(f"$JS.API.STREAM.CREATE.{stream}", config.encode(), 2.0)
    with pytest.raises(UsageError, match=f"^The NATS stream {stream} has discard old instead of new: "):
        await log.ensure(0, 1)
    await backend.close()


async def test_the_streams_of_another_mesh_are_refused(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)

    def log_of(mesh_id: str | None, max_bytes: int = MAX_BYTES) -> JetStreamOfflineLog:
        return JetStreamOfflineLog(client, namespace, max_bytes=max_bytes, dead_bytes=MAX_BYTES, mesh_id=mesh_id)

    client = await backend.client()
    await log_of(None).ensure(0, 1)  # from before streams named their mesh
    await publish(log_of(None), b"1")
    await log_of("one").ensure(0, 1)
    await log_of("one").ensure(0, 1)
    with pytest.raises(UsageError, match=f"^The NATS stream {namespace}-offline-0 belongs to a mesh with another data"):
        await log_of("other").ensure(0, 1)
    await log_of(None, 2 * MAX_BYTES).ensure(0, 1)  # a tool changes another setting
    with pytest.raises(UsageError, match="belongs to a mesh with another database"):
        await log_of("other").ensure(0, 1)
    with pytest.raises(UsageError, match=f"^The NATS stream {namespace}-dead belongs to a mesh"):
        await log_of("other").ensure(1, 1)
    assert [message.data for message in await log_of("one").fetch(0, 10, SOON_S)] == [b"1"]
    await backend.close()


@pytest.mark.parametrize("log_bytes", [log_bytes_min(524_288), 64 << 20])
async def test_the_smallest_log_stores_the_largest_records(
    servers_folder: Path, namespace: str, log_bytes: int
) -> None:
    """The embedded server has room for all streams of the smallest log that a topology may ask for."""
    partitions = 4
    server = Nats(servers_folder / namespace, store_bytes=embedded_log_bytes(partitions, log_bytes))
    with running(server) as started:
        backend = NatsBackend(started.url, namespace)
        log = JetStreamOfflineLog(await backend.client(), namespace, max_bytes=log_bytes)
        for partition in range(partitions):
            await log.ensure(partition, 1)
            await log.publish(partition, bytes(524_288))
            await log.publish(partition, bytes(524_288))
        await log.dead_letter(0, 1, "x" * 1_000, bytes(524_288))
        await backend.close()


async def test_a_limit_beyond_the_disk_is_refused_with_the_reason(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    log = await backend.log(max_bytes=1 << 50)
    with pytest.raises(UsageError, match=r"^NATS refused the stream .*storage.*\.$"):
        await log.ensure(0, 1)
    await backend.close()


async def test_a_fetch_is_bounded_in_bytes(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    log = JetStreamOfflineLog(
        await backend.client(), namespace, max_bytes=8 << 20, dead_bytes=MAX_BYTES, fetch_bytes=1 << 20
    )
    await log.ensure(0, 1)
    await publish(log, *[bytes(400_000)] * 5)
    assert [len(await log.fetch(0, 100, SOON_S)) for _ in range(3)] == [2, 2, 1]
    await backend.close()


async def test_a_fetch_at_the_limit_of_unacknowledged_messages_returns(nats_url: str, namespace: str) -> None:
    """The server sends no end of such a request."""
    backend = NatsBackend(nats_url, namespace)
    log = JetStreamOfflineLog(
        await backend.client(),
        namespace,
        max_bytes=MAX_BYTES,
        dead_bytes=MAX_BYTES,
        ack_pending_max=4,
        timeout_s=0.3,
    )
    await log.ensure(0, 1)
    await publish(log, *[b"x"] * 10)
    assert [message.position for message in await log.fetch(0, 100, SOON_S)] == [1, 2, 3, 4]
    assert await log.fetch(0, 100, 0.05) == []
    await log.acknowledge(0, [1, 2, 3, 4])
    rest: list[int] = []
    while len(rest) < 6:
        fetched = [message.position for message in await log.fetch(0, 100, SOON_S)]
        assert fetched
        await log.acknowledge(0, fetched)
        rest += fetched
    assert sorted(rest) == [5, 6, 7, 8, 9, 10]
    await backend.close()


async def test_acknowledged_messages_survive_a_kill(servers_folder: Path, namespace: str) -> None:
    """R7: and a message whose publishing failed is not sent later."""
    nats = Nats(servers_folder / namespace)
    async with up(nats) as server:
        backend = NatsBackend(server.url, namespace)
        log, client = await backend.log(), await backend.client()
        await log.ensure(0, 1)
        assert await publish(log, b"kept", b"kept too") == [1, 2]
        os.kill(server.pid, signal.SIGKILL)

        async def noticed() -> bool:
            return not client.connected

        await backend.until(noticed)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(BackendUnavailable):
                await publish(log, b"surprise")
        assert time.monotonic() - began < 1.0
    async with up(nats):
        fetched: list[LogMessage] = []

        async def back() -> bool:
            try:
                fetched.extend(await log.fetch(0, 10, 0.0))
            except BackendUnavailable:
                return False
            return True

        await backend.until(back)
        assert fetched == [LogMessage(1, b"kept"), LogMessage(2, b"kept too")]
        assert await publish(log, b"next") == [3]
        await log.acknowledge(0, [1, 2])
        assert await log.fetch(0, 10, SOON_S) == [LogMessage(3, b"next")]
        await backend.close()


async def test_a_kill_fails_calls_under_way_at_once(servers_folder: Path, namespace: str) -> None:
    async with up(Nats(servers_folder / namespace)) as server:
        backend = NatsBackend(server.url, namespace)
        client = await backend.client()
        os.kill(server.pid, signal.SIGSTOP)
        asking = asyncio.ensure_future(client.request("$JS.API.INFO", b"", 60.0))
        await asyncio.sleep(0)
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(SOON_S):
            with pytest.raises(BackendUnavailable, match="closed the connection"):
                await asking
        await backend.close()


async def test_a_stopped_server_is_unavailable_and_nothing_is_sent_later(servers_folder: Path, namespace: str) -> None:
    """R11, with more data than the sockets hold: data that waits in the process must not be sent later."""
    async with up(Nats(servers_folder / namespace)) as server:
        backend = NatsBackend(server.url, namespace)
        client = await backend.client()
        log = JetStreamOfflineLog(client, namespace, max_bytes=256 << 20, dead_bytes=MAX_BYTES, publish_timeout_s=0.3)
        await log.ensure(0, 1)
        large = bytes(512 * 1024)

        async def publish_in_vain(data: bytes, times: int) -> None:
            results = await asyncio.gather(*(log.publish(0, data) for _ in range(times)), return_exceptions=True)
            assert {type(result) for result in results} == {BackendUnavailable}

        async def fill() -> None:
            for _ in range(200):
                await client.publish("nobody", large)

        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        await publish_in_vain(large, 24)  # fills the sockets; some may arrive
        await publish_in_vain(b"late", 4)
        assert time.monotonic() - began < 2.0
        with pytest.raises(BackendUnavailable, match="takes nothing at the moment"):
            await fill()
        with pytest.raises(BackendUnavailable, match="closed the connection"):
            await client.request("$JS.API.INFO", b"", 60.0)  # fails when the connection is closed
        os.kill(server.pid, signal.SIGCONT)

        async def back() -> bool:
            return client.connected

        await backend.until(back)
        await log.publish(0, b"next")
        arrived: list[bytes] = []
        while b"next" not in arrived:
            arrived += [message.data for message in await log.fetch(0, 100, SOON_S)]
        assert b"late" not in arrived
        await backend.close()


@pytest.mark.parametrize(
    ("reply", "position"),
    [
        ("$JS.ACK.n-offline-0.writer.1.1000.7.1700000000000000000.3", 1000),
        ("$JS.ACK._.account.n-offline-0.writer.2.18446744073709551615.7.1700000000000000000.3", 2**64 - 1),
        ("$JS.ACK.hub.account.n-offline-0.writer.2.42.7.1700000000000000000.3.random", 42),
    ],
)
def test_position_is_read_from_the_reply_subject(reply: str, position: int) -> None:
    assert position_of(reply) == position
