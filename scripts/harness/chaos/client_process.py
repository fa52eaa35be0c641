"""A process with many client applications, for a chaos run: it writes, reads, comes and goes, until it is killed.

    python crowd.py CAST NUMBER

plays the parts of the cast that belong to process NUMBER, through the client library.  What its applications
do and see is appended to a file of records (`docs/history.md`), each before it has consequences, so that the file
says the truth whenever the process is killed; the next process of this number reads there where its devices were.

Commands come as lines on standard input: `go` (write), `hush` (write no more, everybody comes online), `leave`
(everybody goes offline politely, and the process ends).
"""

import asyncio
import sqlite3
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
from scripts.harness.chaos.users import Cast, Part
from scripts.harness.history.format import SETTLED, digest_of
from scripts.harness.history.journal import Memory, Records, remember

ONLINE_S, OFFLINE_S = 20.0, 4.0
"""How long somebody stays, and stays away, on average."""
BURST_MOST = 4
"""Messages that are written to one friend in a row."""
_TURN_S = 0.02
_BEHIND_S = 2.0
"""So much of what could not be written, because nobody was there to write it, is made up for."""
_READ_SHARE = 0.1
"""How many messages are marked as read: each is a message of its own, to the sender."""
_LEARN_EVERY_S = 0.5
_AGAIN_S = 1.0


class Player:
    """One device.  Whoever calls `arrive`, `leave` and `learn` calls one after the other."""

    def __init__(self, part: Part, cast: Cast, records: Records, memory: Memory) -> None:
        self.part = part
        self.client: Client | None = None
        self.failed = asyncio.Event()
        """The client ended by itself."""
        self.idle = asyncio.Event()
        """Set while it writes nothing."""
        self.idle.set()
        self._cast = cast
        self._records = records
        self._memory = memory
        self._random = Random(f"texts {cast.seed} {part.device_id} {memory.written}")
        self._handling = asyncio.Lock()
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []
        self._followers: set[asyncio.Task[None]] = set()

    @property
    def unsettled(self) -> bool:
        return bool(self._memory.unsettled)

    # ---------------------------------------------------------------- coming and going

    async def arrive(self) -> None:
        self._note("online")
        self._leaving = False
        self.failed.clear()
        part, cast = self.part, self._cast
        client = Client(cast.api, part.user, cast.password, device=part.device, state=part.state)
        await client.__aenter__()
        self.client = client
        self._tasks = [asyncio.create_task(self._listen(client)), asyncio.create_task(self._watch(client))]

    async def leave(self) -> None:
        """Stop between two messages, so that none is handed out again, and close the client."""
        client, self.client = self.client, None
        assert client is not None
        await self.idle.wait()
        self._leaving = True
        async with self._handling:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        await client.__aexit__(None, None, None)
        if self._followers:
            await asyncio.wait(self._followers)
        self._note("note", counted=msgspec.structs.asdict(client.statistics))
        self._note("offline")
        self.learn()

    async def _watch(self, client: Client) -> None:
        """Write down where it is connected, and what ends it against its will."""
        try:
            while True:
                await client.online()
                self._note("note", connector=client.connector)
                await client.offline()
                self._note("note", connector=None)
        except MeshimError as error:
            self._note("note", problem=f"the client ended: {error.sentence}")
            self.failed.set()

    # ---------------------------------------------------------------- writing

    def write(self, count: int) -> Coroutine[Any, Any, None]:
        """Write some messages in a row to one friend; from this call on it counts as writing."""
        assert self.client is not None
        self.idle.clear()
        return self._write(self.client, self._random.choice(self._cast.friends[self.part.user]), count)

    async def _write(self, client: Client, to: str, count: int) -> None:
        try:
            await asyncio.gather(*(self._write_one(client, to) for _ in range(count)))
        finally:
            self.idle.set()

    async def _write_one(self, client: Client, to: str) -> None:
        # Up to where `send` has numbered the message nothing waits, so that `n` and its order agree.
        memory = self._memory
        memory.written += 1
        memory.numbers[to] += 1
        name = f"{self.part.device_id}.{memory.written}"
        text = f"{name} {'x' * min(4_000, int(self._random.expovariate(1 / 100)))}"
        self._note("send", to=to, message=name, n=memory.numbers[to], digest=digest_of(text))
        try:
            outgoing = await client.send(to, text)
        except Refused as refusal:
            self._rejected(name, refusal)
            return
        except MeshimError as error:
            self._note("note", problem=f"{name} could not be sent: {error.sentence}")
            return
        self._records.write("outcome", message=name, outcome="queued", id=outgoing.id)
        memory.unsettled[outgoing.id] = name
        follower = asyncio.create_task(self._follow(name, outgoing))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    async def _follow(self, name: str, outgoing: Outgoing) -> None:
        """Write down how far a message comes while this client lives."""
        try:
            await outgoing.wait_sent()
            self._settled(outgoing.id, name, "sent")
            await outgoing.wait_delivered()
            self._records.write("outcome", message=name, outcome="delivered")
        except Refused as refusal:
            self._memory.unsettled.pop(outgoing.id, None)
            self._rejected(name, refusal)
        except ClientClosed:
            pass  # `learn` finds out

    def _settled(self, envelope: str, name: str, outcome: str) -> None:
        del self._memory.unsettled[envelope]
        self._records.write("outcome", message=name, outcome=outcome)

    def _rejected(self, name: str, refusal: Refused) -> None:
        fields = {"code": refusal.code.name, "sentence": refusal.sentence}
        self._records.write("outcome", message=name, outcome="rejected", **fields)

    def learn(self) -> None:
        """Look up in the state file what became of messages of earlier clients: nobody else can tell."""
        unsettled = self._memory.unsettled
        if not unsettled:
            return
        outbox = sqlite3.connect(f"file:{self.part.state}?mode=ro", uri=True)
        try:
            states = dict(outbox.execute("SELECT lower(hex(id)), state FROM outbox WHERE state <> 'pending'"))
        finally:
            outbox.close()
        for envelope, name in list(unsettled.items()):
            if states.get(envelope) in (*SETTLED, "rejected"):
                self._settled(envelope, name, states[envelope])

    # ---------------------------------------------------------------- reading

    async def _listen(self, client: Client) -> None:
        try:
            async for message in client.messages():
                async with self._handling:
                    self._see(message)
                    await (message.mark_read() if self._random.random() < _READ_SHARE else message.done())
        except MeshimError:
            pass  # `_watch` says why

    def _see(self, message: Message) -> None:
        self._note(
            "seen",
            message=message.text.partition(" ")[0],
            id=message.id,
            **{"from": message.sender, "from_device": str(message.sender_device)},
            digest=digest_of(message.text),
            stored=message.stored,
            place=message.order.name,
        )

    def _note(self, kind: str, **fields: object) -> None:
        self._records.write(kind, user=self.part.user, device=self.part.device_id, **fields)


