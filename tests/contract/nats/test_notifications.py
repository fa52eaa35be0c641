"""The port `Notifications`: to one connector or to all, at most once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from meshim.deploy.embedded import Nats
from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.memory.nats import MemoryNats, MemoryNotifications
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.notifications import NatsNotifications
from meshim.wire.notification import AccountChanged, Kick, Notification, WakeUp
from tests.contract.nats.backends import LOG, Backend, NatsBackend, open_backend
from tests.contract.nats.relay import NatsRelay
from tests.contract.outage import up

ONE, OTHER = 2**62 + 1, 2**62 + 2
WAKE_UP = WakeUp(((1, 2), (3, 4)))
KICK = Kick(1, 2, 2**50, 12, "You logged out.")
CHANGED = AccountChanged((1, 2**52), 3)


@pytest.fixture(params=["memory", "nats"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("nats_url")), namespace) as backend:
        yield backend


async def soon(notifications: AsyncIterator[Notification]) -> Notification:
    async with asyncio.timeout(10.0):
        return await anext(notifications)


async def test_each_connector_gets_its_own_and_those_to_all(backend: Backend) -> None:
    teller = await backend.notifications()
    async with (
        aclosing(await (await backend.notifications()).listen(ONE)) as one,
        aclosing(await (await backend.notifications()).listen(OTHER)) as other,
    ):
        await teller.tell(ONE, WAKE_UP)
        await teller.tell(OTHER, KICK)
        await teller.tell_all(CHANGED)
        assert [await soon(one), await soon(one)] == [WAKE_UP, CHANGED]
        assert [await soon(other), await soon(other)] == [KICK, CHANGED]


async def test_a_notification_without_a_listener_is_no_error(backend: Backend) -> None:
    teller = await backend.notifications()
    await teller.tell(ONE, WAKE_UP)
    await teller.tell_all(CHANGED)


async def test_a_closed_listener_gets_no_more(backend: Backend) -> None:
    notifications = await backend.notifications()  # one connection, so that messages arrive in the order sent
    async with aclosing(await notifications.listen(ONE)) as first:
        await notifications.tell(ONE, WAKE_UP)
        assert await soon(first) == WAKE_UP
    await notifications.tell(ONE, KICK)
    async with aclosing(await notifications.listen(ONE)) as second:
        await notifications.tell(ONE, CHANGED)
        assert await soon(second) == CHANGED


async def test_undecodable_notifications_are_counted_and_skipped(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    client = await backend.client()
    notifications = NatsNotifications(client, namespace, LOG)
    async with aclosing(await notifications.listen(ONE)) as heard:
        await client.publish(f"{namespace}.notification.{ONE}", b"\xc1")
        await client.publish(f"{namespace}.notification.all", b"\x92\x63\x01")
        await notifications.tell(ONE, WAKE_UP)
        assert await soon(heard) == WAKE_UP
    assert notifications.statistics.undecodable == 2
    await backend.close()


async def test_a_listener_that_does_not_read_loses_only_its_own(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    slow, quick = NatsNotifications(await backend.client(), namespace, LOG), await backend.notifications()
    async with (
        aclosing(await slow.listen(ONE)),
        aclosing(await quick.listen(OTHER)) as heard,
    ):
        for _ in range(5000):
            await quick.tell_all(WAKE_UP)
            assert await soon(heard) == WAKE_UP

        async def dropped() -> bool:
            return slow.statistics.dropped == 5000 - 4096

        await backend.until(dropped)
    await backend.close()


async def test_listening_goes_on_after_a_restart_of_the_server(servers_folder: Path, namespace: str) -> None:
    nats = Nats(servers_folder / namespace)
    async with up(nats) as server:
        backend = NatsBackend(server.url, namespace)
        listener, teller = await backend.client(), await backend.client()
        heard = await NatsNotifications(listener, namespace, LOG).listen(ONE)
        telling = NatsNotifications(teller, namespace, LOG)
        await telling.tell(ONE, WAKE_UP)
        assert await soon(heard) == WAKE_UP

    async def noticed() -> bool:
        return not teller.connected and not listener.connected

    await backend.until(noticed)
    with pytest.raises(BackendUnavailable, match=r"^NATS at 127\.0\.0\.1:\d+ is not connected\.$"):
        await telling.tell(ONE, KICK)
    with pytest.raises(BackendUnavailable):
        await telling.listen(OTHER)
    async with up(nats):

        async def back() -> bool:
            return teller.connected and listener.connected

        await backend.until(back)
        await telling.tell(ONE, CHANGED)
        assert await soon(heard) == CHANGED, "and not the one that could not be told"
        await heard.aclose()
        await backend.close()
    assert teller.statistics.reconnects == 1


async def test_refused_credentials_are_one_sentence(nats_url: str) -> None:
    wrong = nats_url.replace("meshim:", "meshim:no")
    with pytest.raises(BackendUnavailable, match=r"(?i)^NATS at 127.* did not let us in: .*authorization.*\.$"):
        await NatsClient.connect(wrong, LOG, timeout_s=60.0)
    with pytest.raises(BackendUnavailable, match=r"^NATS at 127\.0\.0\.1:1 does not answer: start it, or .*\.$"):
        await NatsClient.connect("nats://127.0.0.1:1", LOG, timeout_s=0.5)


async def test_connected_means_that_subscriptions_are_restored(nats_url: str, namespace: str) -> None:
    """A notification sent after `connected` arrives, however long the restored subscriptions took."""
    async with NatsRelay(nats_url) as relay:
        backend, behind = NatsBackend(nats_url, namespace), NatsBackend(relay.url, namespace)
        teller, listener = await backend.client(), await behind.client()
        heard = await NatsNotifications(listener, namespace, LOG).listen(ONE)
        relay.hold_after_the_handshake()
        relay.cut()
        await relay.holding()
        await teller.round_trip(5.0)  # by now nats-py calls itself connected
        assert not listener.connected
        with pytest.raises(BackendUnavailable, match="is not connected"):
            await listener.publish(namespace, b"")
        relay.let_go()

        async def back() -> bool:
            return listener.connected

        await backend.until(back)
        await NatsNotifications(teller, namespace, LOG).tell(ONE, WAKE_UP)
        assert await soon(heard) == WAKE_UP
        await heard.aclose()
        await behind.close()
        await backend.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "nats://", "nats://host:port", "127.0.0.1:4222"])
async def test_a_wrong_url_is_one_sentence(url: str) -> None:
    with pytest.raises(UsageError, match=r"^backends\.nats is not a NATS URL: .*\.$"):
        await NatsClient.connect(url, LOG)


async def test_a_connection_that_the_server_ends_for_good_is_reported(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    client = await backend.client()

    async def say_nothing(message: Msg) -> None: ...

    await client.subscribe(namespace, say_nothing)
    asking = asyncio.ensure_future(client.request(namespace, b"", 60.0))
    async with aclosing(await NatsNotifications(await backend.client(), namespace, LOG).listen(ONE)):
        client._nats._transport.write(b"NONSENSE\r\n")  # type: ignore[union-attr]  # no public call breaks the protocol
        async with asyncio.timeout(10.0):
            await client.wait_closed()
        with pytest.raises(BackendUnavailable):
            await asking
        with pytest.raises(BackendUnavailable):
            await client.publish(namespace, b"")
        with pytest.raises(BackendUnavailable):
            await NatsNotifications(client, namespace, LOG).listen(ONE)
    await backend.close()


async def test_closing_does_not_wait_for_a_stopped_server(servers_folder: Path, namespace: str) -> None:
    async with up(Nats(servers_folder / namespace)) as server:
        backend = NatsBackend(server.url, namespace)
        client = await backend.client()
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(100):
            await client.publish(namespace, bytes(512 * 1024))
        async with asyncio.timeout(5.0):
            await backend.close()
        os.kill(server.pid, signal.SIGCONT)


async def test_memory_outage() -> None:
    broker = MemoryNats(lambda: 0.0)
    notifications = MemoryNotifications(broker, "n")
    broker.stop()
    with pytest.raises(BackendUnavailable):
        await notifications.tell_all(CHANGED)
    broker.start()
    await notifications.tell_all(CHANGED)
