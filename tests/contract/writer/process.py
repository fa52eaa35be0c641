"""Writers as real processes on real backends, and ways to look at them from outside."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from meshim.protocol.routing import partition_of
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import Device, User
from meshim.stores.sql import migrate
from meshim.stores.sql.schema import im_offline
from meshim.topology import Backends, ConnectorListener, Limits, Listener, RestListener, Timers, Topology, Worker, dump
from meshim.wire.offline_log import encode_record
from tests.contract.redis.backends import LOG
from tests.contract.sql.backends import NOW, Ports, SqlBackend, device_of, entry, person

PARTITIONS = 2
TIMERS = Timers(lease_renew_s=0.3, lease_ttl_s=1.0, partition_lease_s=1.5)
DEADLINE_S = 20.0


async def until(condition: Callable[[], Awaitable[bool]], *, every_s: float = 0.02) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < end, "the condition does not hold in time"
        await asyncio.sleep(every_s)


def topology_of(redis: str, nats: str, sql: str, namespace: str) -> Topology:
    return Topology(
        connectors=(ConnectorListener("c1"),),
        transfers=(Listener("t1"),),
        writers=(Worker("w1"), Worker("w2")),
        rest=(RestListener("r1"),),
        namespace=namespace,
        backends=Backends(redis, nats, sql),
        timers=TIMERS,
        limits=Limits(partitions=PARTITIONS, log_bytes=64 << 20, writer_records=64),
    )


class _State(msgspec.Struct):
    messages: int


class _Info(msgspec.Struct):
    state: _State


_info = msgspec.json.Decoder(_Info)


class Writer:
    """A process; `errors` is what it wrote to stderr."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self._process = process
        self._errors = errors

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    async def line(self) -> str:
        """Return the next line it writes to stdout; empty when it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            return (await self._process.stdout.readline()).decode()

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    async def stop(self) -> None:
        """Send SIGSTOP, and wait until it has stopped: the signal takes a moment."""
        self.send(signal.SIGSTOP)

        async def stopped() -> bool:
            return _has_stopped(self._process.pid)

        await until(stopped, every_s=0.001)

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self._process.wait()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def _has_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


class Mesh:
    """The backends of a namespace: a log to publish to, a database to look into, and writers."""

    def __init__(self, topology: Topology, folder: Path, stack: AsyncExitStack) -> None:
        self.topology = topology
        self._folder = folder
        self._stack = stack
        self._file = folder / "topology.yaml"
        self._sequences: dict[int, int] = {}
        self._starts = 0

    def write_topology(self) -> None:
        self._file.write_text(dump(self.topology))

    async def open(self) -> "Mesh":
        self.write_topology()
        sql = self.topology.backends.sql
        await asyncio.to_thread(migrate.upgrade, sql)
        self.backend = SqlBackend(sql, self._stack)
        self.ports: Ports = self.backend.process()
        self.nats = await NatsClient.connect(self.topology.backends.nats, LOG)
        self._stack.push_async_callback(self.nats.close)
        self.log = JetStreamOfflineLog(self.nats, self.topology.namespace, max_bytes=self.topology.limits.log_bytes)
        return self

    async def launch(self, name: str = "w1") -> Writer:
        self._starts += 1
        errors = self._folder / f"{name}-{self._starts}.err"
        with errors.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "meshim", "writer", name, "-t", str(self._file), "--data", str(self._folder),
                stdout=asyncio.subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        writer = Writer(process, errors)
        self._stack.push_async_callback(writer.kill)
        return writer

    async def start(self, name: str = "w1") -> Writer:
        writer = await self.launch(name)
        assert await writer.line() == f"ready writer {name} -\n", writer.errors
        return writer

    async def deadletter(self, *arguments: str, answer: str = "") -> tuple[int, str]:
        """Run `meshim deadletter` with the topology; return its exit code and all that it wrote."""
        process = await self.deadletter_process(*arguments)
        output, _ = await process.communicate(answer.encode())
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def deadletter_process(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start `meshim deadletter` with the topology."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meshim", "deadletter", *arguments, "-t", str(self._file),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    # ---- people and messages

    async def people(self, count: int) -> list[tuple[User, Device]]:
        users = [await person(self.ports) for _ in range(count)]
        return [(user, await device_of(self.ports, user, now=max(NOW, time.time()))) for user in users]

    async def publish(self, recipient: tuple[User, Device], *, to_all: bool = False) -> int:
        """Publish the next message for the recipient; return its `seq`."""
        user, device = recipient
        seq = self._sequences[user.user_id] = self._sequences.get(user.user_id, 0) + 1
        await self.publish_raw(user, encode_record((entry(user, seq, () if to_all else (device,)),)))
        return seq

    async def publish_raw(self, user: User, data: bytes) -> int:
        return await self.log.publish(partition_of(user.user_id, PARTITIONS), data)

    # ---- what is stored

    async def stored(self, recipient: tuple[User, Device]) -> list[int]:
        """Return the `seq` of every row of the device, in the order of a sync."""

        def read(connection: Connection) -> list[int]:
            rows = im_offline.c
            query = select(rows.seq).where(rows.to_device == recipient[1].device_id)
            return list(connection.scalars(query.order_by(rows.position, rows.index)))

        return await self.backend.database.read(read)

    async def all_stored(self, recipients: Sequence[tuple[User, Device]]) -> bool:
        """Return whether all published messages are stored; assert that they are in order and none is there twice."""
        complete = True
        for recipient in recipients:
            seqs = await self.stored(recipient)
            assert seqs == list(range(1, len(seqs) + 1)), "in order, once, none skipped"
            complete &= len(seqs) == self._sequences.get(recipient[0].user_id, 0)
        return complete

    async def left_in_log(self) -> int:
        """Return how many messages are not acknowledged."""
        count = 0
        for partition in range(PARTITIONS):
            name = f"$JS.API.STREAM.INFO.{self.topology.namespace}-offline-{partition}"
            count += _info.decode((await self.nats.request(name, b"", 2.0)).data).state.messages
        return count

    async def log_is_empty(self) -> bool:
        return await self.left_in_log() == 0
