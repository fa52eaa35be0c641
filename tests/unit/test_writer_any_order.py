"""Whatever happens in between, writers write each message once, in order, and skip none."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.stores.ports import Seat
from meshim.writer.events import (
    StopRequested,
    WritersSeen,
)
from tests.unit.writer_world import GARBAGE, LEASE_S, REFUSED, Process, World, record


class AnyOrder(RuleBasedStateMachine):
    """Two writers, one of them often dead; actions happen, fail and are answered in any order.

    What was under way when a process crashed may still happen: a fenced-off writer commits late (R15).
    """

    partitions = 2

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.partitions)
        self.world.seats = {user: Seat(user, user, 9, 1) for user in range(1, 4)}
        self.published: dict[tuple[int, int], bytes] = {}
        self.lost: set[tuple[int, int]] = set()
        self.incarnations = 0
        self.ghosts: list[Process] = []
        self.processes = [self.new("a"), self.new("b")]

    def new(self, name: str) -> Process:
        self.incarnations += 1
        process = Process(self.world, name, self.incarnations, self.partitions, records=3)
        process.tell(WritersSeen(("a", "b")))
        return process

    @rule(partition=st.integers(0, 1), sort=st.sampled_from("eeeegr"), entries=st.integers(1, 3))
    def publish(self, partition: int, sort: str, entries: int) -> None:
        if partition not in self.world.streams:
            return
        unique = b"%d/%d" % (partition, self.world.last[partition] + 1)
        data = record(*((user, (user,), b"%s/%d" % (unique, user)) for user in range(1, entries + 1)))
        if sort == "g":
            data = GARBAGE
        elif sort == "r":
            data = record((1, (1,), unique), (2, (2,), REFUSED))
        self.published[partition, self.world.publish(partition, data)] = data

    @rule(who=st.integers(0, 1), which=st.integers(0, 7), answer=st.booleans())
    def happen(self, who: int, which: int, answer: bool) -> None:
        process = self.processes[who]
        if which < len(process.pending):
            process.happen(which)
            if answer:
                process.answer(len(process.answers) - 1)

    @rule(who=st.integers(0, 1), which=st.integers(0, 7), after_the_effect=st.booleans())
    def fail(self, who: int, which: int, after_the_effect: bool) -> None:
        process = self.processes[who]
        if which < len(process.pending):
            process.fail(which, after_the_effect=after_the_effect)

    @rule(who=st.integers(0, 1), which=st.integers(0, 7))
    def answer(self, who: int, which: int) -> None:
        process = self.processes[who]
        if which < len(process.answers):
            process.answer(which)

    @rule(who=st.integers(0, 1))
    def work(self, who: int) -> None:
        self.processes[who].run()

    @rule(who=st.integers(0, 1), seconds=st.sampled_from([0.1, 1.0, LEASE_S + 1]))
    def sleep(self, who: int, seconds: float) -> None:
        self.world.now += seconds
        self.processes[who].tick()

    @rule(partition=st.integers(0, 1))
    def redeliver(self, partition: int) -> None:
        self.world.redeliver(partition)

    @rule(partition=st.integers(0, 1), index=st.integers(0, 5))
    def lose(self, partition: int, index: int) -> None:
        """Somebody deletes a message from the log."""
        there = sorted(self.world.log[partition])
        if index < len(there):
            del self.world.log[partition][there[index]]
            self.lost.add((partition, there[index]))

    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        self.ghosts = [*self.ghosts[-1:], self.processes[who]]
        self.processes[who] = self.new(self.processes[who].name)

    @rule(who=st.integers(0, 1))
    def stop(self, who: int) -> None:
        self.processes[who].tell(StopRequested())

    @precondition(lambda self: self.ghosts)
    @rule(which=st.integers(0, 7))
    def happen_late(self, which: int) -> None:
        ghost = self.ghosts[-1]
        if which < len(ghost.pending):
            ghost.happen(which)

    @invariant()
    def promises(self) -> None:
        self.world.check(self.published, self.lost)

    def teardown(self) -> None:
        """With everything well again, all that is in the log comes to its end."""
        self.processes = [self.new("a"), self.new("b")]
        for _ in range(12):
            self.world.now += LEASE_S + 1
            for partition in range(self.partitions):
                self.world.redeliver(partition)
            for process in self.processes:
                process.tick()
                process.run()
                process.answer_idle_fetches()
                process.run()
        assert sorted(n for process in self.processes for n in process.owned()) == list(range(self.partitions))
        assert self.world.log == {number: {} for number in range(self.partitions)}
        self.promises()
        for partition, at in self.published.keys() - self.lost:
            assert (partition, at) in self.world.acknowledged


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
