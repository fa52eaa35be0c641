"""Players: each is a nick of a log with a client of its own, and writes down what it does and sees."""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path

from meshim.client import Client, Message, Outgoing
from meshim.errors import ClientClosed, Refused
from scripts.harness.history.format import SETTLED, HistoryWriter, digest_of

DEVICE = "replay"
"""What every client calls its device.  Histories name devices by their id: that is what a recipient learns of them."""

_LOOK_EVERY_S = 0.1


class ReplayContext:
    """What all clients share: where the mesh is, the history, and the numbers of messages."""

    def __init__(self, api: str, password: str, history: HistoryWriter, tag: str) -> None:
        self.api = api
        self.password = password
        self.history = history
        self._tag = tag
        self._messages = 0

    def next_message(self) -> str:
        """Return a name for a message that nobody else uses."""
        self._messages += 1
        return f"{self._tag}-{self._messages}"


class ReplayClient:
    """One nick.  Implements `acting.ScheduledClient`; its calls come one after another."""

    def __init__(self, context: ReplayContext, clients: "dict[str, ReplayClient]", name: str, state: Path) -> None:
        """`clients` finds the others by nick, `name` is the user name, `state` the state file."""
        self.name = name
        self.state = state
        self.device = ""
        self.missing: set[str] = set()
        """Messages that were sent to it and that it has not seen."""
        self.unsettled: dict[str, str] = {}
        """Messages that it has sent and of which it does not know that they are safe, by the id of the envelope."""
        self._context = context
        self._clients = clients
        self._numbers: Counter[str] = Counter()
        self._known: set[tuple[str, str]] = set()
        self._client: Client | None = None
        self._followers: list[asyncio.Task[None]] = []
        self._handling = asyncio.Lock()
        self._leaving = False

    # ---------------------------------------------------------------- what it does

    async def connect(self) -> None:
        self._note("online")
        self._leaving = False
        context = self._context
        self._client = Client(context.api, self.name, context.password, device=DEVICE, state=self.state)
        await self._client.__aenter__()
        self._listener = asyncio.create_task(self._listen(self._client))

    async def send(self, to: str, text: str) -> None:
        assert self._client is not None
        recipient = self._clients[to]
        message = self._context.next_message()
        text = f"{message} {text}"
        self._numbers[to] += 1
        self._note("send", to=recipient.name, message=message, n=self._numbers[to], digest=digest_of(text))
        recipient.missing.add(message)
        try:
            outgoing = await self._client.send(recipient.name, text)
        except Refused as refusal:
            self._rejected(recipient, message, refusal)
            return
        self._context.history.write({"type": "outcome", "message": message, "outcome": "queued", "id": outgoing.id})
        self.unsettled[outgoing.id] = message
        self._followers.append(asyncio.create_task(self._follow(recipient, message, outgoing)))

    async def disconnect(self) -> None:
        """Stop reading between two messages, so that none is handed out again, and close the client."""
        assert self._client is not None
        self._leaving = True
        async with self._handling:
            self._listener.cancel()
        await asyncio.wait([self._listener])
        await self._client.__aexit__(None, None, None)
        await asyncio.gather(*self._followers)
        if not self._listener.cancelled():
            self._listener.result()
        self._client = None
        self._followers.clear()
        self._note("offline")
        self._learn()

    async def finish(self, timeout_s: float) -> None:
        """Be online until nothing that was sent to it or by it is open any more, for `timeout_s` at most."""
        await self.connect()
        assert self._client is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.online()
                while self.missing or self.unsettled:
                    await asyncio.sleep(_LOOK_EVERY_S)
                    self._learn()
        except TimeoutError:
            pass  # the judge will say what it means
        await self.disconnect()

    # ---------------------------------------------------------------- what it sees

    async def _listen(self, client: Client) -> None:
        async for message in client.messages():
            async with self._handling:
                self._see(message)
                await message.mark_read()

    def _see(self, message: Message) -> None:
        if message.problem:
            self._context.history.write(
                {"type": "note", "user": self.name, "id": message.id, "problem": message.problem}
            )
        name = message.text.partition(" ")[0]
        self.missing.discard(name)
        self._note(
            "seen",
            message=name,
            id=message.id,
            **{"from": message.sender, "from_device": str(message.sender_device)},
            digest=digest_of(message.text),
            stored=message.stored,
            place=message.order.name,
        )

    async def _follow(self, recipient: "ReplayClient", message: str, outgoing: Outgoing) -> None:
        """Write down how far a message comes, for as long as this client lives."""
        waits = {"sent": outgoing.wait_sent, "delivered": outgoing.wait_delivered, "read": outgoing.wait_read}
        try:
            for outcome, wait in waits.items():
                await wait()
                self._outcome(message, outgoing.id, outcome)
        except Refused as refusal:
            self.unsettled.pop(outgoing.id, None)
            self._rejected(recipient, message, refusal)
        except ClientClosed:
            if not self._leaving:
                raise

    def _learn(self) -> None:
        """Look up in the state file what became of messages from earlier clients: nobody else can tell."""
        if not self.unsettled:
            return
        outbox = sqlite3.connect(f"file:{self.state}?mode=ro", uri=True)
        try:
            states = dict(outbox.execute("SELECT lower(hex(id)), state FROM outbox"))
        finally:
            outbox.close()
        for envelope, message in list(self.unsettled.items()):
            if states.get(envelope) in (*SETTLED, "rejected"):
                self._outcome(message, envelope, states[envelope])

    # ---------------------------------------------------------------- the history

    def _outcome(self, message: str, envelope: str, outcome: str) -> None:
        self.unsettled.pop(envelope, None)
        if (message, outcome) not in self._known:
            self._known.add((message, outcome))
            self._context.history.write({"type": "outcome", "message": message, "outcome": outcome})

    def _rejected(self, recipient: "ReplayClient", message: str, refusal: Refused) -> None:
        recipient.missing.discard(message)
        record = {"type": "outcome", "message": message, "outcome": "rejected"}
        self._context.history.write({**record, "code": refusal.code.name, "sentence": refusal.sentence})

    def _note(self, kind: str, **fields: object) -> None:
        self._context.history.write({"type": kind, "user": self.name, "device": self.device, **fields})
