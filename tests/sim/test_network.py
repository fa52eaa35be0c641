"""The simulated network does nothing to a frame that TCP would not do: what goes wrong is the connection."""

from tests.sim.network import LinkFaults, Network
from tests.sim.scheduler import Process, Scheduler
from tests.sim.sockets import Context, Dealer, Router
from tests.sim.wires import HEARTBEATS_S, KEEPALIVE_S

FRAMES = 300


class World:
    """A ROUTER and a DEALER in two processes, with what each received."""

    def __init__(self, seed: int = 1, faults: LinkFaults | None = None, *, heartbeats: bool = False, hwm: int = 1_000):
        self.scheduler = Scheduler(seed)
        self.network = Network(self.scheduler)
        self.server, self.client = Process(self.scheduler, "server"), Process(self.scheduler, "client")
        self.up: list[int] = []
        self.down: list[int] = []
        self.lost_at: list[float] = []
        self.peer = b""
        self.router: Router = Context(self.network, self.server).router("e", on_batch=self._hear_up, hwm=hwm)
        self.dealer: Dealer = Context(self.network, self.client).dealer(
            "e", on_batch=self._hear_down, on_lost=lambda: self.lost_at.append(self.scheduler.now),
            heartbeat_s=2.0 if heartbeats else None, hwm=hwm,
        )  # fmt: skip
        self.run(0.1)
        assert self.dealer.send(b"\0\0")
        self.run(0.1)
        self.up.clear()
        self.network.link_faults = faults or LinkFaults()

    def _hear_up(self, batch: list[tuple[bytes, bytes]]) -> None:
        for self.peer, frame in batch:
            self.up.append(int.from_bytes(frame, "big"))

    def _hear_down(self, batch: list[bytes]) -> None:
        self.down += [int.from_bytes(frame, "big") for frame in batch]

    def run(self, seconds: float) -> None:
        self.scheduler.run(self.scheduler.now + seconds)

    def send(self, first: int, last: int, pause_s: float = 0.001) -> list[bool]:
        """Send frames of these numbers in both directions; return whether each found room on its way up."""
        found_room = []
        for number in range(first, last + 1):
            found_room.append(self.dealer.send(number.to_bytes(2, "big")))
            self.router.send(self.peer, number.to_bytes(2, "big"))
            self.run(pause_s)
        return found_room


def numbers(count: int) -> list[int]:
    return list(range(1, count + 1))


def test_without_faults_every_frame_arrives_once_and_in_order() -> None:
    world = World(faults=LinkFaults(delay_s=0.05))
    assert all(world.send(1, FRAMES))
    world.run(1.0)
    assert world.up == world.down == numbers(FRAMES)


def test_a_connection_that_breaks_loses_a_suffix_of_each_direction() -> None:
    cut_short = 0
    for seed in range(40):
        world = World(seed, LinkFaults(delay_s=0.02, breaks=0.01))
        world.send(1, FRAMES)
        world.run(1.0)
        for heard in (world.up, world.down):
            assert heard == numbers(len(heard))
        if world.lost_at:
            cut_short += 1
            assert not world.dealer.send(b"\0\0")
    assert cut_short > 20


def test_silence_takes_one_direction_or_both_and_is_found_by_heartbeats_or_keepalive() -> None:
    kinds = set()
    for seed in range(40):
        heartbeats = bool(seed % 2)
        world = World(seed, LinkFaults(silence=0.002), heartbeats=heartbeats)
        world.send(1, 200)
        world.network.link_faults = LinkFaults()
        world.send(201, FRAMES)
        world.run(0.1)
        assert not world.lost_at, "neither end was told"
        for heard in (world.up, world.down):
            assert heard == numbers(len(heard))
        silent = tuple(len(heard) < FRAMES for heard in (world.up, world.down))
        world.run(HEARTBEATS_S if heartbeats else KEEPALIVE_S)
        assert bool(world.lost_at) is any(silent)
        kinds.add(silent)
    assert kinds == {(False, False), (True, False), (False, True), (True, True)}


def test_a_cut_holds_frames_back_and_a_restored_way_takes_them_in_order() -> None:
    world = World()
    world.send(1, 10)
    world.run(0.1)
    world.network.cut("client", "server", both=False)
    world.send(11, 20)
    world.run(1.0)
    assert (world.up, world.down) == (numbers(10), numbers(20))
    world.network.restore("client", "server")
    world.send(21, 30)
    world.run(1.0)
    assert world.up == world.down == numbers(30)


def test_a_cut_that_lasts_ends_the_connection() -> None:
    world = World()
    world.network.cut("client", "server", both=True)
    world.send(1, 10)
    world.run(KEEPALIVE_S + 0.1)
    world.network.restore("client", "server")
    world.run(1.0)
    assert world.lost_at
    assert world.up == world.down == []


def test_the_sender_of_a_frame_without_room_is_told_and_the_others_arrive() -> None:
    world = World(faults=LinkFaults(full=0.1))
    found_room = world.send(1, FRAMES)
    world.run(1.0)
    assert 0 < found_room.count(False) < FRAMES / 4
    assert world.up == [number for number, found in zip(numbers(FRAMES), found_room, strict=True) if found]


def test_a_peer_that_does_not_read_fills_the_socket() -> None:
    world = World(hwm=10)
    world.server.pause()
    assert world.send(1, 15) == [True] * 10 + [False] * 5
    world.server.resume()
    world.run(1.0)
    assert world.up == numbers(10)
    assert world.send(16, 16) == [True]
