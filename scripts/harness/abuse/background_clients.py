"""Two people who talk while others misbehave: how long each message took, in a process of their own."""

import asyncio
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from meshim.stores.ports import Lease
from meshim.wire.client import Delivery
from scripts.harness.clients.misbehaving import Rude, context
from scripts.harness.mesh.users import Person, text

EVERY_S = 0.01
GIVE_UP_S = 5.0
"""What takes longer counts as so long, and the next message is sent."""


class Talk(NamedTuple):
    """One message: when it was submitted, how long it took to arrive."""

    at: float
    took_s: float


class Talked(NamedTuple):
    messages: Sequence[Talk]
    cut: int
    """How often one of them lost the connection."""

    def between(self, began: float, ended: float) -> "Latency":
        return Latency.of([each.took_s for each in self.messages if began <= each.at < ended])


class Latency(NamedTuple):
    """Of that many messages, in milliseconds."""

    messages: int
    p50_ms: float
    p99_ms: float
    worst_ms: float

    @classmethod
    def of(cls, took_s: list[float]) -> "Latency":
        ordered = sorted(took_s) or [0.0]

        def at(share: float) -> float:
            return round(1_000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

        return cls(len(took_s), at(0.5), at(0.99), at(1.0))


def talk(control: Connection, connectors: Sequence[Lease], pair: tuple[Person, Person]) -> None:
    """Talk until `control` says anything; then send back a `Talked`.  The body of a process."""
    control.send(asyncio.run(_talk(control, connectors, pair)))


async def _talk(control: Connection, connectors: Sequence[Lease], pair: tuple[Person, Person]) -> Talked:
    zmq_context = context()
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    cut = 0

    async def connect(index: int) -> Rude:
        rude = Rude(zmq_context, connectors[index % len(connectors)], pair[index])
        rude.hear = arrived.put_nowait
        await rude.welcome()
        return rude

    ends = [await connect(0), await connect(1)]
    control.send("ready")
    messages: list[Talk] = []
    seqs = [0, 0]
    while not control.poll():
        for index in (0, 1):
            seqs[index] += 1
            envelope = text(pair[index], pair[1 - index].user, seqs[index], b"x" * 100)
            at = time.monotonic()
            ends[index].submit([envelope])
            messages.append(Talk(at, await _arrival(arrived, envelope, at)))
            for each in (0, 1):
                if ends[each].over is not None:
                    cut += 1
                    ends[each].close()
                    ends[each] = await connect(each)
        await asyncio.sleep(EVERY_S)
    for end in ends:
        end.close()
    return Talked(messages, cut)


async def _arrival(arrived: "asyncio.Queue[Delivery]", envelope: bytes, at: float) -> float:
    try:
        async with asyncio.timeout(GIVE_UP_S):
            while (await arrived.get()).envelope != envelope:
                pass
    except TimeoutError:
        pass
    return time.monotonic() - at
