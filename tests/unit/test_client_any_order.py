"""Two devices and their state files in any order of events, with kill -9 between any two of them."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from meshim.client import state
from tests.unit.client_world import World


def steps(world: World, chance: Random) -> list[Callable[[], object]]:
    """What may happen next, each as often as it stands here."""
    user = chance.choice((1, 2))
    device = world.devices[user]
    mood = chance.choice(("busy", "storing", "mute", "poking"))
    return [
        *[lambda: device.send(3 - user, world.now)] * 10,
        *[lambda: device.save(world.now)] * 15,
        *[lambda: world.carry_up(user, lose=chance.random() < 0.05)] * 25,
        *[lambda: world.carry_down(user, lose=chance.random() < 0.05)] * 25,
        *[lambda: device.read(world.now, mark=chance.random() < 0.5)] * 10,
        *[lambda: world.wait(chance.choice((0.1, 0.5, 1.0, 5.0)))] * 4,
        *[lambda: world.mesh.wake_up(user)] * 3,
        *[lambda: setattr(world.mesh, mood, chance.random() < 0.3)] * 3,
        *[lambda: world.connect(user)] * 12,
        lambda: world.disconnect(user),
        lambda: world.kill(user),
    ]


@given(st.randoms(use_true_random=True), st.integers(10, 400))
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_shown_twice_or_out_of_order_whatever_dies_when(chance: Random, count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="meshim-"))
    # It is processes that die here, never the machine.
    with patch.object(state, "_DURABLE", "synchronous=OFF"):
        world = World(folder)
        try:
            for _ in range(count):
                chance.choice(steps(world, chance))()
                for device in world.devices.values():
                    assert device.handed == sorted(set(device.handed))
            world.settle()
            for sender, reader in ((1, 2), (2, 1)):
                assert world.devices[reader].handed == world.devices[sender].safe
        finally:
            for device in world.devices.values():
                device.state.close()
            shutil.rmtree(folder)
