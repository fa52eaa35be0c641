"""Real sockets on loopback: messages arrive, foreign ones do not, and the end of a connection is reported."""

import asyncio
import inspect
import itertools
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
import zmq

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.sockets import Context, Dealer, KeyPair, Router, SendResult, pump, router
from meshim.runtime.sockets.zap import Admit

FRAME_BYTES = 4_096
DEADLINE_S = 10.0


LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run `test` on uvloop and asyncio, with a Context; an exception in a callback fails it."""

    async def main(**arguments: object) -> None:
        raised: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        context = Context()
        try:
            await test(context, **arguments)
        finally:
            context.close()
        assert raised == []

    def run(loop_kind: str, **arguments: object) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop_kind]) as runner:
            runner.run(main(**arguments))

    _, *parameters = inspect.signature(test).parameters.values()
    kind = inspect.Parameter("loop_kind", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([kind, *parameters])  # type: ignore[attr-defined]  # what pytest reads
    run.__name__ = test.__name__
    return pytest.mark.parametrize("loop_kind", LOOPS)(run)


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that no callback announces."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Server:
    """A router that keeps the frames that it gets, or echoes them."""

    _domains = itertools.count(1)

    def __init__(
        self,
        context: Context,
        *,
        keys: KeyPair | None = None,
        admit: Admit | None = None,
        echo: bool = False,
        hwm: int = 1_000,
    ) -> None:
        self.got: list[tuple[bytes, bytes]] = []
        self.batches: list[int] = []
        self.echo = echo
        self.router: Router = context.router(
            "tcp://127.0.0.1:0",
            keys=keys,
            domain=f"test{next(self._domains)}" if admit is not None else "",
            admit=admit,
            frame_bytes=FRAME_BYTES,
            on_batch=self.on_batch,
            hwm=hwm,
        )

    def on_batch(self, batch: list[tuple[bytes, bytes]]) -> None:
        self.got += batch
        self.batches.append(len(batch))
        if self.echo:
            for peer, frame in batch:
                assert self.router.send(peer, frame) is SendResult.OK

    @property
    def frames(self) -> list[bytes]:
        return [frame for _, frame in self.got]


class Client:
    """A dealer that keeps the frames that it gets, and the state of its connection."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        *,
        server_key: bytes | None = None,
        keys: KeyPair | None = None,
        heartbeat_s: float = 2.0,
    ) -> None:
        self.got: list[bytes] = []
        self.connected = 0
        self.lost = 0
        self.got_when_lost = -1
        self.dealer: Dealer = context.dealer(
            endpoint,
            server_key=server_key,
            keys=keys,
            frame_bytes=FRAME_BYTES,
            on_batch=self.got.extend,
            on_connected=self.on_connected,
            on_lost=self.on_lost,
            heartbeat_s=heartbeat_s,
        )

    def on_connected(self) -> None:
        self.connected += 1

    def on_lost(self) -> None:
        self.lost += 1
        self.got_when_lost = len(self.got)

    async def connect(self) -> "Client":
        await until(lambda: self.connected or self.lost)
        assert self.connected == 1
        assert not self.lost
        return self


def port_of(router: Router) -> int:
    return int(router.endpoint.rpartition(":")[2])


async def refused(client: Client) -> None:
    """Wait until the client was refused."""
    await until(lambda: client.lost)
    assert client.connected == 0
    assert not client.dealer.send(b"x")
    client.dealer._on_event(int(zmq.EVENT_DISCONNECTED))  # libzmq reports a failed handshake by two events
    assert client.lost == 1


# ---------------------------------------------------------------- nothing is lost on the way


