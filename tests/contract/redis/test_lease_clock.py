"""Leases of queues and partitions when the clock of the database steps back: they do not outlive their holders."""

import pytest

from meshim.errors import Fenced
from tests.contract.sql.backends import Backend, device_of, person

HOUR_S = 3600.0
LEASE_S = 10.0


async def test_the_queue_of_a_dead_connector_is_free_for_an_older_session(backend: Backend) -> None:
    """Older by its session number, as after Redis was wiped while its clock was behind."""
    here, there = backend.process(), backend.process()
    phone = await device_of(here, await person(here))
    dead = await here.queues.claim(phone.device_id, "dead", 2, LEASE_S)
    assert await there.queues.claim(phone.device_id, "next", 1, LEASE_S) is None, "it may live"
    await backend.step_clock_back(HOUR_S)
    fence = await there.queues.claim(phone.device_id, "next", 1, LEASE_S)
    assert fence is not None
    assert dead is not None
    assert fence > dead
    with pytest.raises(Fenced):
        await here.queues.mark_read(phone.device_id, dead, [1])
    assert await here.queues.claim(phone.device_id, "third", 0, LEASE_S) is None, "and this one lasts as any other"


async def test_a_page_shortens_a_lease_that_lasts_too_long(backend: Backend) -> None:
    here, there = backend.process(), backend.process()
    bob = await person(here)
    phone = await device_of(here, bob)
    fence = await here.queues.claim(phone.device_id, "alive", 2, LEASE_S)
    assert fence is not None
    await backend.step_clock_back(HOUR_S)
    await here.queues.page(bob.user_id, phone.device_id, fence, (0, -1), 10, 1000, LEASE_S)
    assert await there.queues.claim(phone.device_id, "next", 1, LEASE_S) is None


async def test_a_partition_is_taken_over_from_a_dead_writer(backend: Backend) -> None:
    here, there = backend.process(), backend.process()
    dead = await here.partitions.claim(0, "dead", LEASE_S)
    assert await there.partitions.claim(0, "next", LEASE_S) is None
    await backend.step_clock_back(HOUR_S)
    taken = await there.partitions.claim(0, "next", LEASE_S)
    assert dead is not None
    assert taken is not None
    assert taken[0] > dead[0]
    with pytest.raises(Fenced):
        await here.partitions.write(0, dead[0], 1, [], 0.0)
    assert await here.partitions.claim(0, "dead", LEASE_S) is None


async def test_a_living_writer_shortens_its_lease_by_renewing(backend: Backend) -> None:
    here, there = backend.process(), backend.process()
    alive = await here.partitions.claim(0, "alive", LEASE_S)
    await backend.step_clock_back(HOUR_S)
    assert await here.partitions.claim(0, "alive", LEASE_S) == alive
    assert await there.partitions.claim(0, "next", LEASE_S) is None
