"""An application gets every event, or a later one that says what holds, or is told that some are lost."""

import asyncio
import gc
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.client.application.event_stream import RANGES_MAX, Publisher, Subscription
from meshim.client.application.public_events import (
    Connected,
    DevicesChanged,
    DeviceTakenOver,
    Disconnected,
    Event,
    EventsLost,
    KeyChanged,
    MessagesProgressed,
    MessageState,
    PresenceChanged,
    RelationChanged,
    RelationState,
    TypingStarted,
    TypingStopped,
)
from meshim.client.events import RANK
from meshim.client.statistics import Statistics
from meshim.errors import ClientClosed, Code, Refused
from meshim.wire.envelope import Destination, DestinationType, Stream
from tests.unit.client.friends_world import waiting

STREAM, OTHER = (Stream(1, device, 6, Destination(DestinationType.USER, 2)) for device in (11, 12))
UP, DOWN = Connected(connector="c1"), Disconnected(code=None, sentence="lost")
STARTED, STOPPED = TypingStarted(name="bob"), TypingStopped(name="bob")


def publisher(events_max: int = 100) -> Publisher:
    return Publisher(events_max, Statistics())


def progress(stream: Stream, state: MessageState, *ranges: tuple[int, int]) -> MessagesProgressed:
    return MessagesProgressed(stream=stream, peer="bob", state=state, ranges=ranges)


def relation(user: int, old: RelationState, new: RelationState) -> RelationChanged:
    return RelationChanged(user_id=user, name=f"user{user}", old=old, new=new)


def presence(old: str, new: str) -> PresenceChanged:
    return PresenceChanged(name="bob", old=old, new=new)  # type: ignore[arg-type]  # plain text in the tests


def coalesced(*events: Event) -> list[Event]:
    source = publisher()
    reader = source.subscribe()
    for event in events:
        source.publish(event)
    return waiting(reader)


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([progress(STREAM, "read", (1, 2)), progress(STREAM, "read", (3, 4), (9, 9))],
         [progress(STREAM, "read", (1, 4), (9, 9))]),
        ([progress(STREAM, "read", (1, 2)), progress(OTHER, "read", (1, 2)), progress(STREAM, "delivered", (3, 4))],
         [progress(STREAM, "read", (1, 2)), progress(OTHER, "read", (1, 2)), progress(STREAM, "delivered", (3, 4))]),
        ([progress(STREAM, "sent", (1, 4)), progress(STREAM, "delivered", (2, 3)), progress(STREAM, "read", (3, 4))],
         [progress(STREAM, "sent", (1, 1)), progress(STREAM, "delivered", (2, 2)), progress(STREAM, "read", (3, 4))]),
        ([progress(STREAM, "delivered", (1, 2)), progress(OTHER, "read", (1, 2)), progress(STREAM, "read", (1, 2))],
         [progress(OTHER, "read", (1, 2)), progress(STREAM, "read", (1, 2))]),
        ([relation(2, "none", "asked"), relation(2, "asked", "friends")], [relation(2, "none", "friends")]),
        ([relation(2, "none", "asked"), relation(3, "none", "asked"), relation(2, "asked", "none")],
         [relation(3, "none", "asked")]),
        ([presence("unknown", "online"), presence("online", "offline")], [presence("unknown", "offline")]),
        ([presence("offline", "online"), presence("online", "offline")], []),
        ([STARTED, STOPPED], []),
        ([STARTED, STOPPED, STARTED], [STARTED]),
        ([STOPPED, STARTED], []),
        ([STOPPED, STARTED, STOPPED], [STOPPED]),
        ([UP, STARTED, DOWN], [UP, STARTED, DOWN]),
        ([DOWN, UP, STARTED, DOWN], [UP, STARTED, DOWN]),
        ([DOWN, UP, DOWN, Connected(connector="c2")], [DOWN, Connected(connector="c2")]),
        ([DevicesChanged(), DevicesChanged()], [DevicesChanged()]),
        ([KeyChanged(user_id=2, name="bob", version=version) for version in (2, 3)],
         [KeyChanged(user_id=2, name="bob", version=3)]),
    ],
)  # fmt: skip
def test_what_waits_is_coalesced(events: Sequence[Event], left: Sequence[Event]) -> None:
    assert coalesced(*events) == left