@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
@pytest.mark.parametrize("window", [1, 3, 500])
@on_each_loop
async def test_ten_thousand_echoes(context: Context, window: int, curve: bool) -> None:
    keys = KeyPair.new() if curve else None
    server = Server(context, keys=keys, echo=True)
    client = await Client(context, server.router.endpoint, server_key=keys.public if keys else None).connect()
    frames = [b"%d" % number for number in range(10_000 if window > 1 else 1_000)]
    sent = 0
    done = asyncio.Event()

    def on_batch(batch: list[bytes]) -> None:
        client.got += batch
        fill()
        if len(client.got) == len(frames):
            done.set()

    def fill() -> None:
        nonlocal sent
        while sent < len(frames) and sent - len(client.got) < window and client.dealer.send(frames[sent]):
            sent += 1

    client.dealer._on_batch = on_batch
    fill()
    await asyncio.wait_for(done.wait(), DEADLINE_S)
    assert client.got == frames
    assert server.frames == frames


@on_each_loop
async def test_a_send_that_consumes_the_edge_loses_no_message(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"first")
    await until(lambda: server.got)
    peer = server.got[0][0]
    descriptor = server.router._socket.FD
    for number in range(50):
        assert client.dealer.send(b"%d" % number)
        # The loop is blocked while the message arrives: its edge is there, and this send consumes it.
        assert select.select([descriptor], [], [], DEADLINE_S)[0]
        assert server.router.send(peer, b"unrelated") is SendResult.OK
        await until(lambda want=number: len(server.got) == want + 2)  # type: ignore[misc]  # bound in the loop


@on_each_loop
async def test_a_flood_does_not_block_the_loop(context: Context) -> None:
    server = Server(context, hwm=100_000)
    client = Client(context, server.router.endpoint)
    await client.connect()
    turns: list[int] = []
    left = 20_000

    def other_work() -> None:
        nonlocal left
        turns.append(len(server.batches))
        for _ in range(5_000):
            left -= left > 0 and client.dealer.send(b"x")
        if len(server.got) < 20_000:
            asyncio.get_running_loop().call_soon(other_work)

    other_work()
    await until(lambda: len(server.got) == 20_000)
    assert max(server.batches) <= pump.READ_MESSAGES_MAX
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 2


@on_each_loop
async def test_a_batch_is_bounded_in_bytes(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshim.runtime.sockets.router.READ_BYTES_MAX", 10_000)
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    for _ in range(300):
        assert client.dealer.send(bytes(4_000))
    await until(lambda: len(server.got) == 300)
    assert max(server.batches) <= 3


@on_each_loop
async def test_frames_sent_before_the_end_arrive_before_it(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "meshim.runtime.sockets.dealer.READ_MESSAGES_MAX", 10
    )  # so that the end is reported before all is read
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"hello")
    await until(lambda: server.got)
    for _ in range(900):
        assert server.router.send(server.got[0][0], b"last words") is SendResult.OK
    server.router.close(linger_ms=5_000)
    await until(lambda: client.lost)
    assert client.got_when_lost == len(client.got) == 900


# ---------------------------------------------------------------- full, gone, lost


@on_each_loop
async def test_full_is_reported_and_passes(context: Context) -> None:
    server = Server(context, hwm=10)
    with zmq.Context() as plain, plain.socket(zmq.DEALER) as slow:
        slow.set(zmq.LINGER, 0)
        slow.set(zmq.RCVHWM, 1)
        slow.connect(server.router.endpoint)
        slow.send(b"hello")
        await until(lambda: server.got)
        peer = server.got[0][0]
        sent = 0

        def fill() -> bool:
            nonlocal sent
            while (answer := server.router.send(peer, bytes(FRAME_BYTES))) is SendResult.OK:
                sent += 1
                assert sent < 100_000, "bounded"
            return answer is SendResult.FULL and sent > 20  # beyond the marks, the buffers of TCP are full too

        await until(fill)
        assert server.router.statistics.full >= 1
        slow.set(zmq.RCVTIMEO, 5_000)
        for _ in range(sent // 2):
            slow.recv()
        await until(lambda: server.router.send(peer, b"again") is SendResult.OK)


@on_each_loop
async def test_gone_is_reported(context: Context) -> None:
    server = Server(context)
    assert server.router.send(b"\0none", b"x") is SendResult.GONE
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"hello")
    await until(lambda: server.got)
    client.dealer.close()
    await until(lambda: server.router.send(server.got[0][0], b"x") is SendResult.GONE)
    assert server.router.statistics.gone >= 2
    assert client.lost == 0  # `close` is not a loss


