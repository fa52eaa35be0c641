"""In any order of events, rows are pushed in order, once a session, and marked only when the device has them.

The queue is a dictionary.  Two connectors sync it for one device: a core, whose device reconnects at any time, and a
rival that claims, marks and releases (R3).  A request of any kind may be slow on its way there or back, so that other
events come between, or fail before or after it was performed.
"""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.connector import events as e
from meshim.stores.ports import Page
from meshim.wire.client import Delivery
from meshim.wire.envelope import decode_envelope
from meshim.wire.link import Close, Data
from meshim.wire.notification import WakeUp
from tests.unit.connector.world import B1, BOB, LONGEST, RETRY_S, SWEEP_S, Client, Connector, row

PAGE_ROWS = 3
RIVAL = -1
KIND = st.sampled_from([e.CheckQueues, e.ClaimQueue, e.ReadPage, e.MarkRead, e.MarkRead])
TROUBLE = st.sampled_from(["", "", "slow there", "slow back", "slow back", "fails", "fails late"])


class Fenced(Exception):
    pass


class Queue:
    """The offline queue of the device in the database."""

    def __init__(self) -> None:
        self.unread: set[int] = set()
        self.position = 0
        self.fence = 0
        self.owner = 0
        """A session number, RIVAL, or 0."""
        self.marked: list[int] = []

    def store(self) -> int:
        self.position += 1
        self.unread.add(self.position)
        return self.position

    def claim(self, owner: int) -> int | None:
        if self.owner == RIVAL != owner:
            return None
        self.owner = owner
        self.fence += 1
        return self.fence

    def page(self, fence: int, after: tuple[int, int]) -> Page:
        self.check(fence)
        found = sorted(number for number in self.unread if (number, 0) > after)
        return Page(tuple(row(number) for number in found[:PAGE_ROWS]), self.position, len(found) > PAGE_ROWS)

    def mark(self, fence: int, numbers: Sequence[int]) -> None:
        self.check(fence)
        self.unread.difference_update(numbers)
        self.marked.extend(numbers)

    def check(self, fence: int) -> None:
        if fence != self.fence:
            raise Fenced

    def perform(self, action: e.Action) -> e.Event | None:
        """Perform the action; returns the answer, if there is one."""
        if isinstance(action, e.CheckQueues):
            return e.QueuesChecked(
                action.devices, dict.fromkeys(range(4), self.position), {B1} if self.unread else set()
            )
        if isinstance(action, e.ClaimQueue):
            return e.QueueClaimed(action.device, action.session, self.claim(action.session))
        if isinstance(action, e.ReadPage):
            try:
                return e.PageRead(action.device, action.session, self.page(action.fence, action.after))
            except Fenced:
                return e.QueueFenced(action.device, action.session)
        if isinstance(action, e.MarkRead):
            try:
                self.mark(action.fence, action.row_ids)
            except Fenced:
                return e.RowMarkingFailed(action.device, action.session, action.fence, fenced=True)
            return e.RowsMarked(action.device, action.session, action.row_ids)
        assert isinstance(action, e.ReleaseQueue)
        if action.fence == self.fence:
            self.owner = 0
        return None


def failure(action: e.Action) -> e.Event | None:
    if isinstance(action, e.CheckQueues):
        return e.QueuesUnreachable([(device, session) for _, device, session in action.devices])
    if isinstance(action, e.ClaimQueue | e.ReadPage):
        return e.QueuesUnreachable(((action.device, action.session),))
    if isinstance(action, e.MarkRead):
        return e.RowMarkingFailed(action.device, action.session, action.fence, fenced=False)
    return None


REQUESTS = e.CheckQueues | e.ClaimQueue | e.ReadPage | e.MarkRead | e.ReleaseQueue


