"""Connections that are nobody's end, and nobody else's: on real sockets, since it is all about descriptors."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from meshim.runtime.sockets import Context, Router, Sent, guard, router
from meshim.runtime.sockets.guard import Guard, Guarding
from scripts.harness.clients.raw_zmtp import send_endless_message
from tests.unit.test_sockets import until

FRAME_BYTES = 65_536


class World:
    """A guarded router: peers whose frames begin with `k` are known."""

    def __init__(self, context: Context, **limits: float) -> None:
        self.known: set[bytes] = set()
        self.got: list[bytes] = []
        values: dict[str, float] = {
            "connections": 100, "unknown_s": 60.0, "unknown_frames": 100, "unknown_bytes": 1 << 20,
            "unread_bytes": 4 << 20, "farewell_s": 0.1,
        } | limits  # fmt: skip
        self.router: Router = context.router(
            "tcp://127.0.0.1:0", keys=None, frame_bytes=FRAME_BYTES, on_batch=self.on_batch,
            guarding=Guarding(self.known.__contains__, **values),  # type: ignore[arg-type]  # whole numbers are given
        )  # fmt: skip

    def on_batch(self, batch: list[tuple[bytes, bytes]]) -> None:
        for peer, frame in batch:
            self.got.append(frame)
            if frame.startswith(b"k"):
                self.known.add(peer)

    @property
    def cut(self) -> int:
        return self.router.statistics().cut


class Client:
    def __init__(self, context: Context, world: World) -> None:
        self.got: list[bytes] = []
        self.lost = False
        self.dealer = context.dealer(
            world.router.endpoint, server_key=None, keys=None, frame_bytes=FRAME_BYTES, on_batch=self.got.extend,
            on_lost=self.on_lost,
        )  # fmt: skip

    def on_lost(self) -> None:
        self.lost = True

    async def say(self, frame: bytes) -> None:
        await until(lambda: self.dealer.send(frame))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "SEARCH_S", 0.02)
    monkeypatch.setattr(router, "SWEEP_S", 0.02)
    monkeypatch.setattr(guard, "GROWTH_BYTES", 4 << 20)


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    context = Context()
    yield context
    context.close()


async def test_who_never_says_anything_of_worth_is_cut_and_who_is_known_stays(context: Context) -> None:
    world = World(context, unknown_s=0.3)
    silent, unknown, known = (Client(context, world) for _ in range(3))
    await unknown.say(b"hello")
    await known.say(b"known")
    await until(lambda: silent.lost and unknown.lost)
    assert world.cut == 2
    await known.say(b"still here")
    await until(lambda: b"still here" in world.got)
    assert not known.lost


async def test_who_is_not_known_any_more_hears_the_last_words_and_is_cut(context: Context) -> None:
    world = World(context)
    client = Client(context, world)
    await client.say(b"known")
    await until(lambda: world.known)
    await asyncio.sleep(0.1)  # at least one sweep has seen it
    peer = world.known.pop()
    assert world.router.send(peer, b"farewell") is Sent.OK
    await until(lambda: client.lost)
    assert client.got == [b"farewell"]


async def test_a_stranger_may_say_so_much_and_no_more(context: Context) -> None:
    world = World(context, unknown_frames=10)
    known, stranger = Client(context, world), Client(context, world)
    await known.say(b"known")
    await stranger.say(b"stranger")  # before it is connected nothing is sent, and the known one may be done by then
    await until(lambda: world.known)  # who says eleven things before anybody knows it is a stranger too
    for _ in range(50):
        await known.say(b"more")
        if not stranger.lost:
            stranger.dealer.send(b"stranger")
        await asyncio.sleep(0)
    await until(lambda: stranger.lost)
    await until(lambda: world.got.count(b"more") == 50)
    assert world.got.count(b"stranger") == 10
    assert not known.lost


async def test_when_there_are_too_many_it_is_the_oldest_stranger_who_goes(context: Context) -> None:
    world = World(context, connections=3)
    clients = [Client(context, world)]
    await clients[0].say(b"known")
    for number in range(1, 4):
        clients.append(Client(context, world))
        await clients[number].say(b"stranger")
        if number == 1:
            await asyncio.sleep(0.1)  # a sweep has seen that the first is known
    await until(lambda: clients[1].lost)
    assert [client.lost for client in clients] == [False, True, False, False]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not say what came over a connection")
async def test_one_message_of_parts_without_end_is_cut(context: Context) -> None:
    world = World(context)
    client = Client(context, world)
    await client.say(b"known")
    most = 400 << 20
    sent = await asyncio.to_thread(send_endless_message, world.router.endpoint, FRAME_BYTES, most)
    assert sent < most
    assert world.cut == 1
    await client.say(b"still here")
    await until(lambda: b"still here" in world.got)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not say what came over a connection")
def test_heartbeats_of_a_long_life_are_not_taken_for_what_was_never_read(
    loopback: "Loopback", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "GROWTH_BYTES", 0)  # it searches each time
    watching = lone_guard()
    for accepted_at in (0.0, 99.0):
        ours, theirs = loopback.connect()
        watching.accepted(ours.fileno(), accepted_at)
        theirs.sendall(bytes(1_000))
        assert len(ours.recv(1_000, socket.MSG_WAITALL)) == 1_000
    watching.search(100.0)
    theirs.setblocking(False)  # rather a failure than a wait
    assert theirs.recv(1) == b"", "the young one sent more than heartbeats"
    assert watching.cut == 1


# ---------------------------------------------------------------- numbers that are used again


class Loopback:
    """Connections over TCP: (our end, the other)."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ends: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        theirs = socket.create_connection(self.listener.getsockname(), 5.0)
        ours, _ = self.listener.accept()
        self.ends += (ours, theirs)
        return ours, theirs


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    loopback = Loopback()
    yield loopback
    for each in (loopback.listener, *loopback.ends):
        each.close()