def test_what_finds_no_room_is_counted_where_it_would_have_stood() -> None:
    source = publisher(3)
    reader = source.subscribe()
    for user in range(5):
        source.publish(relation(user, "none", "asked"))
    source.publish(relation(1, "asked", "friends"))  # its key waits: there is room
    source.publish(DOWN)  # always has room
    source.publish(relation(6, "none", "asked"))
    assert waiting(reader) == [
        relation(0, "none", "asked"),
        relation(1, "none", "friends"),
        relation(2, "none", "asked"),
        EventsLost(count=3),
        DOWN,
    ]
    source.publish(relation(7, "none", "asked"))
    assert waiting(reader) == [relation(7, "none", "asked")]
    assert reader._statistics.events_lost == 3


def test_ranges_that_find_no_room_are_counted() -> None:
    source = publisher()
    reader = source.subscribe()
    for seq in range(1, 2 * (RANGES_MAX + 4), 2):
        source.publish(progress(STREAM, "read", (seq, seq)))
    event, lost = waiting(reader)
    assert isinstance(event, MessagesProgressed)
    assert (len(event.ranges), event.ranges[0]) == (RANGES_MAX, (9, 9))
    assert lost == EventsLost(count=4)


def test_ranges_that_find_no_room_in_a_single_event_are_counted() -> None:
    """A receipt may have 1,024 of them."""
    ranges = [(seq, seq) for seq in range(2 * (RANGES_MAX + 4), 0, -2)]
    lost, event = coalesced(progress(STREAM, "read", *ranges))
    assert isinstance(event, MessagesProgressed)
    assert (len(event.ranges), event.ranges[0]) == (RANGES_MAX, (10, 10))
    assert lost == EventsLost(count=4)


def test_ranges_that_a_later_state_cuts_into_too_many_are_counted() -> None:
    source = publisher()
    reader = source.subscribe()
    source.publish(progress(STREAM, "sent", (1, 1_000)))
    for seq in range(2, 2 * (RANGES_MAX + 4), 2):
        source.publish(progress(STREAM, "delivered", (seq, seq)))
    source.publish(progress(STREAM, "sent", (2_000, 2_000)))
    events = waiting(reader)
    ranges = {event.state: event.ranges for event in events if isinstance(event, MessagesProgressed)}
    assert [len(ranges["sent"]), len(ranges["delivered"])] == [RANGES_MAX] * 2
    assert [event for event in events if isinstance(event, EventsLost)] == [EventsLost(count=3 + 4 + 1)]


async def test_every_reader_gets_every_event_from_its_start_to_its_close() -> None:
    source = publisher()
    source.publish(UP)
    assert [source.subscribed] == [False]
    first = source.subscribe()
    source.publish(DOWN)
    second = source.subscribe()
    source.publish(STARTED)
    assert [await anext(first), await anext(first)] == [DOWN, STARTED]
    second.close()
    assert [event async for event in second] == []
    assert [source.subscribed] == [True]
    reading = asyncio.ensure_future(anext(first))
    await asyncio.sleep(0)
    source.publish(STOPPED)
    assert await reading == STOPPED
    first.close()
    assert [source.subscribed] == [False]
    source.publish(UP)
    assert not first._waiting


async def test_a_reader_that_the_application_dropped_gathers_nothing() -> None:
    source = publisher()

    async def read_one(events: Subscription) -> Event:
        async for event in events:
            return event
        raise AssertionError

    reading = asyncio.ensure_future(read_one(source.subscribe()))
    await asyncio.sleep(0)
    source.publish(UP)
    assert await reading == UP
    del reading
    gc.collect()
    assert not source.subscribed


async def test_the_end_of_the_client_comes_after_the_last_event() -> None:
    source = publisher(1)
    reader = source.subscribe()
    source.publish(STARTED)
    taken = DeviceTakenOver(sentence="taken over")
    source.publish(taken)
    source.fail(Refused(Code.REPLACED, "taken over"))
    assert [await anext(reader), await anext(reader)] == [STARTED, taken]
    for late in (reader, reader, source.subscribe()):
        with pytest.raises(Refused, match="taken over"):
            await anext(late)


