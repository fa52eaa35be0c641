"""The minimal client keeps the rules of docs/protocol.md, so that a benchmark measures what real clients would do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from meshim.stores.ports import Lease
from scripts.harness.clients.connections import Dialer
from scripts.harness.clients.minimal import (
    ACK,
    CLOSE,
    DATA,
    DELIVERED,
    DELIVERY,
    GREET,
    OUTCOME,
    PING,
    PONG,
    STORED,
    SUBMIT,
    WELCOME,
    MinimalClient,
)
from scripts.harness.mesh.seed_database import SeededUser

ME = SeededUser.of(1)
BEN = 77
SOON_S, LATER_S = 0.02, 1.0
_pack, _unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


class Connector:
    """A connector, played by the test."""

    def __init__(self, window: int) -> None:
        self.client: MinimalClient
        self.number = 0
        self.acked = 0
        self._window = window
        self._peer = b""
        self._router = zmq.asyncio.Context().socket(zmq.ROUTER)
        self.endpoint = f"tcp://127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"

    async def frame(self, within_s: float = LATER_S) -> list[Any]:
        self._peer, data = await asyncio.wait_for(self._router.recv_multipart(), within_s)
        frame: list[Any] = _unpack(data)
        if frame[0] == DATA:
            self.acked = frame[2]
        return frame

    async def nothing(self, within_s: float = SOON_S) -> None:
        with pytest.raises(TimeoutError):
            await self.frame(within_s)

    async def send(self, *frame: Any) -> None:
        await self._router.send_multipart([self._peer, _pack(frame)])

    async def welcome(self) -> None:
        greet = await self.frame()
        assert greet[:5] == [GREET, 1, ME.token, ME.epoch, self.client.link]
        await self.send(
            WELCOME,
            1,
            self.client.link,
            5,
            ME.user,
            ME.user,
            self._window,
            1000,
            10_000,
            60_000,
            10_000,
            25_000,
            2_500,
            0,
        )
        await asyncio.wait_for(self.client.welcomed, LATER_S)

    async def data(self, *items: Any, number: int | None = None) -> None:
        """Send the next data frame, or one with that number."""
        if number is None:
            self.number += 1
        await self.send(DATA, self.client.link, number or self.number, self.acked, items)

    def close(self) -> None:
        self._router.close(0)
        self._router.context.term()


@asynccontextmanager
async def linked(window: int = 32) -> AsyncIterator[tuple[Connector, MinimalClient]]:
    connector = Connector(window)
    dialer = Dialer("zeromq")
    client = connector.client = MinimalClient(dialer, Lease("connector", "c1", 1, connector.endpoint), ME)
    try:
        await connector.welcome()
        yield connector, client
    finally:
        client.close()
        dialer.close()
        connector.close()


def submitted(frame: list[Any]) -> list[tuple[int, bytes]]:
    """Return (seq, cookie) of each message that a frame submits."""
    assert frame[0] == DATA
    assert all(item[0] == SUBMIT for item in frame[4])
    return [(_unpack(item[1])[6], item[2]) for item in frame[4]]


def outcome(seq: int, status: int, *, last: int = 0, final: bool = True, cookie: bytes = b"") -> Any:
    return (OUTCOME, (1, BEN, 0), seq, last or seq, status, final, 5, cookie, 0, "")


def delivery(seq: int, base: int = 1, *, stored: bool = False, body: bytes = b"hello") -> Any:
    envelope = (1, bytes(16), BEN, 7, 3, (1, ME.user, 0), seq, base, 1, 0, 0, body)
    return (DELIVERY, _pack(envelope), stored)


async def test_messages_of_one_turn_share_a_frame_and_are_settled_by_their_outcomes() -> None:
    async with linked() as (connector, client):
        settled: list[tuple[Any, int, int]] = []
        client.on_settled = lambda to, seq, status: settled.append((to, seq, status))
        assert [client.send(BEN, b"x") for _ in range(3)] == [1, 2, 3]
        assert submitted(await connector.frame()) == [(1, b""), (2, b""), (3, b"")]
        await connector.data(outcome(1, DELIVERED, last=2))
        await connector.data(outcome(3, STORED, cookie=b"40"))
        assert (await connector.frame())[:3] == [ACK, client.link, 2], "one delayed acknowledgement for both"
        assert settled == [((1, BEN, 0), 1, DELIVERED), ((1, BEN, 0), 2, DELIVERED), ((1, BEN, 0), 3, STORED)]
        client.send(BEN, b"x")
        assert submitted(await connector.frame()) == [(4, b"40")], "it must not overtake what was stored"


async def test_a_message_is_settled_by_its_final_outcome() -> None:
    async with linked() as (connector, client):
        settled: list[int] = []
        client.on_settled = lambda to, seq, status: settled.append(seq)
        client.send(BEN, b"x")
        await connector.frame()
        await connector.data(outcome(1, DELIVERED, final=False))
        await connector.frame()
        assert not settled
        await connector.data(outcome(1, STORED))
        await connector.frame()
        assert settled == [1]


async def test_acknowledgements_open_the_window() -> None:
    async with linked(window=1) as (connector, client):
        client.send(BEN, b"x")
        assert submitted(await connector.frame()) == [(1, b"")]
        client.send(BEN, b"x")
        await connector.nothing()
        await connector.send(ACK, client.link, 1)
        assert submitted(await connector.frame()) == [(2, b"")]


async def test_messages_are_acknowledged_at_once_and_delivered_once() -> None:
    async with linked() as (connector, client):
        came: list[bytes] = []
        client.on_message = lambda body, sender: came.append(body)
        for number, seq in enumerate((1, 2, 3, 2), 1):  # the last one comes again
            await connector.data(delivery(seq, body=b"%d" % seq))
            assert await connector.frame(LATER_S) == [ACK, client.link, number]
        assert came == [b"1", b"2", b"3"]


@pytest.mark.parametrize("number", [1, 3])
async def test_a_frame_that_is_not_the_next_one_ends_the_link(number: int) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with linked() as (connector, client):
        await connector.data(delivery(1))
        await connector.frame()
        await connector.data(delivery(2), number=number)
        async with asyncio.timeout(LATER_S):
            while client.error is None:
                await asyncio.sleep(0)
        assert f"frame {number} came where 2 was expected" in str(client.error)


async def test_a_stored_message_gets_a_receipt() -> None:
    async with linked() as (connector, _):
        await connector.data(delivery(1, stored=True), delivery(2, stored=True))
        frame = await connector.frame()
        assert frame[3] == 1, "it carries the acknowledgement"
        (item,) = frame[4]
        envelope = _unpack(item[1])
        assert envelope[5] == [1, BEN, 0], "to all devices of its sender"
        assert _unpack(envelope[11]) == [1, 7, 3, [1, ME.user, 0], [[1, 2]]]


async def test_it_answers_pings_and_closes_the_link() -> None:
    async with linked() as (connector, client):
        await connector.send(PING, client.link)
        assert await connector.frame() == [PONG, client.link]
        client.close()
        assert (await connector.frame())[:2] == [CLOSE, client.link]
        assert client.error is None


async def test_an_ended_connection_is_reported_once() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["message"]))
    async with linked() as (connector, client):
        await connector.send(CLOSE, client.link, 8, "too much")
        await connector.send(CLOSE, client.link, 8, "too much")
        async with asyncio.timeout(LATER_S):
            while client.error is None:
                await asyncio.sleep(0)
        await asyncio.sleep(SOON_S)
        assert client.closed
    assert reported == [f"device {ME.user}: the connector says [8, 'too much']"]
