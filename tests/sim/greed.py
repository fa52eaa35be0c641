"""H4, in the time without faults: a friend sends without an end to a device that is away."""

from typing import TYPE_CHECKING

from meshim.wire.envelope import DestinationType
from tests.sim.device import Device

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

SHARE = 0.3
"""Of the seeds."""
AWAY_S = 12.0
MESSAGES, EVERY_S = 165, 0.065
"""Of the greedy friend."""
LAG_S = 3.5
"""From the log to the transfers at most, where a call to the database in five takes up to 1.25 s."""
MODEST_AT_S = 6.0
"""When the other friend sends: a copy for a device that has just ended is stored within the rest of the time."""


def most_rows(queue_rows: int) -> int:
    """Rows that the greedy friend may have in the queue: its share, and what is under way until it is refused."""
    return queue_rows // 4 + queue_rows // 16 + round(LAG_S / EVERY_S)


def begin(mesh: "Mesh") -> tuple[Device, ...]:
    """Let it happen, in some seeds; return the devices that must neither leave nor return otherwise."""
    scheduler, random = mesh.scheduler, mesh.scheduler.random
    if random.random() >= SHARE:
        return ()
    victim, greedy, modest = random.sample(mesh.devices, 3)
    while len({victim.user, greedy.user, modest.user}) < 3:
        victim, greedy, modest = random.sample(mesh.devices, 3)
    scheduler.after(0.0, victim.leave)
    scheduler.after(0.5, lambda: greedy.flood(victim.user, MESSAGES, EVERY_S))
    scheduler.after(MODEST_AT_S, lambda: _send_one(mesh, modest, victim))
    scheduler.after(AWAY_S, victim.start)
    mesh.judge.flooded(victim.id, greedy.user, most_rows(mesh.topology.limits.queue_rows))
    return victim, greedy, modest


def _send_one(mesh: "Mesh", modest: Device, victim: Device) -> None:
    before = set(mesh.judge.messages)
    modest.flood(victim.user, 1, 0.0)

    def check() -> None:
        sent = [key for key in mesh.judge.messages if key not in before and _is_from(key, modest, victim)]
        for key in sent[:1] if modest.core is not None else ():
            if mesh.judge.messages[key].state == "pending":
                mesh.judge.violated("bounded", f"{key} is not stored beside the messages of a greedy friend")

    mesh.scheduler.after(AWAY_S - MODEST_AT_S - 0.1, check)


def _is_from(key: tuple[int, ...], sender: Device, recipient: Device) -> bool:
    return key[1] == sender.id and key[3:5] == (DestinationType.USER, recipient.user)