async def test_a_loop_that_waits_is_ended_too() -> None:
    source = publisher()
    reading = asyncio.ensure_future(anext(source.subscribe()))
    await asyncio.sleep(0)
    source.fail(ClientClosed("the client was closed"))
    with pytest.raises(ClientClosed):
        await reading


# ---------------------------------------------------------------- any order


class Screen:
    """What an application shows that does nothing but follow the events."""

    def __init__(self) -> None:
        self.relations: dict[int, RelationState] = {}
        self.typing: set[str] = set()
        self.online = False
        self.states: dict[tuple[Stream, int], MessageState] = {}
        self.lost = 0

    def show(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case RelationChanged(user_id=user, old=old, new=new):
                    assert self.lost or old == self.relations.get(user, "none"), "no change is told twice, or left out"
                    self.relations[user] = new
                case TypingStarted(name=name):
                    self.typing.add(name)
                case TypingStopped(name=name):
                    self.typing.discard(name)
                case Connected():
                    self.online = True
                case Disconnected():
                    self.online = False
                case MessagesProgressed(stream=stream, ranges=ranges, state=progressed):
                    for seq in (seq for first, last in ranges for seq in range(first, last + 1)):
                        assert RANK[progressed] > RANK[self.states.get((stream, seq), "")], "it has come further"
                        self.states[stream, seq] = progressed
                case EventsLost(count=count):
                    self.lost += count


class Source:
    """Makes events as a client does: each is a transition from what holds."""

    def __init__(self) -> None:
        self.screen = Screen()

    def make(self, kind: str, user: int, state: RelationState, seq: int) -> Event | None:
        screen, name = self.screen, f"user{user}"
        event: Event
        match kind:
            case "relation":
                old = screen.relations.get(user, "none")
                if old == state:
                    return None
                event = relation(user, old, state)
            case "typing":
                event = TypingStopped(name=name) if name in screen.typing else TypingStarted(name=name)
            case "connection":
                event = DOWN if screen.online else UP
            case _:
                stream, reached = (STREAM, OTHER)[user % 2], MESSAGE_STATES[STATES.index(state) % 3]
                first, last = seq, seq + user // 3
                known = {screen.states.get((stream, each), "") for each in range(first, last + 1)}
                if any(RANK[each] >= RANK[reached] for each in known):
                    return None
                event = progress(stream, reached, (first, last))
        screen.show([event])
        return event


MESSAGE_STATES: tuple[MessageState, ...] = ("sent", "delivered", "read")
STATES: tuple[RelationState, ...] = ("none", "asked", "friends", "removed")
KINDS = ("relation", "typing", "connection", "progress")


@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), KINDS])
@given(data=st.data(), events_max=st.integers(1, 30))
@settings(deadline=None)
def test_a_reader_ends_with_what_holds_however_slowly_it_reads_or_knows_that_it_does_not(
    data: st.DataObject, events_max: int, kinds: Sequence[str]
) -> None:
    happens = st.tuples(st.sampled_from(kinds), st.integers(0, 5), st.sampled_from(STATES), st.integers(1, 4))
    steps = data.draw(st.lists(st.one_of(happens, happens, happens, st.just("read")), min_size=25, max_size=80))
    source, screen, events = Source(), Screen(), publisher(events_max)
    reader = events.subscribe()
    for step in steps:
        if isinstance(step, str):
            if reader._waiting:
                key = next(iter(reader._waiting))
                screen.show([reader._waiting.pop(key)])
        elif (event := source.make(*step)) is not None:
            events.publish(event)
        assert len(reader._waiting) <= events_max + 4
    screen.show(waiting(reader))
    assert screen.online == source.screen.online
    assert screen.lost == reader._statistics.events_lost
    if not screen.lost:
        assert (screen.typing, screen.states) == (source.screen.typing, source.screen.states)
        holds = source.screen.relations
        assert all(screen.relations.get(user, "none") == state for user, state in holds.items())
