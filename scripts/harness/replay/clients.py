"""The clients of a replay: one for each nick of the logs; each writes what it does and sees to the history."""

import asyncio
from collections import Counter
from pathlib import Path

from meshim.client import Client, Message, Outgoing
from meshim.errors import ClientClosed, Refused
from scripts.harness.clients.devices import final_outcomes
from scripts.harness.history.format import HistoryWriter, digest_of

DEVICE = "replay"
"""Name of every device.  Histories name devices by their id, since that is what a recipient learns of them."""

_POLL_S = 0.1


class ReplayContext:
    """The data that all clients share: the URL of REST, the password, the history, and the numbers of messages."""

    def __init__(self, api: str, password: str, history: HistoryWriter, tag: str) -> None:
        self.api = api
        self.password = password
        self.history = history
        self._tag = tag
        self._messages = 0

    def next_message(self) -> str:
        """Return a new, unique name for a message."""
        self._messages += 1
        return f"{self._tag}-{self._messages}"


class ReplayClient:
    """The client of one nick; implements `schedule.ScheduledClient`.  Its calls must not overlap."""

    def __init__(self, context: ReplayContext, clients: "dict[str, ReplayClient]", name: str, state: Path) -> None:
        """`clients` has all clients by nick; `name` is the user name, `state` the path of the state file."""
        self.name = name
        self.state = state
        self.device = ""
        self.missing: set[str] = set()
        """Messages to this user that it has not seen."""
        self.unsettled: dict[str, str] = {}
        """Messages from this user without a final outcome, by the id of the envelope."""
        self._context = context
        self._clients = clients
        self._numbers: Counter[str] = Counter()
        self._written: set[tuple[str, str]] = set()
        self._client: Client | None = None
        self._outcome_tasks: list[asyncio.Task[None]] = []
        self._handling = asyncio.Lock()
        self._disconnecting = False

    # ---------------------------------------------------------------- the schedule

    async def connect(self) -> None:
        """Start the client."""
        self._write_record("online")
        self._disconnecting = False
        context = self._context
        self._client = Client(context.api, self.name, context.password, device=DEVICE, state=self.state)
        await self._client.__aenter__()
        self._listener = asyncio.create_task(self._listen(self._client))

    async def send(self, to: str, text: str) -> None:
        """Send a text to a nick."""
        assert self._client is not None
        recipient = self._clients[to]
        message = self._context.next_message()
        text = f"{message} {text}"
        self._numbers[to] += 1
        self._write_record("send", to=recipient.name, message=message, n=self._numbers[to], digest=digest_of(text))
        recipient.missing.add(message)
        try:
            outgoing = await self._client.send(recipient.name, text)
        except Refused as refusal:
            self._write_rejection(recipient, message, refusal)
            return
        self._context.history.write({"type": "outcome", "message": message, "outcome": "queued", "id": outgoing.id})
        self.unsettled[outgoing.id] = message
        self._outcome_tasks.append(asyncio.create_task(self._record_outcomes(recipient, message, outgoing)))

    async def disconnect(self) -> None:
        """Stop reading between two messages, so that none is delivered again, and close the client."""
        assert self._client is not None
        self._disconnecting = True
        async with self._handling:
            self._listener.cancel()
        await asyncio.wait([self._listener])
        await self._client.__aexit__(None, None, None)
        await asyncio.gather(*self._outcome_tasks)
        if not self._listener.cancelled():
            self._listener.result()
        self._client = None
        self._outcome_tasks.clear()
        self._write_record("offline")
        self._read_outcomes()

    async def finish(self, timeout_s: float) -> None:
        """Stay online until no message to or from this user is open, for `timeout_s` at most."""
        await self.connect()
        assert self._client is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.online()
                while self.missing or self.unsettled:
                    await asyncio.sleep(_POLL_S)
                    self._read_outcomes()
        except TimeoutError:
            pass  # the judge will find what is missing
        await self.disconnect()

    # ---------------------------------------------------------------- what it sees

    async def _listen(self, client: Client) -> None:
        async for message in client.messages():
            async with self._handling:
                self._record_message(message)
                await message.mark_read()

    def _record_message(self, message: Message) -> None:
        if message.problem:
            self._context.history.write(
                {"type": "note", "user": self.name, "id": message.id, "problem": message.problem}
            )
        name = message.text.partition(" ")[0]
        self.missing.discard(name)
        self._write_record(
            "seen",
            message=name,
            id=message.id,
            **{"from": message.sender, "from_device": str(message.sender_device)},
            digest=digest_of(message.text),
            stored=message.stored,
            place=message.order.name,
        )

    async def _record_outcomes(self, recipient: "ReplayClient", message: str, outgoing: Outgoing) -> None:
        """Record the outcomes of a message until the client closes."""
        waits = {"sent": outgoing.wait_sent, "delivered": outgoing.wait_delivered, "read": outgoing.wait_read}
        try:
            for outcome, wait in waits.items():
                await wait()
                self._write_outcome(message, outgoing.id, outcome)
        except Refused as refusal:
            self.unsettled.pop(outgoing.id, None)
            self._write_rejection(recipient, message, refusal)
        except ClientClosed:
            if not self._disconnecting:
                raise

    def _read_outcomes(self) -> None:
        """Read the outcomes of earlier clients' messages in the state file: no other source has them."""
        if self.unsettled:
            for envelope, outcome in final_outcomes(self.state, self.unsettled).items():
                self._write_outcome(self.unsettled[envelope], envelope, outcome)

    # ---------------------------------------------------------------- the history

    def _write_outcome(self, message: str, envelope: str, outcome: str) -> None:
        self.unsettled.pop(envelope, None)
        if (message, outcome) not in self._written:
            self._written.add((message, outcome))
            self._context.history.write({"type": "outcome", "message": message, "outcome": outcome})

    def _write_rejection(self, recipient: "ReplayClient", message: str, refusal: Refused) -> None:
        recipient.missing.discard(message)
        record = {"type": "outcome", "message": message, "outcome": "rejected"}
        self._context.history.write({**record, "code": refusal.code.name, "sentence": refusal.sentence})

    def _write_record(self, kind: str, **fields: object) -> None:
        self._context.history.write({"type": kind, "user": self.name, "device": self.device, **fields})
