"""`meshim deadletter`: lets an operator list, retry and drop the log records that writers could not write."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import rich_click as click

from meshim import topology as topologies
from meshim.cli.options import data_option, load, topology_option
from meshim.cli.terminal import printable
from meshim.deploy import state
from meshim.deploy.state import DataFolder, Phase
from meshim.errors import UsageError
from meshim.runtime.log import Log
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.dead_letters import JetStreamDeadLetters, retry
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import DeadLetter, DeadLetters
from meshim.topology import Topology
from meshim.wire.envelope import decode_envelope
from meshim.wire.offline_log import Entry, decode_record

_NONE = "There are no dead letters."
_COLUMNS = "{:>8}  {:>9}  {:>10}  {:<20}  {:>7}  {}"


class ShownEntry(msgspec.Struct, frozen=True):
    """A readable message in a letter, with the ids of its users and devices.

    `for_user` is the user whose copies these are; `for_devices` are the devices they are for, empty for all devices.
    """

    sender: int
    sender_device: int
    recipient: int
    seq: int
    for_user: int
    for_devices: tuple[int, ...]


class ShownLetter(msgspec.Struct, frozen=True):
    """A letter as `meshim deadletter list --json` shows it."""

    number: int
    partition: int
    position: int
    dead_lettered_at: str
    reason: str
    bytes: int
    entries: list[ShownEntry]
    unreadable_entries: int | None
    """Entries that cannot be read; None when the whole record cannot."""


class _Backend(NamedTuple):
    topology: Topology
    letters: DeadLetters
    log: JetStreamOfflineLog


@click.group()
def deadletter() -> None:
    """Look after what could not be written.

    A record of the log that no writer can write is kept as a dead letter, with its reason, and those behind it go on.
    """


@deadletter.command(name="list")
@topology_option
@data_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(file: Path | None, data: DataFolder, as_json: bool) -> None:
    """Show every dead letter: where it was, when and why it was dead-lettered, and whose messages are in it."""
    asyncio.run(_list(file, data, as_json))


@deadletter.command(name="retry")
@click.argument("numbers", nargs=-1, type=click.IntRange(min=1))
@click.option("--all", "everything", is_flag=True, help="Every letter that there is now.")
@topology_option
@data_option
def retry_(numbers: tuple[int, ...], everything: bool, file: Path | None, data: DataFolder) -> None:
    """Give letters to the writers again, once the cause is mended.

    A letter is removed when the log has it again.  What still cannot be written comes back with a new number.
    """
    _check_choice(numbers, everything)
    asyncio.run(_retry(numbers, everything, file, data))


@deadletter.command()
@click.argument("numbers", nargs=-1, type=click.IntRange(min=1))
@click.option("--all", "everything", is_flag=True, help="Every letter that there is now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@topology_option
@data_option
def drop(numbers: tuple[int, ...], everything: bool, yes: bool, file: Path | None, data: DataFolder) -> None:
    """Delete letters for good: the messages in them are lost to who did not get them."""
    _check_choice(numbers, everything)
    chosen = asyncio.run(_find(numbers, everything, file, data))
    if not chosen:
        print(_NONE)
    elif yes or click.confirm(_question(chosen)):  # not in a thread of an event loop: Ctrl-C would wait for the answer
        asyncio.run(_drop(chosen, file, data))
    else:
        print("Nothing is dropped.")


commands: list[click.Command] = [deadletter]


# ---------------------------------------------------------------- list, retry, drop


async def _list(file: Path | None, data: DataFolder, as_json: bool) -> None:
    async with _connected(file, data) as backend:
        if as_json:
            shown = [_shown(letter) async for letter in _all(backend.letters)]
            print(msgspec.json.format(msgspec.json.encode({"letters": shown})).decode())
            return
        count = 0
        async for letter in _all(backend.letters):
            if count == 0:
                print(_COLUMNS.format("NUMBER", "PARTITION", "POSITION", "SINCE", "BYTES", "REASON"))
            count += 1
            _print(_shown(letter))
        if count == 0:
            print(_NONE)


async def _retry(numbers: Sequence[int], everything: bool, file: Path | None, data: DataFolder) -> None:
    async def again(letter: DeadLetter, backend: _Backend) -> None:
        partitions = backend.topology.limits.partitions
        if letter.partition >= partitions:
            raise UsageError(
                f"Letter {letter.number} is of partition {letter.partition}, and the topology has only {partitions}: "
                "nobody would write it."
            )
        position = await retry(letter, backend.letters, backend.log)
        print(f"Letter {letter.number} is in partition {letter.partition} again, at position {position}.")

    async with _connected(file, data) as backend:
        if await _for_each(await _chosen(numbers, everything, backend.letters), backend, again):
            print("What still cannot be written comes back with a new number: see `meshim deadletter list`.")
        else:
            print(_NONE)


async def _find(numbers: Sequence[int], everything: bool, file: Path | None, data: DataFolder) -> list[int]:
    async with _connected(file, data) as backend:
        return await _chosen(numbers, everything, backend.letters)


async def _drop(numbers: Sequence[int], file: Path | None, data: DataFolder) -> None:
    async def remove(letter: DeadLetter, backend: _Backend) -> None:
        await backend.letters.remove(letter.number)
        print(f"Letter {letter.number} is dropped.")

    async with _connected(file, data) as backend:
        await _for_each(numbers, backend, remove)


def _question(numbers: Sequence[int]) -> str:
    what = f"dead letter {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} dead letters"
    return f"Drop {what} for good?"


def _check_choice(numbers: Sequence[int], everything: bool) -> None:
    if everything == bool(numbers):
        raise UsageError("Say which letters: either their numbers in `meshim deadletter list`, or --all.")


async def _chosen(numbers: Sequence[int], everything: bool, letters: DeadLetters) -> list[int]:
    """The numbers of the chosen letters.  Raises UsageError when one does not exist, before any is changed."""
    if everything:
        # Only those that exist now: a letter added meanwhile, perhaps one that failed again, has a higher number.
        last = await letters.last()
        return [letter.number async for letter in _all(letters) if letter.number <= last]
    for number in numbers:
        if await letters.get(number) is None:
            raise UsageError(f"There is no dead letter {number}: see `meshim deadletter list`.")
    return sorted(set(numbers))


async def _for_each(
    numbers: Sequence[int], backend: _Backend, work: Callable[[DeadLetter, _Backend], Awaitable[None]]
) -> int:
    """Call `work` for each letter, in order; returns for how many of them, as some may be gone meanwhile."""
    count = 0
    for number in numbers:
        letter = await backend.letters.get(number)
        if letter is not None:  # None: another operator has removed it
            await work(letter, backend)
            count += 1
    return count


async def _all(letters: DeadLetters) -> AsyncIterator[DeadLetter]:
    number = 0
    while (letter := await letters.following(number)) is not None:
        yield letter
        number = letter.number


# ---------------------------------------------------------------- the log


@asynccontextmanager
async def _connected(file: Path | None, data: DataFolder) -> AsyncIterator[_Backend]:
    topology = _topology(file, data)
    # An exception has the sentence for the operator; log lines are dropped.
    log = Log("cli", "deadletter", io.StringIO())
    nats = await NatsClient.connect(topology.backends.nats, log)
    try:
        namespace = topology.namespace
        # The same gate as in transfers: `retry` removes a letter when the log has acknowledged it.
        gate = LogDurabilityGate(nats, topology.durability, log)
        yield _Backend(topology, JetStreamDeadLetters(nats, namespace), JetStreamOfflineLog(nats, namespace, gate=gate))
    finally:
        await nats.close()


def _topology(file: Path | None, data: DataFolder) -> Topology:
    """A topology with the URL of NATS: the given one, or that of the mesh that runs on the data folder."""
    topology = load(file)
    if topology.backends.nats != "embedded":
        return topology
    pid = state.supervisor(data)
    mesh = state.read(data)
    if mesh is None or mesh.pid != pid or mesh.state is not Phase.RUNNING:
        raise UsageError(f"The mesh on {data.root} is not up yet, or not any more: ask again in a moment.")
    return topologies.load(data.topology)


# ---------------------------------------------------------------- output


def _shown(letter: DeadLetter) -> ShownLetter:
    at = datetime.fromtimestamp(letter.dead_lettered_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    fields: dict[str, Any] = {
        "number": letter.number, "partition": letter.partition, "position": letter.position, "dead_lettered_at": at,
        "reason": letter.reason, "bytes": len(letter.data),
    }  # fmt: skip
    try:
        entries = decode_record(letter.data).entries
    except msgspec.DecodeError:
        return ShownLetter(**fields, entries=[], unreadable_entries=None)
    readable = [entry for entry in map(_entry, entries) if entry is not None]
    return ShownLetter(**fields, entries=readable, unreadable_entries=len(entries) - len(readable))


def _entry(entry: Entry) -> ShownEntry | None:
    try:
        envelope = decode_envelope(entry.envelope)
    except msgspec.DecodeError:
        return None
    return ShownEntry(
        sender=envelope.user,
        sender_device=envelope.device,
        recipient=envelope.to.id,
        seq=envelope.seq,
        for_user=entry.user,
        for_devices=entry.devices,
    )


def _print(letter: ShownLetter) -> None:
    print(
        _COLUMNS.format(
            letter.number,
            letter.partition,
            letter.position,
            letter.dead_lettered_at,
            letter.bytes,
            printable(letter.reason),
        )
    )
    indent = " " * 10
    for entry in letter.entries:
        devices = f", devices {', '.join(map(str, entry.for_devices))}" if entry.for_devices else ", all devices"
        print(
            f"{indent}from user {entry.sender}, device {entry.sender_device}, to {entry.recipient}: "
            f"message {entry.seq}, for user {entry.for_user}{devices}"
        )
    if letter.unreadable_entries:
        print(f"{indent}and {letter.unreadable_entries} that cannot be read")
