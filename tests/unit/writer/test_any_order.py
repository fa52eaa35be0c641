"""In any order of events, writers write each message once, in order, and skip none."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.stores.ports import Binding
from meshim.writer.events import Acknowledge, Claim, Fetch, PublishDeadLetter, Read, StopRequested, Write, WritersLiving
from tests.unit.writer.world import GARBAGE, LEASE_S, REFUSED, Process, World, record

PARTITION = st.integers(0, 1)
WRITER = st.integers(0, 1)
WHICH = st.integers(0, 11)
STEPS = ("happen", "answer", "fail", "fail late", *("at once",) * 6)


class AnyOrder(RuleBasedStateMachine):
    """Two writers that restart at times; actions happen, fail and are answered in any order.

    An action in flight when its process crashed may still happen: a fenced-off writer commits late (R15).
    """

    partitions = 2

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.partitions)
        self.world.bindings = {user: Binding(user, user, 9, 1) for user in range(1, 4)}
        self.published: dict[tuple[int, int], bytes] = {}
        self.lost: set[tuple[int, int]] = set()
        self.incarnations = 0
        self.ghosts: list[Process] = []
        self.processes = [self.new("a"), self.new("b")]
        for process in self.processes:
            process.run()

    def new(self, name: str) -> Process:
        self.incarnations += 1
        process = Process(self.world, name, self.incarnations, self.partitions, records=3)
        process.tell(WritersLiving(("a", "b")))
        return process

    @rule(partition=PARTITION, sorts=st.text("eeeegr", min_size=1, max_size=4))
    def publish(self, partition: int, sorts: str) -> None:
        for sort in sorts:
            unique = b"%d/%d" % (partition, self.world.last[partition] + 1)
            data = record((1, (1,), unique), (2, (2,), unique + b"b"))
            if sort == "g":
                data = GARBAGE
            elif sort == "r":
                data = record((1, (1,), unique), (2, (2,), REFUSED))
            self.published[partition, self.world.publish(partition, data)] = data

    @rule(writer=WRITER, steps=st.lists(st.tuples(WHICH, st.sampled_from(STEPS)), min_size=1, max_size=8))
    def act(self, writer: int, steps: list[tuple[int, str]]) -> None:
        process = self.processes[writer]
        for which, step in steps:
            if step == "answer" and process.answers:
                process.answer(which % len(process.answers))
            elif step != "answer" and process.pending:
                self.perform(process, which % len(process.pending), step)

    def perform(self, process: Process, which: int, step: str) -> None:
        if step.startswith("fail"):
            process.fail(which, after_the_effect=step == "fail late")
        else:
            process.happen(which)
        if step != "happen":
            process.answer(len(process.answers) - 1)

    @rule(writer=WRITER)
    def work(self, writer: int) -> None:
        self.processes[writer].run()

    @rule(
        writer=WRITER,
        kind=st.sampled_from([Write, Write, Acknowledge, PublishDeadLetter, Fetch, Read, Claim]),
        late=st.booleans(),
    )
    def fail(self, writer: int, kind: type, late: bool) -> None:
        """A backend is away for the pending actions of one type; with `late` they take effect all the same."""
        process = self.processes[writer]
        for action in [action for action in process.pending if isinstance(action, kind)]:
            self.perform(process, process.pending.index(action), "fail late" if late else "fail")

    @rule(seconds=st.sampled_from([0.1, 1.0, LEASE_S + 1]), asleep=st.none() | WRITER)
    def pass_time(self, seconds: float, asleep: int | None) -> None:
        self.world.now += seconds
        for number, process in enumerate(self.processes):
            if number != asleep:
                process.tick()

    @rule(partition=PARTITION)
    def redeliver(self, partition: int) -> None:
        self.world.redeliver(partition)

    @rule(partition=PARTITION, which=WHICH)
    def lose(self, partition: int, which: int) -> None:
        """A message disappears from the log."""
        if there := sorted(self.world.log[partition]):
            position = there[which % len(there)]
            del self.world.log[partition][position]
            self.lost.add((partition, position))

    @rule(writer=WRITER)
    def stop(self, writer: int) -> None:
        """Its actions are still under way when the backends fail; `restart` may come long after."""
        self.processes[writer].tell(StopRequested())

    @rule(writer=WRITER, living=st.sampled_from([("a", "b"), ("a",), ("b",), ("a", "b", "c", "d")]))
    def discover(self, writer: int, living: tuple[str, ...]) -> None:
        """A share becomes smaller or larger: partitions are surplus while they are written."""
        self.processes[writer].tell(WritersLiving(living))

    @rule(writer=WRITER, stops=st.booleans())
    def restart(self, writer: int, stops: bool) -> None:
        process = self.processes[writer]
        if stops:
            process.tell(StopRequested())
            process.run()
        self.ghosts = [*self.ghosts[-1:], process]
        self.processes[writer] = self.new(process.name)

    @precondition(lambda self: self.ghosts)
    @rule(which=WHICH)
    def happen_late(self, which: int) -> None:
        ghost = self.ghosts[-1]
        if ghost.pending:
            ghost.happen(which % len(ghost.pending))

    @invariant()
    def promises(self) -> None:
        self.world.check(self.published, self.lost)

    def teardown(self) -> None:
        """When all backends are back and the writers have restarted, every message in the log is acknowledged."""
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


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=50)
TestAnyOrder = AnyOrder.TestCase
