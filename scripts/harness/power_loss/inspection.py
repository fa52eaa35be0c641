"""Searches what a loss of power has left for messages, opened as the programs would open it themselves.

A message is safe where one of these holds for the device of its recipient:

    device      its state file has seen the message
    database    a row for it exists that is not marked read
    log         a record has it, which a writer will write whatever its position is
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from meshim.client.state import StateFile
from meshim.deploy.child import BackendChild
from meshim.deploy.embedded import Nats, embedded_log_bytes
from meshim.runtime.log import Log
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.topology import Topology
from meshim.wire.envelope import Destination, DestinationType, Stream, decode_envelope
from meshim.wire.offline_log import decode_record

_REPLY_S = 5.0
_END_S = 5.0
_LOG = Log("after-power-loss", "nats")


class SentMessage(NamedTuple):
    """A message, from the notes of its sender."""

    id: bytes
    sender: str
    recipient: str
    stream: Stream
    seq: int


class Notes:
    """The notes of the workload (`workload.py`) at the time of the power loss."""

    def __init__(self, text: str) -> None:
        self.users: dict[str, int] = {}
        self.queued: dict[bytes, SentMessage] = {}
        self.sent: list[SentMessage] = []
        devices: dict[str, tuple[int, int, int]] = {}
        for line in text.splitlines():
            match line.split():
                case ["device", name, user, device, epoch]:
                    self.users[name] = int(user)
                    devices[name] = int(user), int(device), int(epoch)
                case ["queued", message, sender, recipient, seq]:
                    stream = Stream(*devices[sender], Destination(DestinationType.USER, self.users[recipient]))
                    self.queued[bytes.fromhex(message)] = SentMessage(
                        bytes.fromhex(message), sender, recipient, stream, int(seq)
                    )
                case ["sent", message]:
                    self.sent.append(self.queued[bytes.fromhex(message)])


class _Device(NamedTuple):
    """The content of a state file."""

    outbox: set[bytes]
    """Ids of the messages it has sent, settled or not."""
    seen: dict[Stream, tuple[int, tuple[tuple[int, int], ...]]]
    """Watermark and holes by stream."""
    held: set[tuple[Stream, int]]

    def has(self, message: SentMessage) -> bool:
        """Whether the device has seen the message."""
        watermark, holes = self.seen.get(message.stream, (1, ()))
        below = message.seq < watermark and not any(first <= message.seq <= last for first, last in holes)
        return below or (message.stream, message.seq) in self.held


class Inspection(NamedTuple):
    """The findings: state files by name, and (user, envelope id) in database and log."""

    devices: dict[str, _Device]
    database: set[tuple[int, bytes]]
    log: set[tuple[int, bytes]]

    def location(self, message: SentMessage) -> str | None:
        """Return the place of the recipient's copy; None when it is lost."""
        device = self.devices.get(message.recipient)
        if device is not None and device.has(message):
            return "device"
        copy = (message.stream.to.id, message.id)
        if copy in self.database:
            return "database"
        return "log" if copy in self.log else None

    def is_in_outbox(self, message: SentMessage) -> bool:
        """Whether the outbox of the sender has the message."""
        device = self.devices.get(message.sender)
        return device is not None and message.id in device.outbox


async def inspect(folder: Path, topology: Topology) -> Inspection:
    """Open everything below `folder`, and return what is there.

    Raises sqlite3.DatabaseError for a corrupt database, and MeshimError for a corrupt state file, or when NATS or a
    writer could not start on what is left.
    """
    devices = {file.stem: _device(file) for file in sorted((folder / "states").glob("*.db"))}
    positions, database = _database(folder / "data" / "meshim.db")
    log = await _log(folder / "data" / "nats", topology, positions)
    return Inspection(devices, database, log)


def _device(file: Path) -> _Device:
    state = StateFile(file)
    snapshot = state.load()
    state.close()
    with closing(sqlite3.connect(file)) as connection:
        _check(connection)
        outbox = {bytes(message) for (message,) in connection.execute("SELECT id FROM outbox")}
    seen = {order.stream: (order.watermark, order.holes) for order in snapshot.orders}
    return _Device(outbox, seen, {(held.stream, held.seq) for held in snapshot.early})


def _database(file: Path) -> tuple[dict[int, int], set[tuple[int, bytes]]]:
    with closing(sqlite3.connect(file)) as connection:
        _check(connection)
        positions = dict(connection.execute("SELECT partition, position FROM im_position"))
        rows = connection.execute("SELECT to_user_id, msg_id FROM im_offline WHERE has_read = 0")
        return positions, {(user, bytes(message)) for user, message in rows}


def _check(connection: sqlite3.Connection) -> None:
    (answer,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if answer != "ok":
        raise sqlite3.DatabaseError(answer)


async def _log(folder: Path, topology: Topology, positions: Mapping[int, int]) -> set[tuple[int, bytes]]:
    found: set[tuple[int, bytes]] = set()
    limits = topology.limits
    async with _nats(folder, topology) as nats:
        log = JetStreamOfflineLog(nats, topology.namespace, max_bytes=limits.log_bytes, publish_timeout_s=_REPLY_S)
        for partition in range(limits.partitions):
            await log.ensure(partition, positions.get(partition, 0) + 1)  # as a writer does at its start
            for position in await _positions(nats, f"{topology.namespace}-offline-{partition}"):
                found |= await _copies(log, partition, position)
    return found


async def _positions(nats: NatsClient, stream: str) -> range:
    answer = await nats.request(f"$JS.API.STREAM.INFO.{stream}", b"", _REPLY_S)
    state = msgspec.json.decode(answer.data)["state"]
    return range(state["first_seq"], state["last_seq"] + 1) if state["messages"] else range(0)


async def _copies(log: JetStreamOfflineLog, partition: int, position: int) -> set[tuple[int, bytes]]:
    data = await log.read(partition, position)
    if data is None:
        return set()
    return {(entry.user, decode_envelope(entry.envelope).id) for entry in decode_record(data).entries}


@asynccontextmanager
async def _nats(folder: Path, topology: Topology) -> AsyncIterator[NatsClient]:
    """Run nats-server as `meshim up` does, on that folder."""
    limits = topology.limits
    recipe = Nats(folder, store_bytes=embedded_log_bytes(limits.partitions, limits.log_bytes))
    no_lock = os.open(os.devnull, os.O_RDONLY)  # in place of the lock that the supervisor hands on
    server = BackendChild(recipe, folder / "log", no_lock, lambda: None)
    try:
        await server.start()
        assert server.endpoint is not None
        client = await NatsClient.connect(server.endpoint, _LOG)
        try:
            yield client
        finally:
            await client.close()
    finally:
        await server.stop(_END_S)
        os.close(no_lock)