class AnySync(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.connector = Connector()
        self.connector.transfer()
        self.trouble: dict[type[e.Action], str] = {}
        self.requests: list[e.Action] = []
        self.answers: list[tuple[type[e.Action], e.Event]] = []
        self.had: set[int] = set()
        """Rows that the device has acknowledged in any session, or got through the rival."""
        self.bob = self.arrive()

    def arrive(self) -> Client:
        return self.connector.bound(B1)

    # ---- the database and the network

    def works(self) -> None:
        """Answer all requests that are not slow, until there are no more."""
        for _ in range(100):
            self.requests += [action for action in self.connector.asked if isinstance(action, REQUESTS)]
            self.connector.asked.clear()
            event = self.next_answer()
            if event is None:
                return
            self.connector.receive(event)
        raise AssertionError("it asks without end")

    def next_answer(self) -> e.Event | None:
        for at, (kind, event) in enumerate(self.answers):
            if self.trouble.get(kind) != "slow back":
                del self.answers[at]
                return event
        for action in list(self.requests):
            trouble = self.trouble.get(type(action), "")
            if trouble == "slow there":
                continue
            self.requests.remove(action)
            answer = failure(action) if trouble == "fails" else self.queue.perform(action)
            answer = failure(action) if trouble == "fails late" else answer
            if answer is not None and trouble == "slow back":
                self.answers.append((type(action), answer))
            elif answer is not None:
                return answer
        return None

    @rule(kind=KIND, trouble=TROUBLE)
    def becomes(self, kind: type[e.Action], trouble: str) -> None:
        self.trouble[kind] = trouble
        self.works()

    @rule(count=st.integers(1, 5), woken=st.booleans())
    def store(self, count: int, woken: bool) -> None:
        for _ in range(count):
            self.queue.store()
        if woken:
            self.connector.receive(e.NotificationReceived(WakeUp(((BOB, B1),))))
        self.works()

    @rule(count=st.integers(1, 5))
    def store_and_acknowledge(self, count: int) -> None:
        self.store(count, woken=True)
        self.acknowledge(frames=99)

    @rule(seconds=st.sampled_from([0.3, LONGEST * RETRY_S]))
    def time_passes(self, seconds: float) -> None:
        self.connector.pass_time(seconds)
        if self.bob.closed:
            self.bob = self.arrive()
        self.works()

    # ---- the device

    @rule(frames=st.sampled_from([1, 99, 99]))
    def acknowledge(self, frames: int) -> None:
        """Acknowledge the next `frames` frames."""
        came = {frame.number: frame for frame in self.bob.came(Data)}
        pending = [number for number in sorted(came) if number > self.bob.acknowledged][:frames]
        for number in pending:
            items = [item for item in came[number].items if isinstance(item, Delivery)]
            self.had.update(decode_envelope(item.envelope).seq for item in items)
        if pending:
            self.bob.acknowledge(pending[-1])
        self.works()

    @rule(status=st.sampled_from(["", "", "", "close", "gone", "replaced"]))
    def reconnect(self, status: str) -> None:
        if not status:
            return
        if status == "close":
            self.bob.send(Close(self.bob.link, 0))
        elif status == "gone":
            self.connector.receive(e.ClientGone(self.bob.peer))
        self.bob = self.arrive()
        self.works()

    # ---- the rival

    @precondition(lambda self: self.queue.owner != RIVAL)
    @rule()
    def rival_claims(self) -> None:
        self.queue.claim(RIVAL)
        self.works()

    @precondition(lambda self: self.queue.owner == RIVAL)
    @rule(count=st.integers(0, 3))
    def rival_delivers(self, count: int) -> None:
        page = self.queue.page(self.queue.fence, (0, -1))
        numbers = [each.row_id for each in page.rows[:count]]
        self.had.update(numbers)
        self.queue.mark(self.queue.fence, numbers)

    @precondition(lambda self: self.queue.owner == RIVAL)
    @rule()
    def rival_leaves(self) -> None:
        self.queue.owner = 0
        self.works()

    # ---- what has to hold

    @invariant()
    def promises(self) -> None:
        seqs = self.bob.seqs
        assert seqs == sorted(set(seqs)), "each once in a session, in order"
        assert set(self.queue.marked) <= self.had, "only rows that the device has are marked"

    def teardown(self) -> None:
        """Without trouble no row stays unread."""
        if self.queue.owner == RIVAL:
            self.rival_leaves()
        self.trouble.clear()
        rounds = SWEEP_S * LONGEST + self.queue.position
        while self.queue.unread and (rounds := rounds - 1) > 0:
            self.acknowledge(frames=99)
            self.connector.pass_time(1.0)
            self.bob.ping()
            self.works()
        assert not self.bob.closed
        assert not self.queue.unread
        assert self.had == set(range(1, self.queue.position + 1))
        self.promises()
        self.store(count=1, woken=True)
        for _ in range(3):
            self.time_passes(seconds=LONGEST * RETRY_S)
            self.acknowledge(frames=99)
        assert self.bob.seqs[-1] == self.queue.position, "a wake-up was enough"


TestAnySync = AnySync.TestCase
TestAnySync.settings = settings(max_examples=300, stateful_step_count=50)
