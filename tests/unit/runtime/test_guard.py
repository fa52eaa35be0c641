"""The guard ends connections that do not authenticate, and no others: on real sockets, as descriptors matter."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from meshim.runtime.sockets import Context, Router, RouterStatistics, SendResult, guard, router
from meshim.runtime.sockets.guard import Guard, Guarding
from meshim.runtime.sockets.pump import is_readable
from scripts.harness.clients import raw_zmtp
from tests.unit.runtime.test_sockets import until

FRAME_BYTES = 65_536


class World:
    """A guarded router: a peer is authenticated once it has sent a frame that begins with `k`."""

    def __init__(self, context: Context, **limits: float) -> None:
        self.authenticated: set[bytes] = set()
        self.got: list[bytes] = []
        self.gone: list[bytes] = []
        self.got_before_gone = 0
        values: dict[str, float] = {
            "connections": 100, "unauthenticated_s": 60.0,
            "unauthenticated_frames": 100, "unauthenticated_bytes": 1 << 20, "greeting_bytes": 1 << 20,
            "unfinished_bytes": 16 << 20, "unread_bytes": 4 << 20, "linger_s": 0.1,
        } | limits  # fmt: skip
        self.router: Router = context.router(
            "tcp://127.0.0.1:0", keys=None, frame_bytes=FRAME_BYTES, on_batch=self.on_batch,
            guarding=Guarding(self.authenticated.__contains__, **values, on_gone=self.on_gone),  # type: ignore[arg-type]  # whole numbers are given
        )  # fmt: skip

    def on_gone(self, peer: bytes) -> None:
        self.gone.append(peer)
        self.got_before_gone = len(self.got)

    def on_batch(self, batch: list[tuple[bytes, bytes]]) -> None:
        for peer, frame in batch:
            self.got.append(frame)
            if frame.startswith(b"k"):
                self.authenticated.add(peer)

    @property
    def cut(self) -> int:
        return self.router.statistics.cut


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

    async def send(self, frame: bytes) -> None:
        await until(lambda: self.dealer.send(frame))


def is_cut(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        while end.recv(1_000):
            pass
    except BlockingIOError:
        return False
    return True


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "CHECK_MEMORY_S", 0.02)
    monkeypatch.setattr(router, "CHECK_S", 0.02)
    monkeypatch.setattr(guard, "GROWTH_BYTES", 4 << 20)


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    context = Context()
    yield context
    context.close()


async def test_connections_that_do_not_authenticate_are_cut_and_others_stay(context: Context) -> None:
    world = World(context, unauthenticated_s=0.3)
    silent, unknown, known = (Client(context, world) for _ in range(3))
    await unknown.send(b"hello")
    await known.send(b"known")
    await until(lambda: silent.lost and unknown.lost)
    assert world.cut == 2
    await known.send(b"still here")
    await until(lambda: b"still here" in world.got)
    assert not known.lost


async def test_a_closed_peer_gets_the_last_frame_and_is_cut(context: Context) -> None:
    world = World(context)
    client = Client(context, world)
    await client.send(b"known")
    await until(lambda: world.authenticated)
    await asyncio.sleep(0.1)  # at least one check has seen it
    peer = world.authenticated.pop()
    assert world.router.send(peer, b"last") is SendResult.OK
    world.router.close_peer(peer)
    await until(lambda: client.lost)
    assert client.got == [b"last"]


async def test_a_closed_peer_that_authenticates_again_in_time_stays(context: Context) -> None:
    world = World(context, linger_s=0.2)
    client = Client(context, world)
    await client.send(b"known")
    await until(lambda: world.authenticated)
    world.router.close_peer(world.authenticated.pop())
    await client.send(b"known again")
    await asyncio.sleep(0.5)
    assert not client.lost
    assert world.cut == 0


def read_events(world: World) -> None:
    """Read the events of libzmq, and nothing else, until a connection has ended."""
    deadline = time.monotonic() + 10.0
    while not world.router.statistics.lost:
        assert time.monotonic() < deadline
        world.router._monitor.read_events()
        time.sleep(0.001)


async def test_a_peer_that_leaves_is_reported_after_its_last_frame_and_the_others_are_not(context: Context) -> None:
    world = World(context)
    silent, leaving, staying = (Client(context, world) for _ in range(3))
    await staying.send(b"stays")
    await leaving.send(b"known")
    await until(lambda: world.authenticated)
    assert all(leaving.dealer.send(b"more") for _ in range(300))
    leaving.dealer.close(linger_ms=5_000)
    read_events(world)  # so that the end of the connection is known before any of these frames was read
    assert len(world.got) == 2
    silent.dealer.close()
    await until(lambda: world.gone)
    assert world.gone == list(world.authenticated)
    assert world.got_before_gone == 302
    await staying.send(b"still here")
    await until(lambda: b"still here" in world.got)
    await until(lambda: world.router.statistics.lost == 2)
    assert len(world.gone) == 1, "the silent one had sent nothing"


async def test_a_peer_that_the_guard_cuts_is_reported(context: Context) -> None:
    world = World(context, handshake_s=0.0)
    client = Client(context, world)
    await client.send(b"known")
    await until(lambda: world.authenticated)
    peer = world.authenticated.pop()
    world.router.close_peer(peer, was_authenticated=True)
    await until(lambda: world.gone)
    assert world.gone == [peer]


async def test_no_peer_is_reported_once_the_router_is_closed(context: Context) -> None:
    world = World(context)
    client = Client(context, world)
    await client.send(b"known")
    await until(lambda: world.authenticated)
    world.router._peer_gone(next(iter(world.authenticated)))
    world.router.close()
    await until(lambda: client.lost)
    assert world.gone == []


async def test_a_peer_that_is_gone_is_closed_already(context: Context) -> None:
    World(context).router.close_peer(b"\0\0\0\0\1")


async def test_an_unauthenticated_peer_may_send_a_number_of_frames_and_no_more(context: Context) -> None:
    world = World(context, unauthenticated_frames=10)
    known, stranger = Client(context, world), Client(context, world)
    await known.send(b"known")
    await stranger.send(b"stranger")  # frames are sent once it is connected, and `known` may be done by then
    await until(lambda: world.authenticated)  # before that its frames are counted too
    for _ in range(50):
        await known.send(b"more")
        if not stranger.lost:
            stranger.dealer.send(b"stranger")
        await asyncio.sleep(0)
    await until(lambda: stranger.lost)
    await until(lambda: world.got.count(b"more") == 50)
    assert world.got.count(b"stranger") == 10
    assert not known.lost


async def test_of_too_many_connections_the_oldest_unauthenticated_one_is_cut(context: Context) -> None:
    world = World(context, connections=3)
    clients = [Client(context, world)]
    await clients[0].send(b"known")
    for number in range(1, 4):
        clients.append(Client(context, world))
        await clients[number].send(b"stranger")
        if number == 1:
            await asyncio.sleep(0.1)  # a check has seen that the first is authenticated
    await until(lambda: clients[1].lost)
    assert [client.lost for client in clients] == [False, True, False, False]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not count the bytes of a connection")
async def test_one_message_of_parts_without_end_is_cut(context: Context) -> None:
    world = World(context)
    client = Client(context, world)
    await client.send(b"known")
    most = 400 << 20
    sent = await asyncio.to_thread(raw_zmtp.send_endless_message, world.router.endpoint, FRAME_BYTES, most)
    assert sent < most
    assert world.cut == 1
    await client.send(b"still here")
    await until(lambda: b"still here" in world.got)


async def test_a_peer_that_reads_a_byte_from_time_to_time_is_full_and_is_cut(context: Context) -> None:
    """H6: what it takes changes nothing."""
    world = World(context, linger_s=0.2, handshake_s=0.0)
    with await asyncio.to_thread(raw_zmtp.connect_without_curve, world.router.endpoint) as slow:
        slow.sendall(raw_zmtp.frame(b"known"))
        await until(lambda: world.authenticated)
        peer = next(iter(world.authenticated))
        await until(lambda: any(world.router.send(peer, bytes(4_096)) is SendResult.FULL for _ in range(500)))
        assert world.router.statistics.full == 1
        world.authenticated.clear()
        world.router.close_peer(peer, was_authenticated=True)
        slow.setblocking(False)

        def is_gone() -> bool:
            slow.recv(1)
            return bool(world.gone)

        await until(is_gone)
    assert (world.gone, world.cut) == ([peer], 1)


async def test_what_follows_a_greeting_in_one_batch_is_forgiven(context: Context) -> None:
    """It is counted before the owner has seen the greeting."""
    world = World(context, unauthenticated_frames=10, greeting_bytes=1_000)
    world.router._pump.stop()  # the test reads itself
    for first, more in ((b"known", b"m"), (b"stranger", b"s")):
        with await asyncio.to_thread(raw_zmtp.connect_without_curve, world.router.endpoint) as connection:
            connection.sendall(raw_zmtp.frame(first) + raw_zmtp.frame(more * 100) * 50)  # libzmq reads it at once
            await until(lambda: is_readable(world.router._socket))
            world.router._take()
            assert is_cut(connection) is (first == b"stranger")
    assert (world.got.count(b"m" * 100), world.got.count(b"s" * 100)) == (50, 9)


async def test_an_owner_that_closes_the_router_on_a_greeting_is_not_asked_further(context: Context) -> None:
    world = World(context, unauthenticated_frames=1)
    world.router._pump.stop()  # as above

    def close(batch: list[tuple[bytes, bytes]]) -> None:
        world.on_batch(batch)
        world.router.close()

    world.router._on_batch = close
    with await asyncio.to_thread(raw_zmtp.connect_without_curve, world.router.endpoint) as connection:
        connection.sendall(raw_zmtp.frame(b"stranger") * 10)
        await until(lambda: is_readable(world.router._socket))
        assert world.router._take() is False
    assert world.got == [b"stranger"]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not count the bytes of a connection")
async def test_strangers_that_hold_unfinished_messages_are_cut_at_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(context, greeting_bytes=16_384, unauthenticated_s=60.0)
    client = Client(context, world)
    await client.send(b"known")
    await until(lambda: world.authenticated)
    silent = await asyncio.to_thread(raw_zmtp.connect_without_curve, world.router.endpoint)
    made, _ = await asyncio.to_thread(
        raw_zmtp.hold_unfinished_messages, world.router.endpoint, 20, 8 * FRAME_BYTES, time.monotonic() + 1.0
    )
    assert made > 20, "those that were cut were followed by others"
    await until(lambda: world.router.statistics.lost == made)
    assert world.cut >= made - 20, "the last of them ended by themselves"
    assert not is_cut(silent)
    silent.close()
    await client.send(b"still here")
    await until(lambda: b"still here" in world.got)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not count the bytes of a connection")
def test_of_strangers_that_hold_too_much_together_the_largest_are_cut(
    loopback: "Loopback", monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = [b"\0\0\0\0%c" % number for number in range(1, 7)]
    sizes = (100, 400, 200, 300, 900, 1_100)
    watching = make_guard(lambda peer: peer == peers[4], greeting_bytes=1_000, unfinished_bytes=350)
    ends = []
    for peer, size in zip(peers, sizes, strict=True):
        ours, theirs = loopback.connect()
        watching.accepted(ours.fileno(), 0.0)
        watching.first_frame(peer, ours.fileno())
        theirs.sendall(bytes(size))
        assert len(ours.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)) == size
        ends.append(theirs)
    watching.check_memory(0.0)
    assert [is_cut(end) for end in ends] == [False, True, False, True, False, True], "the fifth is authenticated"


def test_a_peer_that_was_authenticated_may_have_more_under_way_than_a_stranger(loopback: "Loopback") -> None:
    peers = [b"\0\0\0\0\1", b"\0\0\0\0\2"]
    known = {peers[0]}
    watching = make_guard(known.__contains__, greeting_bytes=1_000, unauthenticated_bytes=5_000)
    connections = []
    for peer in peers:
        ours, _ = loopback.connect()
        watching.accepted(ours.fileno(), 0.0)
        connections.append(watching.first_frame(peer, ours.fileno()))
    watching.check(1.0)
    known.clear()
    watching.close(peers[0], 1.0, was_authenticated=True)
    watching.check(1.3)
    was, never = connections
    assert was is not None
    assert never is not None
    assert (watching.may_pass(was, 4_000), watching.may_pass(never, 4_000)) == (True, False)
    assert not watching.may_pass(was, 4_000)


def test_a_flood_does_not_cut_a_closed_peer_before_its_last_frame_has_left(loopback: "Loopback") -> None:
    """Memory is looked at many times a second, and what a stranger sends is counted only from the next check on."""
    peer, known = b"\0\0\0\0\1", {b"\0\0\0\0\1"}
    watching = make_guard(
        known.__contains__, unauthenticated_frames=10, unauthenticated_bytes=1_000, greeting_bytes=1_000
    )
    ours, _ = loopback.connect()
    watching.accepted(ours.fileno(), 0.0)
    connection = watching.first_frame(peer, ours.fileno())
    assert connection is not None
    assert [watching.may_pass(connection, 8) for _ in range(11)] == [True] * 10 + [False]
    known.clear()  # no check came between the greeting and the end of the session
    watching.close(peer, 0.1, was_authenticated=True)
    assert watching.is_forgiven(connection)
    watching.check_memory(0.15)
    watching.check(0.2)
    assert all(watching.may_pass(connection, 8) for _ in range(100))
    watching.check(1.0)
    assert [watching.may_pass(connection, 8) for _ in range(11)] == [True] * 10 + [False]


def test_at_the_limit_of_connections_those_that_are_authenticated_are_not_looked_at(loopback: "Loopback") -> None:
    """There may be thousands of them."""
    asked: list[bytes] = []

    def is_authenticated(peer: bytes) -> bool:
        asked.append(peer)
        return peer[-1] < 50

    watching = make_guard(is_authenticated, connections=52)
    ends = []
    for number in range(54):
        ours, theirs = loopback.connect()
        watching.accepted(ours.fileno(), 0.0)
        watching.first_frame(bytes((0, 0, 0, 0, number)), ours.fileno())
        ends.append(theirs)
        if number == 49:
            watching.check(0.0)
            asked.clear()
    assert asked == [bytes((0, 0, 0, 0, number)) for number in (50, 51)]
    assert [is_cut(end) for end in ends] == [number in (50, 51) for number in range(54)]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not count the bytes of a connection")
def test_heartbeats_of_a_long_life_do_not_count_as_unread_bytes(
    loopback: "Loopback", monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = make_guard()
    for accepted_at in (0.0, 99.0):
        ours, theirs = loopback.connect()
        watching.accepted(ours.fileno(), accepted_at)
        theirs.sendall(bytes(1_000))
        assert len(ours.recv(1_000, socket.MSG_WAITALL)) == 1_000
    watching.check_memory(100.0)
    theirs.setblocking(False)  # a failure rather than a wait
    assert theirs.recv(1) == b"", "the younger one sent more than heartbeats"
    assert watching.statistics.cut == 1


# ---------------------------------------------------------------- descriptors that are used again


class Loopback:
    """Connections over TCP."""

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


def make_guard(is_authenticated: Callable[[bytes], bool] = lambda peer: False, **limits: Any) -> Guard:
    """Without peers that are authenticated, by default."""
    values: dict[str, Any] = {
        "connections": 10, "unauthenticated_s": 5.0, "unauthenticated_frames": 10, "unauthenticated_bytes": 1,
        "greeting_bytes": 1, "unfinished_bytes": 1 << 30, "unread_bytes": 1,
    }  # fmt: skip
    return Guard(Guarding(is_authenticated, **(values | limits)), RouterStatistics())


def test_a_peer_that_authenticated_since_the_last_check_is_not_cut(loopback: Loopback) -> None:
    peers = [b"\0\0\0\0\1", b"\0\0\0\0\2"]
    watching = make_guard(peers[0].__eq__, connections=2)
    ends = [loopback.connect() for _ in range(3)]
    for (ours, _), peer in zip(ends, peers, strict=False):
        watching.accepted(ours.fileno(), 0.0)
        watching.first_frame(peer, ours.fileno())
    watching.accepted(ends[2][0].fileno(), 0.5)  # one more than the limit
    assert watching.statistics.cut == 1
    assert ends[1][1].recv(1) == b"", "the next was the oldest unauthenticated one"


def test_a_descriptor_that_is_used_again_is_another_connection(loopback: Loopback) -> None:
    ours, _ = loopback.connect()
    number = ours.fileno()
    watching = make_guard()
    watching.accepted(number, 0.0)
    again, theirs = loopback.connect()
    os.dup2(again.fileno(), number)  # closes the first
    watching.check(10.0)  # before the event that the first one ended
    theirs.sendall(b"x")
    assert again.recv(1) == b"x"


def test_the_end_of_a_connection_is_not_that_of_the_next_with_its_descriptor(loopback: Loopback) -> None:
    ours, theirs = loopback.connect()
    watching = make_guard()
    watching.accepted(ours.fileno(), 0.0)
    watching.ended(ours.fileno())
    watching.accepted(ours.fileno(), 4.0)
    watching.check(5.0)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"
    watching.check(9.0)
    assert theirs.recv(1) == b"", "it was cut 5 s after it was accepted"


@pytest.mark.parametrize(("ended", "next_"), [(b"\0\0\0\0\1", b"\0\0\0\0\2"), (b"\0\xff\xff\xff\xff", b"\0\0\0\0\0")])
def test_a_last_frame_does_not_take_the_next_connection_with_the_same_descriptor(
    loopback: Loopback, ended: bytes, next_: bytes
) -> None:
    gone: list[bytes] = []
    watching = make_guard(on_gone=gone.append)
    ours, _ = loopback.connect()
    watching.accepted(ours.fileno(), 1.0)
    late = watching.first_frame(ended, ours.fileno())
    assert late is not None
    assert watching.may_pass(late, 1)
    mine = watching.first_frame(next_, ours.fileno())
    assert mine is not None
    assert mine.peer == next_
    assert (mine.frames, mine.bytes_unauthenticated, mine.bytes_read) == (0, 0, 0), "those belong to the earlier peer"
    assert watching.connection(ended) is None
    assert gone == [ended], "its own end was reported before this frame"
    assert watching.connection(next_) is mine
    assert watching.first_frame(ended, ours.fileno()) is None, "one more frame that was under way"
    assert watching.connection(next_) is mine


def test_a_connection_has_all_its_time_although_its_descriptor_was_used_before(loopback: Loopback) -> None:
    known = b"\0\0\0\0\1"
    sessions = {known}
    watching = make_guard(sessions.__contains__, unauthenticated_bytes=1 << 20, linger_s=1.0)
    ours, theirs = loopback.connect()
    watching.accepted(ours.fileno(), 0.0)
    watching.first_frame(known, ours.fileno())  # of the earlier connection
    watching.check(0.5)
    watching.close(known, 0.6, was_authenticated=True)
    sessions.clear()
    watching.first_frame(b"\0\0\0\0\2", ours.fileno())
    watching.check(1.0)
    watching.check(4.9)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"
    watching.check(5.0)
    assert theirs.recv(1) == b""


@pytest.mark.parametrize("was_authenticated", [True, False])
def test_a_flood_does_not_cut_a_session_that_ends_before_its_last_frame(
    loopback: Loopback, was_authenticated: bool
) -> None:
    """Also of a session that began after the last check.  A stranger is cut at its limit."""
    watching = make_guard(unauthenticated_bytes=1 << 20)
    ours, _ = loopback.connect()
    watching.accepted(ours.fileno(), 0.0)
    connection = watching.first_frame(b"\0\0\0\0\1", ours.fileno())
    assert connection is not None
    watching.close(b"\0\0\0\0\1", 0.1, was_authenticated=was_authenticated)
    assert all(watching.may_pass(connection, 1) for _ in range(100)) is was_authenticated
    watching.check(1.0)
    assert not all(watching.may_pass(connection, 1) for _ in range(100))


def test_the_last_frame_of_a_closed_peer_leaves_the_next_connection_the_time_of_its_handshake(
    loopback: Loopback,
) -> None:
    """The frame is read after the next connection got the descriptor, and taken for the first frame of that."""
    watching = make_guard(unauthenticated_s=20.0, linger_s=2.0, handshake_s=10.0)
    ours, theirs = loopback.connect()
    watching.accepted(ours.fileno(), 0.0)
    late = watching.first_frame(b"\0\0\0\0\1", ours.fileno())
    assert late is not None
    watching.close(b"\0\0\0\0\1", 0.1, was_authenticated=False)
    watching.check(9.9)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"
    watching.check(10.0)
    assert theirs.recv(1) == b"", "it is not authenticated by then"


def test_a_connection_that_ended_before_its_event_was_read_is_forgotten() -> None:
    watching = make_guard()
    with socket.socket() as unconnected:
        watching.accepted(unconnected.fileno(), 0.0)
        assert watching.first_frame(b"\0\0\0\0\1", unconnected.fileno()) is None
