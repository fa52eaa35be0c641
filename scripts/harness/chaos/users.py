"""Who plays in a chaos run: users, their devices and friends, and which process plays which device."""

from pathlib import Path
from random import Random

import msgspec

FRIENDS = 3
"""Of each user to either side: everybody has twice as many."""


class Part(msgspec.Struct, frozen=True):
    """One device of one user, played by the process of that number."""

    user: str
    device: str
    """What the device is called; its number in the mesh is `device_id`, which histories name it by."""
    state: str
    """Path of its state file."""
    process: int
    device_id: str = ""


class Cast(msgspec.Struct, frozen=True):
    """Everything a process of players has to know."""

    api: str
    password: str
    start: float
    """When the history begins, by CLOCK_MONOTONIC."""
    seed: int
    rate: float
    """Messages a second of all processes together."""
    records: str
    """Folder with a file of records for each process."""
    friends: dict[str, tuple[str, ...]]
    parts: tuple[Part, ...]
    breaks: str = ""
    """What is broken in the client library (`broken.py`)."""

    def file_of(self, process: int) -> Path:
        return Path(self.records) / f"process-{process}.jsonl"


def friends_of(users: list[str]) -> dict[str, tuple[str, ...]]:
    """Everybody's neighbours on a ring."""
    count = len(users)
    steps = [step for step in range(-FRIENDS, FRIENDS + 1) if step]
    return {user: tuple(users[(at + step) % count] for step in steps) for at, user in enumerate(users)}


def parts_of(users: list[str], states: Path, processes: int, seed: int) -> tuple[Part, ...]:
    """One device for everybody, a second one for every fifth, in processes at random; two of a user never share one."""
    random = Random(f"cast {seed}")
    parts = []
    for at, user in enumerate(users):
        homes = random.sample(range(processes), 2)
        for number, device in enumerate(("phone", "laptop") if at % 5 == 0 else ("phone",)):
            parts.append(Part(user, device, str(states / f"{user}-{device}.db"), homes[number]))
    return tuple(parts)
