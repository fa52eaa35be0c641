"""Leases of queues and partitions when the clock of the database steps back: nobody waits for it to catch up."""

import pytest

from meshim.errors import Fenced
from tests.contract.database_sides import Side, device_of, person

HOUR_S = 3600.0
LEASE_S = 10.0


async def test_the_queue_of_a_connector_that_died_is_free_for_an_older_session(side: Side) -> None:
    """Older by its number, as after a Redis that was wiped while its clock was behind."""
    here, there = side.process(), side.process()
    phone = await device_of(here, await person(here))
    dead = await here.queues.claim(phone.device_id, "dead", 2, LEASE_S)
    assert await there.queues.claim(phone.device_id, "next", 1, LEASE_S) is None, "it may live"
    await side.step_clock_back(HOUR_S)
    fence = await there.queues.claim(phone.device_id, "next", 1, LEASE_S)
    assert fence is not None
    assert dead is not None
    assert fence > dead
    with pytest.raises(Fenced):
        await here.queues.mark_read(phone.device_id, dead, [1])
    assert await here.queues.claim(phone.device_id, "third", 0, LEASE_S) is None, "and this one lasts as any other"


async def test_a_page_puts_a_lease_right_that_seems_to_last_for_long(side: Side) -> None:
    here, there = side.process(), side.process()
    bob = await person(here)
    phone = await device_of(here, bob)
    fence = await here.queues.claim(phone.device_id, "alive", 2, LEASE_S)
    assert fence is not None
    await side.step_clock_back(HOUR_S)
    await here.queues.page(bob.user_id, phone.device_id, fence, (0, -1), 10, 1000, LEASE_S)
    assert await there.queues.claim(phone.device_id, "next", 1, LEASE_S) is None


async def test_a_partition_is_taken_over_from_a_writer_that_died(side: Side) -> None:
    here, there = side.process(), side.process()
    dead = await here.partitions.claim(0, "dead", LEASE_S)
    assert await there.partitions.claim(0, "next", LEASE_S) is None
    await side.step_clock_back(HOUR_S)
    taken = await there.partitions.claim(0, "next", LEASE_S)
    assert dead is not None
    assert taken is not None
    assert taken[0] > dead[0]
    with pytest.raises(Fenced):
        await here.partitions.write(0, dead[0], 1, [], 0.0)
    assert await here.partitions.claim(0, "dead", LEASE_S) is None


async def test_a_writer_that_lives_puts_its_lease_right_when_it_renews(side: Side) -> None:
    here, there = side.process(), side.process()
    alive = await here.partitions.claim(0, "alive", LEASE_S)
    await side.step_clock_back(HOUR_S)
    assert await here.partitions.claim(0, "alive", LEASE_S) == alive
    assert await there.partitions.claim(0, "next", LEASE_S) is None