def lone_guard() -> Guard:
    return Guard(Guarding(lambda peer: False, 10, 5.0, 10, 1, 1))


def test_who_is_known_since_the_last_sweep_is_not_the_one_who_goes(loopback: Loopback) -> None:
    peers = [b"\0\0\0\0\1", b"\0\0\0\0\2"]
    watching = Guard(Guarding(peers[0].__eq__, 2, 5.0, 10, 1, 1))
    ends = [loopback.connect() for _ in range(3)]
    for (ours, _), peer in zip(ends, peers, strict=False):
        watching.accepted(ours.fileno(), 0.0)
        watching.heard(peer, ours.fileno())
    watching.accepted(ends[2][0].fileno(), 0.5)  # one more than there may be
    assert watching.cut == 1
    assert ends[1][1].recv(1) == b"", "the next was the oldest stranger"


def test_a_number_that_was_used_again_is_another_connection(loopback: Loopback) -> None:
    ours, _ = loopback.connect()
    number = ours.fileno()
    watching = lone_guard()
    watching.accepted(number, 0.0)
    again, theirs = loopback.connect()
    os.dup2(again.fileno(), number)  # closes the first
    watching.sweep(10.0)  # the news that the first one ended has not come yet
    theirs.sendall(b"x")
    assert again.recv(1) == b"x"


def test_the_end_of_a_connection_is_not_that_of_the_next_with_its_number(loopback: Loopback) -> None:
    ours, theirs = loopback.connect()
    watching = lone_guard()
    watching.accepted(ours.fileno(), 0.0)
    watching.ended(ours.fileno())
    watching.accepted(ours.fileno(), 4.0)
    watching.sweep(5.0)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"
    watching.sweep(9.0)
    assert theirs.recv(1) == b"", "it was cut when its own time was over"


@pytest.mark.parametrize(("ended", "next_"), [(b"\0\0\0\0\1", b"\0\0\0\0\2"), (b"\0\xff\xff\xff\xff", b"\0\0\0\0\0")])
def test_the_last_frame_of_a_peer_that_ended_does_not_take_the_next_connection_with_its_number(
    loopback: Loopback, ended: bytes, next_: bytes
) -> None:
    watching = lone_guard()
    ours, _ = loopback.connect()
    watching.accepted(ours.fileno(), 1.0)
    late = watching.heard(ended, ours.fileno())
    assert late is not None
    assert watching.may_pass(late, 1)
    mine = watching.heard(next_, ours.fileno())
    assert mine is not None
    assert mine.peer == next_
    assert (mine.frames, mine.bytes_unknown, mine.bytes_read) == (0, 0, 0), "those were of the one before"
    assert watching.connection(ended) is None
    assert watching.connection(next_) is mine
    assert watching.heard(ended, ours.fileno()) is None, "one more that was under way"
    assert watching.connection(next_) is mine


def test_a_silent_connection_has_all_its_time_whoever_had_its_number(loopback: Loopback) -> None:
    known = b"\0\0\0\0\1"
    sessions = {known}
    watching = Guard(Guarding(sessions.__contains__, 10, 5.0, 10, 1 << 20, 1, farewell_s=1.0))
    ours, theirs = loopback.connect()
    watching.accepted(ours.fileno(), 0.0)
    watching.heard(known, ours.fileno())  # of the connection before
    watching.sweep(0.5)
    sessions.clear()
    watching.heard(b"\0\0\0\0\2", ours.fileno())
    watching.sweep(1.0)
    watching.sweep(4.9)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"
    watching.sweep(5.0)
    assert theirs.recv(1) == b""


def test_a_connection_that_ended_before_it_was_looked_at_is_forgotten() -> None:
    watching = lone_guard()
    with socket.socket() as unconnected:
        watching.accepted(unconnected.fileno(), 0.0)
        assert watching.heard(b"\0\0\0\0\1", unconnected.fileno()) is None
