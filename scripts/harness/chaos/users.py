"""The users of a chaos run: their devices, their friends, and the client process of each device."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from random import Random

import msgspec

from meshim.client.connection import Transport

FRIENDS = 3
"""Friends of each user on either side of a ring: six in all."""


TRANSPORTS: dict[str, tuple[Transport, ...]] = {
    "zeromq": ("zeromq",),
    "websocket": ("websocket",),
    "mixed": ("zeromq", "websocket"),
}
"""The transports of the devices, by the name of `--transport`: `mixed` is half of them by each, in turn."""


class DeviceConfig(msgspec.Struct, frozen=True):
    """One device of one user, and the number of its client process."""

    user: str
    name: str
    """Name of the device.  Histories name devices by `device_id`, their number in the mesh."""
    state: str
    """Path of its state file."""
    process: int
    device_id: str = ""
    transport: Transport = "zeromq"


class ClientsConfig(msgspec.Struct, frozen=True):
    """The configuration of all client processes."""

    api: str
    password: str
    start: float
    """When the history begins, by CLOCK_MONOTONIC."""
    seed: int
    rate: float
    """Messages a second of all processes together."""
    journals: str
    """Folder with a journal for each process."""
    friends: dict[str, tuple[str, ...]]
    devices: tuple[DeviceConfig, ...]
    mutation: str = ""
    """The mechanism that is taken out of clients (`mutations.py`)."""

    def journal_of(self, process: int) -> Path:
        """Return the path of the journal of a process."""
        return Path(self.journals) / f"process-{process}.jsonl"


def friends_of(users: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the friends of each user: the neighbours on a ring."""
    count = len(users)
    steps = [step for step in range(-FRIENDS, FRIENDS + 1) if step]
    return {user: tuple(users[(at + step) % count] for step in steps) for at, user in enumerate(users)}


def assign_devices(
    users: list[str], states: Path, processes: int, seed: int, transport: str
) -> tuple[DeviceConfig, ...]:
    """Return one device for each user and a second one for every fifth, on random processes.

    Two devices of one user are never in the same process.  `transport` is a key of `TRANSPORTS`.
    """
    random = Random(f"devices {seed}")
    transports = cycle(TRANSPORTS[transport])
    devices = []
    for at, user in enumerate(users):
        homes = random.sample(range(processes), 2)
        for number, name in enumerate(("phone", "laptop") if at % 5 == 0 else ("phone",)):
            state = str(states / f"{user}-{name}.db")
            devices.append(DeviceConfig(user, name, state, homes[number], transport=next(transports)))
    return tuple(devices)


def with_minimal(
    devices: Sequence[DeviceConfig], users: list[str], states: Path, processes: int, transports: Sequence[Transport]
) -> tuple[tuple[DeviceConfig, ...], tuple[DeviceConfig, ...]]:
    """Return the devices without the phones of the first users, and the minimal clients that these users have instead.

    Each minimal client is a process; their numbers begin at `processes`.  A laptop stays one of the client library.
    """
    minimal = tuple(
        DeviceConfig(user, "minimal", str(states / f"{user}-minimal"), processes + at, transport=transport)
        for at, (user, transport) in enumerate(zip(users, transports, strict=False))
    )
    theirs = {device.user for device in minimal}
    return tuple(each for each in devices if each.user not in theirs or each.name != "phone"), minimal
