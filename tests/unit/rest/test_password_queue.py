"""Whose password is checked next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from meshim.rest.admission.password_queue import Lane, PasswordQueue, Place

DEVICE, ADDRESS, STRANGER = (Place(lane, "a") for lane in Lane)
places = st.builds(Place, st.sampled_from(Lane), st.sampled_from("abc"))


def test_a_device_goes_before_a_flood_of_strangers() -> None:
    queue = PasswordQueue[str]()
    for number in range(100):
        queue.push(Place(Lane.STRANGER, f"{number}"), "stranger")
    queue.push(DEVICE, "device")
    queue.push(ADDRESS, "address")
    assert {queue.pop() for _ in range(3)} >= {"device", "address"}


def test_no_lane_waits_for_a_flood_in_another() -> None:
    queue = PasswordQueue[Lane]()
    for lane in Lane:
        for _ in range(40):
            queue.push(Place(lane, "a"), lane)
    served = Counter(queue.pop() for _ in range(40))
    assert served == {Lane.DEVICE: 20, Lane.ADDRESS: 10, Lane.STRANGER: 10}


def test_addresses_take_turns() -> None:
    queue = PasswordQueue[str]()
    for number in range(50):
        queue.push(Place(Lane.STRANGER, "flood"), f"flood {number}")
    queue.push(Place(Lane.STRANGER, "one"), "one")
    queue.push(Place(Lane.STRANGER, "other"), "other")
    assert [queue.pop() for _ in range(4)] == ["flood 0", "one", "other", "flood 1"]


def test_a_full_lane_makes_room_for_an_address_with_fewer() -> None:
    queue = PasswordQueue[str](dict.fromkeys(Lane, 3))
    flood, other = Place(Lane.STRANGER, "flood"), Place(Lane.STRANGER, "other")
    assert [queue.push(flood, f"flood {n}") for n in range(5)] == [None, None, None, "flood 3", "flood 4"]
    assert queue.push(other, "other 0") == "flood 2"
    assert queue.push(other, "other 1") == "other 1", "it has as many as the flood then"
    assert queue.push(DEVICE, "device") is None, "room of its own"
    assert len(queue) == 4


def test_one_that_waits_no_more_is_forgotten() -> None:
    queue = PasswordQueue[str]()
    queue.push(STRANGER, "one")
    queue.push(STRANGER, "two")
    queue.discard(STRANGER, "one")
    queue.discard(DEVICE, "two")
    assert [queue.pop(), queue.pop(), len(queue)] == ["two", None, 0]
    queue.discard(STRANGER, "two")


@given(st.lists(st.one_of(places, st.none(), st.integers(0, 20)), max_size=80))
def test_everyone_is_served_once_or_turned_away_and_no_lane_is_overfull(
    steps: list[Place | int | None],
) -> None:
    """A place pushes, None pops, a number discards one of those pushed."""
    room = dict.fromkeys(Lane, 4)
    queue = PasswordQueue[int](room)
    waiting: dict[int, Place] = {}
    pushed: list[Place] = []
    for step in steps:
        if isinstance(step, Place):
            number = len(pushed)
            pushed.append(step)
            waiting[number] = step
            out = queue.push(step, number)
            if out is not None:
                place = waiting.pop(out)
                of_lane = Counter(each for each in waiting.values() if each.lane == step.lane)
                assert sum(of_lane.values()) == room[step.lane]
                assert of_lane[place] + 1 >= max(of_lane.values()), "it was one of those with most"
        elif step is None:
            served = queue.pop()
            assert (served is None) == (not waiting)
            if served is not None:
                place = waiting.pop(served)
                assert served == min(number for number, each in [*waiting.items(), (served, place)] if each == place)
        elif step < len(pushed):
            queue.discard(pushed[step], step)
            waiting.pop(step, None)
        assert len(queue) == len(waiting)
