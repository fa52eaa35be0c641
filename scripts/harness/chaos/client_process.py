"""A process of client applications for a chaos run: they send, read, connect and disconnect until it is killed.

    python -m scripts.harness.chaos.client_process CONFIG NUMBER

runs the devices of process NUMBER through the client library.  Every record (`docs/history.md`) is appended to a
journal before the event has consequences, so that the journal is right whenever the process is killed; the next process
of the same number reads in it how far its devices had come.

Commands are lines on standard input: `start` (send messages), `stop` (send no more; all devices connect), `disconnect`
(all devices disconnect cleanly, and the process ends).
"""

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import uvloop

from meshim.client import Client, Message, Outgoing
from meshim.errors import ClientClosed, MeshimError, Refused
from scripts.harness.chaos.users import ClientsConfig, DeviceConfig
from scripts.harness.clients.devices import final_outcomes
from scripts.harness.history.format import digest_of
from scripts.harness.history.journal import DeviceRecord, Journal, read_journal

ONLINE_S, OFFLINE_S = 20.0, 4.0
"""Mean seconds that a device stays online, and offline."""
BURST_MAX = 4
"""Messages in a row to one friend, at most."""
_STEP_S = 0.02
_BACKLOG_S = 2.0
"""Messages that came due while no device was online are sent later, those of this time at most."""
_READ_SHARE = 0.1
"""Share of messages that are marked as read; each costs a receipt."""
_READ_OUTCOMES_S = 0.5
_RETRY_S = 1.0


class DeviceClient:
    """The client of one device.  Calls of `connect`, `disconnect` and `read_outcomes` must not overlap."""

    def __init__(self, device: DeviceConfig, config: ClientsConfig, journal: Journal, record: DeviceRecord) -> None:
        self.device = device
        self.client: Client | None = None
        self.failed = asyncio.Event()
        """Set when the client ended by itself."""
        self.idle = asyncio.Event()
        """Set while it sends no message."""
        self.idle.set()
        self._config = config
        self._journal = journal
        self._record = record
        self._random = Random(f"texts {config.seed} {device.device_id} {record.written}")
        self._handling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._outcome_tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- connecting and disconnecting

    async def connect(self) -> None:
        """Start the client."""
        self._write_record("online")
        self.failed.clear()
        device, config = self.device, self._config
        client = Client(
            config.api, device.user, config.password, device=device.name, state=device.state,
            transport=device.transport,
        )  # fmt: skip
        await client.__aenter__()
        self.client = client
        self._tasks = [asyncio.create_task(self._listen(client)), asyncio.create_task(self._watch(client))]

    async def disconnect(self) -> None:
        """Stop between two messages, so that none is delivered again, and close the client."""
        client, self.client = self.client, None
        assert client is not None
        await self.idle.wait()
        async with self._handling:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        await client.__aexit__(None, None, None)
        if self._outcome_tasks:
            await asyncio.wait(self._outcome_tasks)
        self._write_record("note", counted=msgspec.structs.asdict(client.statistics))
        self._write_record("offline")
        self.read_outcomes()

    async def _watch(self, client: Client) -> None:
        """Record the connector of the device, and the error that ends its client."""
        try:
            while True:
                await client.online()
                self._write_record("note", connector=client.connector)
                await client.offline()
                self._write_record("note", connector=None)
        except MeshimError as error:
            self._write_record("note", problem=f"the client ended: {error.sentence}")
            self.failed.set()

    # ---------------------------------------------------------------- sending

    def send(self, count: int) -> Coroutine[Any, Any, None]:
        """Return a coroutine that sends `count` messages to one friend; the device counts as busy from this call on."""
        assert self.client is not None
        self.idle.clear()
        return self._send(self.client, self._random.choice(self._config.friends[self.device.user]), count)

    async def _send(self, client: Client, to: str, count: int) -> None:
        try:
            await asyncio.gather(*(self._send_one(client, to) for _ in range(count)))
        finally:
            self.idle.set()

    async def _send_one(self, client: Client, to: str) -> None:
        # No await before `send` has numbered the message, so that `n` and its order agree.
        record = self._record
        record.written += 1
        record.numbers[to] += 1
        name = f"{self.device.device_id}.{record.written}"
        text = f"{name} {'x' * min(4_000, int(self._random.expovariate(1 / 100)))}"
        self._write_record("send", to=to, message=name, n=record.numbers[to], digest=digest_of(text))
        try:
            outgoing = await client.send(to, text)
        except Refused as refusal:
            self._write_rejection(name, refusal)
            return
        except MeshimError as error:
            self._write_record("note", problem=f"{name} could not be sent: {error.sentence}")
            return
        self._journal.write("outcome", message=name, outcome="queued", id=outgoing.id)
        record.unsettled[outgoing.id] = name
        task = asyncio.create_task(self._record_outcomes(name, outgoing))
        self._outcome_tasks.add(task)
        task.add_done_callback(self._outcome_tasks.discard)

    async def _record_outcomes(self, name: str, outgoing: Outgoing) -> None:
        """Record the outcomes of a message until the client closes."""
        try:
            await outgoing.wait_sent()
            self._write_outcome(outgoing.id, name, "sent")
            await outgoing.wait_delivered()
            self._journal.write("outcome", message=name, outcome="delivered")
        except Refused as refusal:
            self._record.unsettled.pop(outgoing.id, None)
            self._write_rejection(name, refusal)
        except ClientClosed:
            pass  # `read_outcomes` will find it

    def _write_outcome(self, envelope: str, name: str, outcome: str) -> None:
        del self._record.unsettled[envelope]
        self._journal.write("outcome", message=name, outcome=outcome)

    def _write_rejection(self, name: str, refusal: Refused) -> None:
        fields = {"code": refusal.code.name, "sentence": refusal.sentence}
        self._journal.write("outcome", message=name, outcome="rejected", **fields)

    def read_outcomes(self) -> None:
        """Read the outcomes of earlier clients' messages in the state file: no other source has them."""
        unsettled = self._record.unsettled
        if unsettled:
            for envelope, outcome in final_outcomes(Path(self.device.state), unsettled).items():
                self._write_outcome(envelope, unsettled[envelope], outcome)

    # ---------------------------------------------------------------- reading

    async def _listen(self, client: Client) -> None:
        try:
            async for message in client.messages():
                async with self._handling:
                    self._record_message(message)
                    await (message.mark_read() if self._random.random() < _READ_SHARE else message.done())
        except MeshimError:
            pass  # `_watch` records the reason

    def _record_message(self, message: Message) -> None:
        if message.sender not in self._config.friends:
            return  # a hostile friend, who owes the history nothing
        self._write_record(
            "seen",
            message=message.text.partition(" ")[0],
            id=message.id,
            **{"from": message.sender, "from_device": str(message.sender_device)},
            digest=digest_of(message.text),
            stored=message.stored,
            place=message.order.name,
        )

    def _write_record(self, kind: str, **fields: object) -> None:
        self._journal.write(kind, user=self.device.user, device=self.device.device_id, **fields)


