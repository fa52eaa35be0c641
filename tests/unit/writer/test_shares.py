"""Which partitions writers own: shares, writers that come and go, and maintenance."""

from meshim.writer.events import (
    Claim,
    Ensure,
    Fetch,
    Purge,
    Release,
    StopRequested,
    Write,
    WritersLiving,
)
from tests.unit.writer.world import LEASE_S, Process, World, fail, record, start, step


class Mesh:
    """Writers that know one another, and time that passes for all."""

    def __init__(self, *names: str, partitions: int) -> None:
        self.world = World(partitions)
        self.partitions = partitions
        self.processes: dict[str, Process] = {}
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        self.processes[name] = Process(self.world, name, partitions=self.partitions)
        self.announce()

    def announce(self) -> None:
        for process in self.processes.values():
            process.tell(WritersLiving(tuple(self.processes)))

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.world.now += 0.25
            for process in self.processes.values():
                process.tick()
                process.run()
                process.answer_idle_fetches()
                process.run()

    @property
    def owned(self) -> list[int]:
        return sorted(len(process.owned()) for process in self.processes.values())

    def check(self) -> None:
        owned = [number for process in self.processes.values() for number in process.owned()]
        assert sorted(owned) == list(range(self.partitions))


def test_a_lone_writer_claims_all_partitions_at_once() -> None:
    mesh = Mesh("a", partitions=4)
    mesh.processes["a"].run()
    assert mesh.owned == [4]


def test_shares_are_rebalanced_when_writers_come_and_go() -> None:
    mesh = Mesh("a", partitions=7)
    mesh.pass_time(2)
    mesh.join("b")
    mesh.pass_time(5)
    assert mesh.owned == [3, 4]
    mesh.join("c")
    mesh.pass_time(5)
    assert mesh.owned == [2, 2, 3]
    mesh.check()
    del mesh.processes["a"]  # killed
    mesh.announce()
    mesh.pass_time(LEASE_S + 3)
    assert mesh.owned == [3, 4]
    mesh.check()


def test_more_writers_than_partitions() -> None:
    mesh = Mesh("a", "b", "c", partitions=2)
    mesh.pass_time(60)
    assert mesh.owned == [0, 1, 1]
    assert all(process.ready() for process in mesh.processes.values())
    mesh.check()


def test_partitions_of_a_living_writer_that_cannot_write_are_taken_over() -> None:
    mesh = Mesh("a", "b", partitions=4)
    sick = mesh.processes.pop("b")  # its lease in Redis lasts, but it is never ticked again
    mesh.pass_time(4 * LEASE_S)
    assert mesh.owned == [4]
    mesh.processes["b"] = sick
    mesh.pass_time(4 * LEASE_S)
    mesh.pass_time(3 * 100 * LEASE_S)
    assert mesh.owned == [2, 2], "uneven shares are rebalanced in the end"


def test_without_redis_free_partitions_are_claimed_after_a_while() -> None:
    world = World(2)
    process = Process(world, "w1")
    process.tick()
    assert process.pending == []
    assert not process.ready()
    deadline = process.core.next_deadline()
    assert deadline is not None
    assert deadline >= world.now + LEASE_S, "the process does not spin until then"
    world.now = deadline
    process.tick()
    process.run()
    assert process.owned() == (0, 1)


def test_not_ready_before_the_log_exists() -> None:
    world = World(1)
    process = Process(world, "w1", partitions=1)
    process.tell(WritersLiving(("w1",)))
    assert not process.ready()
    step(process, Claim)
    fail(process, Ensure)
    assert not process.ready()
    world.now += 1
    process.tick()
    process.run()
    assert process.ready()


def test_ready_although_others_own_all_partitions() -> None:
    world = World(1)
    world.happen(Claim(0), "w0-1")
    process = Process(world, "w1", partitions=1)
    process.tell(WritersLiving(("w1", "w0")))
    process.run()
    assert process.ready()
    assert process.owned() == ()


def test_not_ready_while_the_database_is_away() -> None:
    world = World(1)
    process = Process(world, "w1", partitions=1)
    process.tell(WritersLiving(("w1",)))
    fail(process, Claim)
    assert not process.ready()
    world.now += 1
    process.tick()
    process.run()
    assert process.ready()


# ---------------------------------------------------------------- leaving


def test_stop_writes_what_was_fetched_and_gives_the_partitions_back() -> None:
    world = World(2)
    process = start(world, partitions=2)
    world.publish(0, record((1, (1,), b"m1")))
    process.happen(next(i for i, action in enumerate(process.pending) if action == Fetch(0, 4)))
    process.answer()
    process.tell(StopRequested())
    assert not process.stopped()
    process.run()
    process.answer_idle_fetches()
    process.run()
    assert process.stopped()
    assert not world.log[0]
    assert not world.leases
    assert not process.pending
    assert process.core.next_deadline() is None


def test_stop_does_not_wait_for_a_database_that_is_away() -> None:
    world = World(1)
    process = start(world)
    world.publish(0, record((1, (1,), b"m1")))
    step(process, Fetch)
    process.tell(StopRequested())
    fail(process, Write)
    process.answer_idle_fetches()
    fail(process, Release)
    assert process.stopped()


def test_stop_releases_a_partition_whose_claim_is_answered_late() -> None:
    world = World(1)
    process = Process(world, "w1", partitions=1)
    process.tell(WritersLiving(("w1",)))
    process.tell(StopRequested())
    assert not process.stopped()
    step(process, Claim)
    step(process, Release)
    assert process.stopped()
    assert not world.leases


# ---------------------------------------------------------------- maintenance


def test_maintenance_is_done_by_the_owner_of_partition_0_alone() -> None:
    mesh = Mesh("a", "b", partitions=2)
    mesh.pass_time(5)
    assert mesh.owned == [1, 1]
    (owner,) = [process.owner for process in mesh.processes.values() if 0 in process.owned()]
    assert set(mesh.world.purges) == {owner}


def test_a_batch_follows_soon_after_a_full_one_and_late_after_another() -> None:
    world = World(1)
    world.to_purge = 700
    process = start(world)
    assert process.statistics().purged == 500
    world.now += 1
    process.tick()
    process.run()
    assert process.statistics().purged == 700
    world.now += 60
    process.tick()
    assert not [action for action in process.pending if isinstance(action, Purge)]
