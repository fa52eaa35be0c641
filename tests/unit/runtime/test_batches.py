"""Items for a backend are gathered into a batch while another is under way, and in the pause after it."""

import asyncio
from collections.abc import Sequence

from meshim.runtime.batches import Batches
from tests.virtual_time import run

WORK_S, PAUSE_S = 1.0, 0.5


class Backend:
    """Takes `WORK_S` for a batch, and records each with the time at which it came."""

    def __init__(self) -> None:
        self.got: list[tuple[float, list[int]]] = []

    async def work(self, items: Sequence[int]) -> None:
        self.got.append((round(asyncio.get_running_loop().time() - self.began, 3), list(items)))
        await asyncio.sleep(WORK_S)

    async def start(self, most: int, pause_s: float) -> Batches[int]:
        self.began = asyncio.get_running_loop().time()
        batches = Batches(self.work, most, pause_s)
        self.task = asyncio.create_task(batches.run())
        await asyncio.sleep(0)
        return batches


def test_items_added_during_a_batch_are_the_next_batch() -> None:
    async def main() -> None:
        backend = Backend()
        batches = await backend.start(3, 0.0)
        batches.add(1)
        await asyncio.sleep(0.1)
        for item in (2, 3, 4, 5):
            batches.add(item)
        assert not await batches.join(0.2)
        assert await batches.join(10.0)
        assert backend.got == [(0.0, [1]), (1.0, [2, 3, 4]), (2.0, [5])]
        backend.task.cancel()

    run(main)


def test_a_lone_item_leaves_at_once_and_the_next_after_the_pause() -> None:
    async def main() -> None:
        backend = Backend()
        batches = await backend.start(3, PAUSE_S)
        batches.add(1)
        await asyncio.sleep(1.1)
        batches.add(2)
        batches.add(3)
        assert await batches.join(10.0)
        assert backend.got == [(0.0, [1]), (1.5, [2, 3])]
        backend.task.cancel()

    run(main)


def test_there_is_no_pause_when_a_full_batch_waits() -> None:
    async def main() -> None:
        backend = Backend()
        batches = await backend.start(2, PAUSE_S)
        for item in range(1, 6):
            batches.add(item)
        assert await batches.join(20.0)
        assert backend.got == [(0.0, [1, 2]), (1.0, [3, 4]), (2.5, [5])]
        backend.task.cancel()

    run(main)
