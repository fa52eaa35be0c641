"""Two well-behaved clients that exchange messages during an attack, and their latencies; in a process of their own."""

import asyncio
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from meshim.stores.ports import Lease
from meshim.wire.client import Delivery
from scripts.harness.clients.misbehaving import MisbehavingClient
from scripts.harness.clients.zmq_context import context
from scripts.harness.mesh.users import MeshUser, text_envelope

PAUSE_S = 0.01
TIMEOUT_S = 5.0
"""A message that takes longer counts as this long, and the next one is sent."""


class MessageTiming(NamedTuple):
    """One message: the time of its submission, and the seconds until it arrived."""

    at: float
    took_s: float


class Conversation(NamedTuple):
    """The messages of the two clients."""

    messages: Sequence[MessageTiming]
    cut: int
    """How many times a connection of the two was cut."""

    def between(self, began: float, ended: float) -> "Latency":
        """Return the latency of the messages that were submitted from `began` until `ended`."""
        return Latency.of([each.took_s for each in self.messages if began <= each.at < ended])


class Latency(NamedTuple):
    """Percentiles of the latencies of `messages` messages, in milliseconds."""

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


def exchange_messages(control: Connection, connectors: Sequence[Lease], pair: tuple[MeshUser, MeshUser]) -> None:
    """Exchange messages until `control` has a message; then send back a `Conversation`.  The body of a process."""
    control.send(asyncio.run(_exchange(control, connectors, pair)))


async def _exchange(control: Connection, connectors: Sequence[Lease], pair: tuple[MeshUser, MeshUser]) -> Conversation:
    zmq_context = context()
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    cut = 0

    async def connect(index: int) -> MisbehavingClient:
        client = MisbehavingClient(zmq_context, connectors[index % len(connectors)], pair[index])
        client.on_delivery = arrived.put_nowait
        await client.welcome()
        return client

    ends = [await connect(0), await connect(1)]
    control.send("ready")
    messages: list[MessageTiming] = []
    seqs = [0, 0]
    while not control.poll():
        for index in (0, 1):
            seqs[index] += 1
            envelope = text_envelope(pair[index], pair[1 - index].user, seqs[index], b"x" * 100)
            at = time.monotonic()
            ends[index].submit([envelope])
            messages.append(MessageTiming(at, await _arrival(arrived, envelope, at)))
            for each in (0, 1):
                if ends[each].closed_by is not None:
                    cut += 1
                    ends[each].close()
                    ends[each] = await connect(each)
        await asyncio.sleep(PAUSE_S)
    for end in ends:
        end.close()
    return Conversation(messages, cut)


async def _arrival(arrived: "asyncio.Queue[Delivery]", envelope: bytes, at: float) -> float:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while (await arrived.get()).envelope != envelope:
                pass
    except TimeoutError:
        pass
    return time.monotonic() - at