@on_each_loop
async def test_a_closed_socket_sends_nothing_and_does_not_raise(context: Context) -> None:
    """A role that stops closes its sockets while answers are still under way."""
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"hello")
    await until(lambda: server.got)
    client.dealer.close()
    assert not client.dealer.send(b"late")
    server.router.close()
    assert server.router.send(server.got[0][0], b"late") is SendResult.GONE


@on_each_loop
async def test_lost_is_reported_once_when_the_server_goes(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    server.router.close()
    await until(lambda: client.lost)
    assert not client.dealer.send(b"x")
    again = Server(context)  # time for other events
    await Client(context, again.router.endpoint).connect()
    assert client.lost == 1


@on_each_loop
async def test_a_lost_connection_is_not_made_again(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    server.router.close()
    await until(lambda: client.lost)
    with socket.create_server(("127.0.0.1", port_of(server.router))) as listener:
        listener.settimeout(0.3)  # libzmq would connect again after 0.1 s
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listener.accept)


@on_each_loop
async def test_lost_is_reported_when_the_port_is_closed(context: Context) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    await refused(Client(context, f"tcp://127.0.0.1:{port}"))


@on_each_loop
async def test_a_peer_that_falls_silent_is_lost(context: Context) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(context, f"tcp://127.0.0.1:{listener.getsockname()[1]}", heartbeat_s=0.05)
        connection, _ = await asyncio.to_thread(listener.accept)
        with connection:
            connection.sendall(zmtp_greeting(b"NULL") + zmtp_ready(b"ROUTER"))
            await until(lambda: client.connected)
            await until(lambda: client.lost)  # it never answered a heartbeat, and never closed


@on_each_loop
async def test_a_silent_client_is_dropped(context: Context) -> None:
    server = context.router(
        "tcp://127.0.0.1:0",
        keys=None,
        frame_bytes=FRAME_BYTES,
        on_batch=lambda batch: None,
        heartbeat_s=0.05,
    )
    with socket.create_connection(("127.0.0.1", port_of(server))) as peer:
        peer.sendall(zmtp_greeting(b"NULL") + zmtp_ready(b"DEALER"))
        await until(lambda: server.statistics.accepted == 1)
        await until(lambda: server.statistics.lost == 1)


# ---------------------------------------------------------------- CURVE and admission


@on_each_loop
async def test_curve_admits_clients_that_know_the_server_key_and_refuses_others(context: Context) -> None:
    keys = KeyPair.new()
    server = Server(context, keys=keys)
    good = await Client(context, server.router.endpoint, server_key=keys.public).connect()
    await refused(Client(context, server.router.endpoint, server_key=KeyPair.new().public))
    await refused(Client(context, server.router.endpoint))  # plain
    assert good.dealer.send(b"hello")
    await until(lambda: server.frames == [b"hello"])
    await until(lambda: server.router.statistics.failed_handshakes == 2)
    await until(lambda: server.router.statistics.lost == 2)
    assert server.router.statistics.accepted == 3


@on_each_loop
async def test_a_client_that_insists_on_curve_does_not_talk_to_a_plain_server(context: Context) -> None:
    server = Server(context)
    await refused(Client(context, server.router.endpoint, server_key=KeyPair.new().public))


@on_each_loop
async def test_only_known_keys_are_admitted(context: Context) -> None:
    keys, ours, strange = KeyPair.new(), KeyPair.new(), KeyPair.new()
    asked: list[bytes] = []

    def admit(key: bytes) -> str:
        asked.append(key)
        return "ours" if key == ours.public else ""

    server = Server(context, keys=keys, admit=admit)
    clients = Server(context, keys=keys, admit=None)  # no domain: every key is admitted
    await Client(context, server.router.endpoint, server_key=keys.public, keys=ours).connect()
    await refused(Client(context, server.router.endpoint, server_key=keys.public, keys=strange))
    await refused(Client(context, server.router.endpoint, server_key=keys.public))
    await Client(context, clients.router.endpoint, server_key=keys.public, keys=strange).connect()
    assert asked[:2] == [ours.public, strange.public]
    assert len(asked) == 3


@on_each_loop
async def test_admission_may_be_asynchronous(context: Context) -> None:
    keys, ours = KeyPair.new(), KeyPair.new()
    known: set[bytes] = set()
    asked = asyncio.Event()
    looked_up = asyncio.Event()

    async def admit(key: bytes) -> str:
        asked.set()
        await looked_up.wait()
        return "known" if key in known else ""

    server = Server(context, keys=keys, admit=admit)
    client = Client(context, server.router.endpoint, server_key=keys.public, keys=ours)
    stranger = Client(context, server.router.endpoint, server_key=keys.public)
    await asked.wait()
    assert not client.connected
    known.add(ours.public)
    looked_up.set()
    await client.connect()
    await refused(stranger)


@on_each_loop
async def test_the_owner_of_the_key_is_known_by_peer(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the owners of so many peers are known that they are forgotten."""
    monkeypatch.setattr(router, "USER_IDS_MAX", 1)
    keys, owners = KeyPair.new(), {KeyPair.new(): name for name in ("one", "two", "three")}
    names = {pair.public: name for pair, name in owners.items()}
    server = Server(context, keys=keys, admit=names.__getitem__)
    clients = {
        name: await Client(context, server.router.endpoint, server_key=keys.public, keys=pair).connect()
        for pair, name in owners.items()
    }
    for name in (*clients, *clients):
        server.got.clear()
        assert clients[name].dealer.send(name.encode())
        await until(lambda: server.got)
        ((peer, frame),) = server.got
        assert server.router.user_ids is not None
        assert server.router.user_ids[peer] == frame.decode() == name
        assert len(server.router.user_ids) <= 2


@on_each_loop
async def test_no_owner_is_known_where_no_key_is_checked(context: Context) -> None:
    keys = KeyPair.new()
    for server in (Server(context), Server(context, keys=keys), Server(context, admit=lambda key: "anybody")):
        assert server.router.user_ids is None


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@on_each_loop
async def test_a_key_that_cannot_be_checked_now_is_refused(context: Context, later: bool) -> None:
    keys = KeyPair.new()

    async def cannot_tell() -> None:
        return None

    server = Server(context, keys=keys, admit=lambda key: cannot_tell() if later else None)
    await refused(Client(context, server.router.endpoint, server_key=keys.public))


@on_each_loop
async def test_a_bug_in_admission_is_reported_to_the_loop(context: Context) -> None:
    keys = KeyPair.new()
    reported: list[BaseException | None] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what.get("exception")))

    async def admit(key: bytes) -> str:
        raise ZeroDivisionError

    server = Server(context, keys=keys, admit=admit)
    client = Client(context, server.router.endpoint, server_key=keys.public)
    await until(lambda: reported)
    assert isinstance(reported[0], ZeroDivisionError)
    assert not client.connected


# ---------------------------------------------------------------- what peers should not do


@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
@on_each_loop
async def test_a_frame_that_is_too_large_cuts_its_connection_only(context: Context, curve: bool) -> None:
    keys = KeyPair.new() if curve else None
    server = Server(context, keys=keys, echo=True)
    server_key = keys.public if keys else None
    honest = await Client(context, server.router.endpoint, server_key=server_key).connect()
    greedy = await Client(context, server.router.endpoint, server_key=server_key).connect()
    assert greedy.dealer.send(bytes(FRAME_BYTES))
    await until(lambda: server.got)
    assert greedy.dealer.send(bytes(FRAME_BYTES + 1))
    await until(lambda: greedy.lost)
    await until(lambda: server.router.statistics.lost == 1)
    assert honest.dealer.send(b"still here")
    await until(lambda: honest.got == [b"still here"])
    assert server.frames == [bytes(FRAME_BYTES), b"still here"]
    assert not honest.lost


@on_each_loop
async def test_a_router_cannot_flood_a_dealer_either(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"hello")
    await until(lambda: server.got)
    assert server.router.send(server.got[0][0], bytes(FRAME_BYTES + 1)) is SendResult.OK
    await until(lambda: client.lost)
    assert client.got == []


@on_each_loop
async def test_messages_of_several_parts_or_none_are_dropped_and_counted(context: Context) -> None:
    server = Server(context, echo=True)
    with zmq.Context() as plain, plain.socket(zmq.DEALER) as peer:
        peer.set(zmq.LINGER, 0)
        peer.set(zmq.RCVTIMEO, 5_000)
        peer.connect(server.router.endpoint)
        peer.send(b"")
        peer.send_multipart([b"a", b"\0fake", b"as if from another"])
        peer.send_multipart([b"", b"a"])
        peer.send(b"good")
        await until(lambda: server.got)
        assert server.frames == [b"good"]
        assert server.router.statistics.malformed == 3
        assert peer.recv() == b"good"


@on_each_loop
async def test_a_dealer_drops_and_counts_them_too(context: Context) -> None:
    with zmq.Context() as plain, plain.socket(zmq.ROUTER) as peer:
        peer.set(zmq.LINGER, 0)
        peer.set(zmq.RCVTIMEO, 5_000)
        peer.bind("tcp://127.0.0.1:0")
        client = await Client(context, peer.get_string(zmq.LAST_ENDPOINT)).connect()
        assert client.dealer.send(b"hello")
        us, _ = await asyncio.to_thread(peer.recv_multipart)
        peer.send_multipart([us, b"a", b"b", b"c"])
        peer.send_multipart([us, b""])
        peer.send_multipart([us, b"good"])
        await until(lambda: client.got)
        assert client.got == [b"good"]
        assert client.dealer.statistics.malformed == 2


@on_each_loop
async def test_frames_of_peers_that_chose_their_routing_id_are_dropped(context: Context) -> None:
    server = Server(context)
    with zmq.Context() as plain, plain.socket(zmq.DEALER) as thief, plain.socket(zmq.DEALER) as second:
        for peer in (thief, second):
            peer.set(zmq.LINGER, 0)
            peer.set(zmq.ROUTING_ID, b"alice")
            peer.connect(server.router.endpoint)
            peer.send(b"it is me")
        await until(lambda: server.router.statistics.foreign == 1)  # ROUTER itself ignores the second
        honest = await Client(context, server.router.endpoint).connect()
        assert honest.dealer.send(b"hello")
        await until(lambda: server.got)
        assert server.frames == [b"hello"]


@on_each_loop
async def test_an_id_like_those_that_router_assigns_is_not_accepted(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"hello")
    await until(lambda: server.got)
    assigned = struct.unpack(">I", server.got[0][0][1:])[0]
    with socket.create_connection(("127.0.0.1", port_of(server.router))) as peer:
        next_one = b"\0" + struct.pack(">I", (assigned + 1) % 2**32)
        peer.sendall(zmtp_greeting(b"NULL") + zmtp_ready(b"DEALER", identity=next_one) + b"\0\5hello")
        peer.settimeout(DEADLINE_S)
        while await asyncio.to_thread(peer.recv, 4_096):  # until it is cut
            pass
    assert len(server.got) == 1
    other = await Client(context, server.router.endpoint).connect()
    assert other.dealer.send(b"hello")
    await until(lambda: len(server.got) == 2)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, os.urandom(5_000), b"\0"])
@on_each_loop
async def test_garbage_is_cut_and_counted(context: Context, garbage: bytes) -> None:
    server = Server(context, keys=KeyPair.new())
    with socket.create_connection(("127.0.0.1", port_of(server.router))) as peer:
        peer.sendall(garbage)
        await until(lambda: server.router.statistics.accepted == 1)
    await until(lambda: server.router.statistics.lost == 1)
    assert server.got == []


# ---------------------------------------------------------------- setting up, tearing down


@on_each_loop
async def test_port_0_takes_a_free_port_and_reports_it(context: Context) -> None:
    router = Server(context).router
    host, _, port = router.endpoint.rpartition(":")
    assert host == "tcp://127.0.0.1"
    assert int(port) > 0
    with pytest.raises(UsageError, match="is in use"):
        context.router(router.endpoint, keys=None, frame_bytes=FRAME_BYTES, on_batch=lambda batch: None)


@pytest.mark.parametrize(
    ("bind", "sentence"),
    [
        ("tcp://192.0.2.1:0", "not an address of this machine"),
        ("tcp://no-such-device:0", "not an address of this machine"),
        ("127.0.0.1:0", "write it as tcp://ADDRESS:PORT"),
        ("tcp://127.0.0.1:port", "write it as tcp://ADDRESS:PORT"),
    ],
)
@on_each_loop
async def test_wrong_addresses_to_bind_are_explained(context: Context, bind: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        context.router(bind, keys=KeyPair.new(), frame_bytes=FRAME_BYTES, on_batch=lambda batch: None)
    Server(context)  # the context still works


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "smoke://signal"])
@on_each_loop
async def test_wrong_addresses_to_connect_to_are_explained(context: Context, endpoint: str) -> None:
    with pytest.raises(UsageError, match="write it as tcp://HOST:PORT"):
        Client(context, endpoint)


@pytest.mark.parametrize("key", [b"", b"short", b"k" * 39, b"\xe2" * 40])
@on_each_loop
async def test_a_malformed_key_of_the_server_is_explained(context: Context, key: bytes) -> None:
    with pytest.raises(UsageError, match="is not a CURVE key of 40 characters"):
        Client(context, "tcp://127.0.0.1:1", server_key=key)


@on_each_loop
async def test_ipv6(context: Context) -> None:
    router = context.router("tcp://[::1]:0", keys=None, frame_bytes=FRAME_BYTES, on_batch=lambda batch: None)
    await Client(context, router.endpoint).connect()


@on_each_loop
async def test_a_domain_belongs_to_one_socket(context: Context) -> None:
    for expected in (True, False):
        try:
            context.router(
                "tcp://127.0.0.1:0",
                keys=KeyPair.new(),
                domain="same",
                admit=lambda key: "anybody",
                frame_bytes=FRAME_BYTES,
                on_batch=lambda batch: None,
            )
        except AssertionError:
            assert not expected
        else:
            assert expected


@on_each_loop
async def test_closing_from_within_a_callback(context: Context) -> None:
    server = Server(context, echo=True)
    client = await Client(context, server.router.endpoint).connect()
    closed: list[list[bytes]] = []

    def on_batch(batch: list[bytes]) -> None:
        other.close()
        closed.append(batch)

    other = context.dealer(
        server.router.endpoint, server_key=None, keys=None, frame_bytes=FRAME_BYTES, on_batch=on_batch, on_lost=None
    )
    await until(lambda: other.send(b"x"))
    await until(lambda: closed)
    second = Client(context, server.router.endpoint)
    second.on_lost = second.dealer.close  # type: ignore[method-assign]
    client.dealer._on_lost = client.dealer.close
    server.router.close()
    await until(lambda: client.dealer._socket.closed)
    assert closed == [[b"x"]]


@on_each_loop
async def test_on_lost_is_not_called_after_a_close_at_the_last_frame(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    assert client.dealer.send(b"hello")
    await until(lambda: server.got)
    client.dealer._on_batch = lambda batch: client.dealer.close()
    assert server.router.send(server.got[0][0], b"bye") is SendResult.OK
    assert select.select([client.dealer._socket.FD], [], [], DEADLINE_S)[0]
    client.dealer._on_event(int(zmq.EVENT_DISCONNECTED))  # before the message was read
    assert client.dealer._socket.closed
    assert client.lost == 0


@on_each_loop
async def test_every_limit_is_set_in_libzmq(context: Context) -> None:
    server = Server(context, keys=(keys := KeyPair.new()), hwm=7)
    client = Client(context, server.router.endpoint, server_key=keys.public, heartbeat_s=1.5)
    both = {zmq.LINGER: 0, zmq.HANDSHAKE_IVL: 10_000, zmq.MAXMSGSIZE: FRAME_BYTES + 33, zmq.TCP_KEEPALIVE: 1}
    expected: dict[Router | Dealer, dict[zmq.SocketOption, int]] = {
        server.router: both | {zmq.SNDHWM: 7, zmq.RCVHWM: 7, zmq.BACKLOG: 4_096, zmq.HEARTBEAT_IVL: 2_000},
        client.dealer: both | {zmq.SNDHWM: 1_000, zmq.HEARTBEAT_IVL: 1_500, zmq.HEARTBEAT_TTL: 3_000},
    }
    quiet = context.dealer(
        server.router.endpoint, server_key=keys.public, keys=None, frame_bytes=FRAME_BYTES, on_batch=lambda batch: None,
        on_lost=None, heartbeat_s=None,
    )  # fmt: skip
    expected[quiet] = both | {
        zmq.HEARTBEAT_IVL: 0,
        zmq.HEARTBEAT_TTL: 0,
        zmq.TCP_KEEPALIVE_IDLE: 4,
        zmq.TCP_MAXRT: 10_000,
    }
    for peer, options in expected.items():
        assert {option: peer._socket.get(option) for option in options} == options


@on_each_loop
async def test_thousands_of_connections_leave_nothing_behind(context: Context) -> None:
    server = Server(context, keys=(keys := KeyPair.new()))
    await Client(context, server.router.endpoint, server_key=keys.public).connect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        clients = [Client(context, server.router.endpoint, server_key=keys.public) for _ in range(20)]
        for client in clients:
            await client.connect()
            client.dealer.close()
    await until(lambda: server.router.statistics.lost == 200)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@on_each_loop
async def test_closing_twice_is_closing_once(context: Context) -> None:
    server = Server(context)
    client = await Client(context, server.router.endpoint).connect()
    client.dealer.close()
    client.dealer.close()
    server.router.close()
    server.router.close()
    context.close()


# ---------------------------------------------------------------- ZMTP 3.0 by hand


def zmtp_greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def zmtp_ready(kind: bytes, identity: bytes = b"") -> bytes:
    def entry(name: bytes, value: bytes) -> bytes:
        return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value

    body = b"\x05READY" + entry(b"Socket-Type", kind) + entry(b"Identity", identity)
    return bytes([4, len(body)]) + body


@pytest.mark.parametrize("left", range(9))
@on_each_loop
async def test_a_dealer_without_descriptors_is_refused_or_lost(context: Context, left: int) -> None:
    """Whatever is missing, of the sockets that it takes and of the one of its I/O thread, its owner tries again."""
    lost: list[str] = []
    refused: list[str] = []

    def connect() -> Dealer:
        return context.dealer(
            "tcp://127.0.0.1:1",
            server_key=None, keys=None, frame_bytes=FRAME_BYTES,
            on_batch=lambda _: None, on_lost=lambda: lost.append(""),
        )  # fmt: skip

    connect()
    await until(lambda: lost)  # the first socket starts the I/O thread, which has descriptors of its own
    lost.clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]  # no numbers below are free
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + left, hard))
    try:
        try:
            connect()
        except BackendUnavailable as error:
            refused.append(error.sentence)
        await until(lambda: lost or refused)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert all("Too many open files" in sentence for sentence in refused)
