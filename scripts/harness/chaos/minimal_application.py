"""The application on top of a minimal client: what it sends and is shown, as records of the history."""

from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from scripts.harness.chaos.users import DeviceConfig
from scripts.harness.history.format import digest_of
from scripts.harness.history.journal import Journal

AHEAD_MAX = 20
"""Commands that the client has not obeyed yet, at most."""
_STATES = ("sent", "delivered", "read")

Event = Mapping[str, Any]


class MinimalApplication:
    """The application of one device.  It lives on while its client is killed and started again."""

    def __init__(self, device: DeviceConfig, friends: tuple[str, ...], journal: Journal, seed: int) -> None:
        self.device = device
        self._friends = friends
        self._journal = journal
        self._random = Random(f"minimal {seed} {device.user}")
        self._written = 0
        self._numbers = dict.fromkeys(friends, 0)
        self._ahead: deque[tuple[str, str]] = deque()
        """Recipient and name of each message that the client was told to send and has not queued."""
        self._sent: dict[tuple[str, int], _Message] = {}
        """By recipient and seq."""
        self._shown: dict[int, Event] = {}
        """By `n`, what a client that is killed may show once more."""
        self._shown_until = 0
        self._events: dict[str, Callable[[Event], None]] = {
            "online": self._online,
            "offline": self._offline,
            "message": self._message,
            "queued": self._queued,
            "rejected": self._rejected,
            **dict.fromkeys(_STATES, self._advanced),
        }

    @property
    def busy(self) -> bool:
        """Whether the client has enough to do."""
        return len(self._ahead) >= AHEAD_MAX

    def write(self, kind: str, **fields: object) -> None:
        """Write a record of this device."""
        self._journal.write(kind, user=self.device.user, device=self.device.device_id, **fields)

    def compose(self) -> str:
        """Write that a message is sent to one of the friends; return the command for it."""
        to = self._random.choice(self._friends)
        self._written += 1
        self._numbers[to] += 1
        name = f"{self.device.device_id}.{self._written}"
        text = f"{name} {'x' * min(3_000, int(self._random.expovariate(1 / 100)))}"
        self.write("send", to=to, message=name, n=self._numbers[to], digest=digest_of(text))
        self._ahead.append((to, name))
        return f"send {to} {text}"

    def left(self, kind: str) -> None:
        """The process of the client has ended: `offline` or `killed`.  What it was told and did not obey is lost."""
        self._ahead.clear()
        self.write(kind)

    def take(self, event: Event) -> None:
        """Take in what the client says."""
        if event["event"] in self._events:  # else it waits for REST
            self._events[event["event"]](event)

    def _online(self, event: Event) -> None:
        self.write("note", connector="minimal")

    def _offline(self, event: Event) -> None:
        self.write("note", connector=None)

    def _message(self, event: Event) -> None:
        """A message has a number for the application, which it keeps for ever: so it is handled once."""
        n, text = event["n"], event["text"] or ""
        if n <= self._shown_until:
            if self._shown.get(n) != event:
                self._problem(f"it showed another message with the number {n} before")
            return
        if n != self._shown_until + 1:
            self._problem(f"it shows number {n} after {self._shown_until}")
        self._shown_until = n
        self._shown[n] = event
        self._shown.pop(n - 1000, None)
        fields = {"message": text.partition(" ")[0], "id": event["id"], "digest": digest_of(text)}
        self.write("seen", **fields, **{"from": event["sender"], "from_device": str(event["device"])})

    def _queued(self, event: Event) -> None:
        to, name = self._ahead.popleft()
        if to != event["to"]:
            self._problem(f"it queued a message to {event['to']}, and {name} goes to {to}")
        self._journal.write("outcome", message=name, outcome="queued", id=event["id"])
        self._sent[to, event["seq"]] = _Message(name)

    def _about(self, event: Event) -> "list[_Message]":
        """Return the messages that an event is about; what the client queued and could not say so is not known."""
        seqs = (seq for first, last in event["ranges"] for seq in range(first, last + 1))
        found = (self._sent.get((event["to"], seq)) for seq in seqs)
        return [message for message in found if message is not None]

    def _advanced(self, event: Event) -> None:
        for message in self._about(event):
            if event.get("final"):
                message.reached.add("sent")
            message.reached.add(event["event"])
            # An outcome is known for the history once the mesh has said `final`.
            for state in _STATES if "sent" in message.reached else ():
                if state in message.reached and state not in message.written:
                    message.written.add(state)
                    self._journal.write("outcome", message=message.name, outcome=state)

    def _rejected(self, event: Event) -> None:
        for message in self._about(event):
            self._journal.write("outcome", message=message.name, outcome="rejected", code=event["code"])

    def _problem(self, sentence: str) -> None:
        self.write("note", problem=sentence)


class _Message:
    """A message that the client has on its disk."""

    __slots__ = ("name", "reached", "written")

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached: set[str] = set()
        """What the client said of it."""
        self.written: set[str] = set()
        """Outcomes in the history."""
