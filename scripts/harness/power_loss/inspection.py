"""What is left of a mesh and its clients: opened as they would open it themselves, and searched for messages.

A message is safe where one of these holds for the device of its recipient:

    device      its state file has seen it
    database    there is a row for it that nobody has marked read
    log         there is a record, which a writer will write whatever its position is
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
from meshim.deploy.embedded import Nats
from meshim.runtime.log import Log
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.topology import Topology
from meshim.wire.envelope import Destination, DestinationType, Stream, decode_envelope
from meshim.wire.offline_log import decode_record

_ANSWER_S = 5.0
_END_S = 5.0
_LOG = Log("aftermath", "nats")


class Sending(NamedTuple):
    """A message as its sender knows it."""

    id: bytes
    sender: str
    recipient: str
    stream: Stream
    seq: int


class Notes:
    """What was known when the power went, from the lines of `power_load.py`."""

    def __init__(self, text: str) -> None:
        self.users: dict[str, int] = {}
        self.queued: dict[bytes, Sending] = {}
        self.sent: list[Sending] = []
        devices: dict[str, tuple[int, int, int]] = {}
        for line in text.splitlines():
            match line.split():
                case ["device", name, user, device, epoch]:
                    self.users[name] = int(user)
                    devices[name] = int(user), int(device), int(epoch)
                case ["queued", message, sender, recipient, seq]:
                    stream = Stream(*devices[sender], Destination(DestinationType.USER, self.users[recipient]))
                    self.queued[bytes.fromhex(message)] = Sending(
                        bytes.fromhex(message), sender, recipient, stream, int(seq)
                    )
                case ["sent", message]:
                    self.sent.append(self.queued[bytes.fromhex(message)])


class _Device(NamedTuple):
    """What a state file knows."""

    outbox: set[bytes]
    """Ids of what it has sent, settled or not."""
    seen: dict[Stream, tuple[int, tuple[tuple[int, int], ...]]]
    """Watermark and holes."""
    held: set[tuple[Stream, int]]

    def has(self, sending: Sending) -> bool:
        watermark, holes = self.seen.get(sending.stream, (1, ()))
        below = sending.seq < watermark and not any(first <= sending.seq <= last for first, last in holes)
        return below or (sending.stream, sending.seq) in self.held


class Left(NamedTuple):
    """What was found: state files by name, and ids of envelopes by user."""

    devices: dict[str, _Device]
    database: set[tuple[int, bytes]]
    log: set[tuple[int, bytes]]

    def place(self, sending: Sending) -> str | None:
        """Where the copy for the recipient is; None when it is lost."""
        device = self.devices.get(sending.recipient)
        if device is not None and device.has(sending):
            return "device"
        copy = (sending.stream.to.id, sending.id)
        if copy in self.database:
            return "database"
        return "log" if copy in self.log else None

    def is_kept(self, sending: Sending) -> bool:
        """Whether the sender's outbox knows of it."""
        device = self.devices.get(sending.sender)
        return device is not None and sending.id in device.outbox


async def look(folder: Path, topology: Topology) -> Left:
    """Open everything below `folder`.

    Raises sqlite3.DatabaseError for a database that is broken, and MeshimError where a state file is, where NATS does
    not start, or where a writer could not go on.
    """
    devices = {file.stem: _device(file) for file in sorted((folder / "states").glob("*.db"))}
    positions, database = _database(folder / "data" / "meshim.db")
    log = await _log(folder / "data" / "nats", topology, positions)
    return Left(devices, database, log)


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
        log = JetStreamOfflineLog(nats, topology.namespace, max_bytes=limits.log_bytes, publish_timeout_s=_ANSWER_S)
        for partition in range(limits.partitions):
            await log.ensure(partition, positions.get(partition, 0) + 1)  # as a writer begins
            for position in await _positions(nats, f"{topology.namespace}-offline-{partition}"):
                found |= await _copies(log, partition, position)
    return found


async def _positions(nats: NatsClient, stream: str) -> range:
    answer = await nats.request(f"$JS.API.STREAM.INFO.{stream}", b"", _ANSWER_S)
    state = msgspec.json.decode(answer.data)["state"]
    return range(state["first_seq"], state["last_seq"] + 1) if state["messages"] else range(0)


async def _copies(log: JetStreamOfflineLog, partition: int, position: int) -> set[tuple[int, bytes]]:
    data = await log.read(partition, position)
    if data is None:
        return set()
    return {(entry.user, decode_envelope(entry.envelope).id) for entry in decode_record(data).entries}


@asynccontextmanager
async def _nats(folder: Path, topology: Topology) -> AsyncIterator[NatsClient]:
    """The server of `meshim up`, on that folder."""
    limits = topology.limits
    recipe = Nats(folder, store_bytes=(limits.partitions + 2) * limits.log_bytes)
    nothing = os.open(os.devnull, os.O_RDONLY)  # where the supervisor would hand on its lock
    server = BackendChild(recipe, folder / "log", nothing, lambda: None)
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
        os.close(nothing)
