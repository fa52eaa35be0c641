"""The simulated byte streams do nothing to a byte that TCP would not do."""

import asyncio

from tests.sim.network import LinkFaults, Network
from tests.sim.scheduler import Process, Scheduler
from tests.sim.streams import KEEPALIVE_S, Port


class Peer(asyncio.Protocol):
    """Notes what arrives, and how the connection ends."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.pieces: list[bytes] = []
        self.ended: list[object] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


class World:
    """A server and a client in two processes, connected."""

    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        self.network = Network(self.scheduler)
        processes = Process(self.scheduler, "server"), Process(self.scheduler, "client")
        for process in processes:
            process.on_end = lambda process=process: self.network.died(process)  # type: ignore[misc]
        self.server_process, self.client_process = processes
        self.server, self.client = Peer(), Peer()
        Port(self.network, self.server_process, "host").listen(lambda: self.server)
        self.client_process.connect = self.network.streams.connect
        loop = self.client_process.loop

        async def connect() -> None:
            await loop.create_connection(lambda: self.client, "host", 80, ssl=None)

        def start() -> None:
            loop.call_soon(lambda: loop.create_task(connect()))

        self.scheduler.after(0.0, start)
        self.run(0.1)

    def run(self, seconds: float) -> None:
        self.scheduler.run(self.scheduler.now + seconds)

    def write(self, count: int) -> bytes:
        """Write numbers in both directions; return all that was written in one of them."""
        for number in range(count):
            for each in (self.client, self.server):
                each.transport.write(number.to_bytes(4, "big"))
            self.run(0.001)
        return b"".join(number.to_bytes(4, "big") for number in range(count))


def test_bytes_arrive_once_in_order_and_in_pieces() -> None:
    world = World()
    written = world.write(300)
    world.run(1.0)
    assert world.server.data == world.client.data == written
    assert {len(piece) % 4 for piece in world.server.pieces} == {0, 1, 2, 3}
    assert any(len(piece) > 4 for piece in world.server.pieces)


def test_a_connection_that_breaks_loses_a_suffix_and_tells_both_ends() -> None:
    world = World()
    world.network.link_faults = LinkFaults(breaks=1.0)
    written = world.write(1)
    world.network.link_faults = LinkFaults()
    world.run(1.0)
    for end in (world.server, world.client):
        assert written.startswith(end.data)
        assert [type(error) for error in end.ended] == [ConnectionResetError]


def test_a_silent_connection_is_found_after_the_heartbeats_of_a_client() -> None:
    world = World()
    world.network.link_faults = LinkFaults(silence=1.0)
    world.write(1)
    world.network.link_faults = LinkFaults()
    world.run(KEEPALIVE_S - 1.0)
    assert world.server.ended == world.client.ended == []
    world.run(2.0)
    assert len(world.server.ended) == len(world.client.ended) == 1


def test_a_cut_holds_back_bytes_and_the_end() -> None:
    world = World()
    world.network.cut("client", "server", both=True)
    world.client.transport.write(b"last words")
    world.client.transport.close()
    world.run(5.0)
    assert (world.server.data, world.server.ended) == (b"", [])
    world.network.restore("client", "server")
    world.run(1.0)
    assert (world.server.data, world.server.ended) == (b"last words", [None])


def test_a_process_that_dies_leaves_bytes_behind_or_resets() -> None:
    seen = set()
    for seed in range(20):
        world = World(seed)
        world.client.transport.write(b"last words")
        world.client_process.kill()
        world.run(1.0)
        (error,) = world.server.ended
        assert world.server.data == (b"last words" if error is None else b"")
        seen.add(type(error))
    assert seen == {type(None), ConnectionResetError}


def test_what_a_stopped_process_does_not_read_waits_in_the_other() -> None:
    world = World()
    world.server_process.pause()
    world.client.transport.write(bytes(100_000))
    world.run(1.0)
    assert world.client.transport.get_write_buffer_size() == 100_000 - 65_536
    world.scheduler.after(0.0, world.server_process.resume)
    world.run(1.0)
    assert len(world.server.data) == 100_000
    assert world.client.transport.get_write_buffer_size() == 0
