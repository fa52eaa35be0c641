"""Two devices with state files, and events in any order, kill -9 among them."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.client import state
from tests.unit.client.world import World


def steps(world: World, chance: Random) -> list[Callable[[], object]]:
    """The possible next steps; an entry that stands here n times is n times as likely."""
    user = chance.choice((1, 2))
    device = world.devices[user]
    flag = chance.choice(("busy", "storing", "mute", "waking"))
    return [
        *[lambda: device.send(3 - user, world.now)] * 10,
        *[lambda: device.persist(world.now)] * 15,
        *[lambda: world.carry_up(user)] * 25,
        *[lambda: world.carry_down(user)] * 25,
        *[lambda: device.read(world.now, mark=chance.random() < 0.5)] * 10,
        *[lambda: world.wait(chance.choice((0.1, 0.5, 1.0, 5.0)))] * 4,
        *[lambda: world.mesh.wake_up(user)] * 3,
        *[lambda: setattr(world.mesh, flag, chance.random() < 0.3)] * 3,
        *[lambda: world.connect(user)] * 12,
        *[lambda: world.disconnect(user)] * 2,
        lambda: world.kill(user),
    ]


@given(st.randoms(use_true_random=True), st.integers(10, 400))
@settings(max_examples=150)
def test_messages_arrive_once_and_in_order_whatever_dies_when(chance: Random, count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="meshim-"))
    # Processes are killed here; the machine never loses power.
    with patch.object(state, "_DURABLE", "synchronous=OFF"):
        world = World(folder)
        try:
            for _ in range(count):
                chance.choice(steps(world, chance))()
                for device in world.devices.values():
                    assert device.received == sorted(set(device.received))
            world.settle()
            for sender, reader in ((1, 2), (2, 1)):
                assert world.devices[reader].received == world.devices[sender].persisted
        finally:
            for device in world.devices.values():
                device.state.close()
            shutil.rmtree(folder)