class Crowd:
    """All players of this process."""

    def __init__(self, cast: Cast, number: int) -> None:
        path = cast.file_of(number)
        records = Records(path, cast.start)
        memories = remember(path)
        parts = [part for part in cast.parts if part.process == number]
        self._players = [Player(part, cast, records, memories.get(part.device_id, Memory())) for part in parts]
        self._rate = cast.rate * len(parts) / len(cast.parts)
        self._random = Random(f"crowd {cast.seed} {number} {time.monotonic()}")
        self._go, self._hush, self._leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Play until told to leave.  Raises what goes wrong, as an ExceptionGroup."""
        async with asyncio.TaskGroup() as tasks:
            commands = tasks.create_task(self._obey())
            traffic = tasks.create_task(self._write(tasks))
            lives = [tasks.create_task(self._live(player)) for player in self._players]
            await asyncio.wait(lives)
            traffic.cancel()
            commands.cancel()

    async def _obey(self) -> None:
        commands = {"go": self._go, "hush": self._hush, "leave": self._leave}
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            commands[line.decode().strip()].set()

    async def _live(self, player: Player) -> None:
        """Come and go while there is traffic, then stay online to the end."""
        await player.arrive()
        await self._go.wait()
        while not self._hush.is_set():
            await _first(self._random.expovariate(1 / ONLINE_S), self._hush, player.failed)
            if player.failed.is_set() or not self._hush.is_set():
                await player.leave()
                away_s = _AGAIN_S if player.failed.is_set() else self._random.expovariate(1 / OFFLINE_S)
                await _first(away_s, self._hush)
                await player.arrive()
        while not self._leave.is_set():
            await _first(_LEARN_EVERY_S, self._leave)
            player.learn()
        await player.leave()

    async def _write(self, tasks: asyncio.TaskGroup) -> None:
        """Keep the rate: whoever is there writes to friends, some messages at a time."""
        await self._go.wait()
        loop = asyncio.get_running_loop()
        due, last = 0.0, loop.time()
        while not self._hush.is_set():
            await asyncio.sleep(_TURN_S)
            now = loop.time()
            due = min(due + self._rate * (now - last), self._rate * _BEHIND_S)
            last = now
            free = [player for player in self._players if player.client is not None and player.idle.is_set()]
            self._random.shuffle(free)
            while free and due >= 1:
                count = min(int(due), self._random.randint(1, BURST_MOST))
                due -= count
                tasks.create_task(free.pop().write(count))


async def _first(within_s: float, *events: asyncio.Event) -> None:
    """Wait until one of them happens, or the time is over."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def main(arguments: Iterable[str]) -> None:
    path, number = arguments
    cast = msgspec.json.decode(Path(path).read_bytes(), type=Cast)
    if cast.breaks:
        from scripts.harness.chaos.mutations import break_here  # here: it takes the whole mesh along

        break_here(cast.breaks)
    uvloop.run(Crowd(cast, int(number)).run())


if __name__ == "__main__":
    main(sys.argv[1:])
