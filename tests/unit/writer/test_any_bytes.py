"""Whatever stands in the log: it is written, or a dead letter; no message waits behind it."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.any_msgpack import frames
from tests.unit.writer.world import World, record, start

LAST = record((1, (1,), b"the last"))


@given(st.lists(frames([record((1, (1,), b"m1"), (2, (2, 3), b"m2"))]), max_size=8))
def test_of_records(published: list[bytes]) -> None:
    world = World(1)
    process = start(world)
    for data in (*published, LAST):
        world.publish(0, data)
    process.run()
    assert world.rows[-1].envelope == b"the last"
    assert not world.log[0], "every message is acknowledged"
    for (_, position), letters in world.dead_lettered.items():
        assert letters == [published[position - 1]]