class ClientProcess:
    """The clients of all devices of this process."""

    def __init__(self, config: ClientsConfig, number: int) -> None:
        path = config.journal_of(number)
        journal = Journal(path, config.start)
        devices = read_journal(path)
        own = [device for device in config.devices if device.process == number]
        self._clients = [
            DeviceClient(device, config, journal, devices.get(device.device_id, DeviceRecord())) for device in own
        ]
        self._rate = config.rate * len(own) / len(config.devices)
        self._random = Random(f"process {config.seed} {number} {time.monotonic()}")
        self._start, self._stop, self._disconnect = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Run until `disconnect`.  Raises errors of the clients as an ExceptionGroup."""
        async with asyncio.TaskGroup() as tasks:
            commands = tasks.create_task(self._read_commands())
            traffic = tasks.create_task(self._send(tasks))
            clients = [tasks.create_task(self._run_client(client)) for client in self._clients]
            await self._disconnect.wait()  # a process may have no device
            if clients:
                await asyncio.wait(clients)
            traffic.cancel()
            commands.cancel()

    async def _read_commands(self) -> None:
        commands = {"start": self._start, "stop": self._stop, "disconnect": self._disconnect}
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            commands[line.decode().strip()].set()

    async def _run_client(self, client: DeviceClient) -> None:
        """Connect and disconnect while there is traffic, then stay online until `disconnect`."""
        await client.connect()
        await self._start.wait()
        while not self._stop.is_set():
            await _wait_first(self._random.expovariate(1 / ONLINE_S), self._stop, client.failed)
            if client.failed.is_set() or not self._stop.is_set():
                await client.disconnect()
                away_s = _RETRY_S if client.failed.is_set() else self._random.expovariate(1 / OFFLINE_S)
                await _wait_first(away_s, self._stop)
                await client.connect()
        while not self._disconnect.is_set():
            await _wait_first(_READ_OUTCOMES_S, self._disconnect)
            client.read_outcomes()
        await client.disconnect()

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        """Send at the configured rate: random online devices each send a few messages in a row."""
        await self._start.wait()
        loop = asyncio.get_running_loop()
        due, last = 0.0, loop.time()
        while not self._stop.is_set():
            await asyncio.sleep(_STEP_S)
            now = loop.time()
            due = min(due + self._rate * (now - last), self._rate * _BACKLOG_S)
            last = now
            free = [client for client in self._clients if client.client is not None and client.idle.is_set()]
            self._random.shuffle(free)
            while free and due >= 1:
                count = min(int(due), self._random.randint(1, BURST_MAX))
                due -= count
                tasks.create_task(free.pop().send(count))


async def _wait_first(within_s: float, *events: asyncio.Event) -> None:
    """Wait for the first of the events, at most `within_s`."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def main(arguments: Iterable[str]) -> None:
    """Run process NUMBER of a configuration file."""
    path, number = arguments
    config = msgspec.json.decode(Path(path).read_bytes(), type=ClientsConfig)
    if config.mutation:
        from scripts.harness.chaos.mutations import apply  # here: it imports the whole mesh

        apply(config.mutation)
    uvloop.run(ClientProcess(config, int(number)).run())


if __name__ == "__main__":
    main(sys.argv[1:])
