"""Section 13 of docs/protocol.md: the cores answer everything that it lists as it says; and section 6.1, the states."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from meshim import topology
from meshim.client import events as c
from meshim.client.core import ClientCore
from meshim.client.options import DEFAULTS
from meshim.connector import events as e
from meshim.connector.authenticator import _verdict
from meshim.connector.cookies import make_cookie
from meshim.errors import Code
from meshim.protocol.link import LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.runtime.crypto import hash_token
from meshim.stores.ports import Account, Login
from meshim.wire import client as wire
from meshim.wire.envelope import Destination, Envelope, Receipt, Stream, decode_envelope
from meshim.wire.link import Ack, Close, Data, Frame
from meshim.wire.mesh import Route
from meshim.wire.outcome import OutcomeStatus
from tests.unit.client.test_core import EMPTY, ME
from tests.unit.connector.world import SECRET, Client, Connector
from tests.unit.docs.test_protocol_document import DECODERS, DOCUMENT, EXAMPLES, SUBSECTIONS

encode = msgspec.msgpack.Encoder(enc_hook=bytes).encode  # `Encoded` is a kind of bytes
DECODED = {type(DECODERS[side](bytes.fromhex(data))): bytes.fromhex(data) for side, _, data in EXAMPLES}
GREET = DECODERS["client"](DECODED[wire.Greet])
LINK, TOKEN, EPOCH = GREET.link, GREET.token, GREET.epoch
USER, DEVICE, FRIEND = 7, 12, 9


class Encoded(bytes):
    """A struct of the page, encoded; calling it with other values for fields returns another one."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], data: bytes) -> "Encoded":
        made = cls(data)
        made.names = names
        return made

    def __call__(self, more: Any = None, **changes: Any) -> "Encoded":
        values = dict(zip(self.names, msgspec.msgpack.decode(self), strict=True))
        assert changes.keys() <= values.keys()
        return Encoded.of(self.names, encode([*(values | changes).values(), *([] if more is None else [more])]))


ENVELOPE = Encoded.of(Envelope.__struct_fields__, DECODED[Envelope])
RECEIPT = Encoded.of(Receipt.__struct_fields__, DECODED[Receipt])
FROM_9 = ENVELOPE(user=FRIEND, device=31, to=[1, USER, 0])
NAMES = {
    "LINK": LINK, "TOKEN": TOKEN, "EPOCH": EPOCH, "ENVELOPE": ENVELOPE, "RECEIPT": RECEIPT, "FROM_9": FROM_9,
    "COOKIE_TO_10": make_cookie(SECRET, Stream(USER, DEVICE, EPOCH, Destination(1, 10)), ((10, 101, 5),)),
    "zeros": bytes,
}  # fmt: skip


def vectors(fence: str) -> list[Any]:
    """(what is sent, the answer) of each line of the fences with this name."""
    blocks = re.findall(rf"^```wire-{fence}\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines, f"the page has no wire-{fence}"
    found = []
    for line in lines:
        sent, answer, why = re.fullmatch(r"(.+?) {2,}(.+?): (.+)", line).groups()  # type: ignore[union-attr]
        assert why
        found.append(pytest.param(sent, answer, id=f"{fence}: {why}"))
    return found


def evaluated(text: str, **names: Any) -> Any:
    text = re.sub(r"h'([0-9a-f]*)'", lambda found: repr(bytes.fromhex(found[1])), text)
    text = re.sub(r"\b(true|false|null)\b", lambda found: {"null": "None"}.get(found[1], found[1].capitalize()), text)
    return eval(text, NAMES | names)  # the page is ours


def frames_of(text: str) -> list[bytes]:
    """The bytes of each frame of a line."""
    repeated = re.fullmatch(r"(.*) for n = (\d+) to (\d+)", text)
    if repeated:
        numbers = range(int(repeated[2]), int(repeated[3]) + 1)
        return [encode(evaluated(repeated[1], n=number)) for number in numbers]
    values = [evaluated(frame) for frame in re.split(r"(?<=\]) (?=\[)", text)]
    return [value if isinstance(value, bytes) else encode(value) for value in values]


# ---------------------------------------------------------------- to a connector


class Mesh:
    """A connector with the limits of the page, one transfer, and the client of the page."""

    def __init__(self) -> None:
        limits = topology.default().limits
        window = WindowOptions(limits.client_window, 1_024, 64, limits.frame_bytes, 2.5)
        self.connector = Connector(
            clients=LinkOptions(window, heartbeat_s=10.0, silence_s=25.0),
            body_bytes=limits.body_bytes, frame_bytes=limits.frame_bytes, session_rate=float(limits.session_rate),
        )  # fmt: skip
        self.transfer = self.connector.transfer()
        self.client = self.connector.clients[b"page"] = Client(self.connector, b"page", DEVICE)

    def send(self, frames: list[bytes]) -> list[Frame]:
        """Send all at once, and let the stores answer; returns what came."""
        self.client.frames.clear()
        self.client.send_bytes(*frames)
        account = Account(USER, (DEVICE,), (FRIEND,), 0.0)
        for check in self.connector.take(e.CheckGreet):
            known = (Login(USER, DEVICE, EPOCH, 1e12), account) if check.token == TOKEN else Code.BAD_TOKEN
            self.connector.receive(_verdict(check, hash_token(check.token), known, 1_000))
        for write in self.connector.take(e.WriteBindings):
            self.connector.receive(e.BindingsWritten([(each.binding, None) for each in write.renewals]))
        if self.connector.take(e.ReadAccounts):
            self.connector.receive(e.AccountsRead([account]))
        return self.client.frames

    def go_online(self) -> "Mesh":
        (welcome,) = self.send([DECODED[wire.Greet]])
        assert isinstance(welcome, wire.Welcome)
        self.connector.checked(through=0)
        return self

    def answer(self, frames: list[bytes]) -> list[str]:
        """What the connector does about these frames, in the words of the page, without acknowledgements."""
        answers = []
        for frame in self.send(frames):
            match frame:
                case Close(code=code):
                    answers.append(f"Close {Code(code).name}")
                case Data(items=items):
                    answers += [f"Outcome {OutcomeStatus(each.status).name}, {Code(each.code).name}" for each in items]
                case Ack() | wire.Welcome():
                    pass
                case _:
                    answers.append(type(frame).__name__)
        assert ("page" in str(self.connector.closed_peers)) == any(answer.startswith("Close") for answer in answers)
        return answers


@pytest.mark.parametrize(("sent", "answer"), vectors("refused greeting"))
def test_a_connector_refuses_as_a_first_frame(sent: str, answer: str) -> None:
    assert (Mesh().answer(frames_of(sent)) or ["nothing"]) == [answer]


@pytest.mark.parametrize(("sent", "answer"), vectors("refused client"))
def test_a_connector_refuses_in_a_session(sent: str, answer: str) -> None:
    assert Mesh().go_online().answer(frames_of(sent)) == [answer]


@pytest.mark.parametrize(("sent", "answer"), vectors("refused envelope"))
def test_a_connector_refuses_as_an_envelope(sent: str, answer: str) -> None:
    mesh = Mesh().go_online()
    frame = encode([3, LINK, 1, 0, [[1, evaluated(sent)]]])
    assert (mesh.answer([frame]) or ["nothing"]) == [answer]
    assert not mesh.transfer.take(), "it was routed"


@pytest.mark.parametrize(("sent", "answer"), vectors("accepted client"))
def test_a_connector_accepts(sent: str, answer: str) -> None:
    mesh = Mesh().go_online()
    names = [type(frame).__name__ for frame in mesh.send(frames_of(sent))]
    if mesh.connector.closed_peers:
        names.append("closed")
    for route in mesh.transfer.take():
        assert isinstance(route, Route)
        assert route.envelope in frames_of(sent)[0], "its bytes are not those that were sent"
        assert route.stamp.after == (), "an invented cookie has positions"
        names.append("routed")
    assert (", ".join(names) or "nothing") == answer
    assert mesh.connector.count.cookies_invalid == ("COOKIE" in sent or "h'00'" in sent)


# ---------------------------------------------------------------- to a client


class Device:
    """The core of the client library, greeted or not, whose disk is always done."""

    def __init__(self) -> None:
        identity = ME._replace(user=USER, device=DEVICE, epoch=EPOCH)
        self.core = ClientCore(identity, DEFAULTS, EMPTY, lambda: bytes(16), lambda: 0, 0.0)
        self.now = 0.0
        self.step(c.Connected(LINK, TOKEN))

    def step(self, event: c.Event | None) -> list[c.Action]:
        actions = list(self.core.tick(self.now) if event is None else self.core.receive(event, self.now))
        for action in actions:
            if isinstance(action, c.Persist):
                actions += self.core.receive(c.Persisted(action.serial), self.now)
        return actions

    def take(self, *frames: bytes) -> list[c.Action]:
        """Take in frames, and let a second pass; returns all actions."""
        actions = self.step(c.FramesReceived(frames))
        self.now += 1.0
        return actions + self.step(None)

    def go_online(self) -> "Device":
        self.take(encode([2, 1, LINK, 1, USER, DEVICE, 32, 65536, 262144, 10000, 25000, 2500, 0]))
        return self

    def compose(self, to: int, count: int) -> None:
        for _ in range(count):
            seq, base = self.core.reserve(Destination(1, to))
            self.step(c.Composed((decode_envelope(ENVELOPE(to=[1, to, 0], seq=seq, base=base)),)))


def answer_of(actions: list[c.Action]) -> str:
    """What a client does, in the words of the page."""
    if any(isinstance(action, c.Disconnect) for action in actions):
        return "ends the link"
    sent = [wire.decode_from_client(action.frame) for action in actions if isinstance(action, c.SendFrame)]
    return ", ".join(type(frame).__name__ for frame in sent) or "ignored"


@pytest.mark.parametrize(("sent", "answer"), vectors("refused welcome"))
def test_a_client_refuses_as_the_answer_to_its_greeting(sent: str, answer: str) -> None:
    assert answer_of(Device().take(*frames_of(sent))) == answer


@pytest.mark.parametrize(("sent", "answer"), [*vectors("refused connector"), *vectors("accepted connector")])
def test_a_client_answers(sent: str, answer: str) -> None:
    actions = Device().go_online().take(*frames_of(sent))
    shown = sum(isinstance(action, c.MessagesAvailable) for action in actions)
    if answer == "acknowledged, not shown":
        answer = "Ack"
        assert not shown
    elif "FROM_9]" in sent:
        assert shown == 1
    assert answer_of(actions) == answer


@pytest.mark.parametrize(("sent", "answer"), [*vectors("refused receipt"), *vectors("accepted receipt")])
def test_a_client_reads_receipts(sent: str, answer: str) -> None:
    device = Device().go_online()
    for to in (FRIEND, 8):
        device.compose(to, 5)
    device.take(encode([3, LINK, 1, 0, [[3, [1, to, 0], 1, 5, 1, True, 5] for to in (FRIEND, 8)]]))
    envelope = FROM_9(kind=3, key=0, body=evaluated(sent))
    actions = device.take(encode([3, LINK, 2, 0, [[2, envelope]]]))
    read = {action.seq for action in actions if isinstance(action, c.StatusChanged) and action.state == "read"}
    assert read == set(_numbers(answer))
    assert device.core.inbox.has(decode_envelope(envelope).stream), "the receipt keeps its place"


def _numbers(answer: str) -> Iterator[int]:
    for part in answer.removeprefix("read ").replace("none", "").split(", "):
        first, _, last = part.partition(" to ")
        if first:
            yield from range(int(first), int(last or first) + 1)


def test_the_page_has_vectors_of_every_code_that_bad_frames_are_answered_with() -> None:
    lines = [
        line
        for fence in re.findall(r"^```wire-refused \w+\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
        for line in fence.splitlines()
    ]
    assert len(lines) >= 30
    for code in ("MALFORMED", "VERSION", "NOT_GREETED", "BAD_TOKEN", "IMPERSONATION", "WINDOW_EXCEEDED", "TOO_LARGE"):
        assert any(f"Close {code}:" in line for line in lines), code
    for code in ("NOT_FRIENDS", "NO_SUCH_RECIPIENT", "TOO_LARGE"):
        assert any(f"Outcome REJECTED, {code}:" in line for line in lines), code


# ---------------------------------------------------------------- section 6.1

_WELCOME = [2, 1, LINK, 1, USER, DEVICE, 32, 65536, 262144, 10000, 25000, 2500, 0]
FRAMES: dict[str, list[list[Any]]] = {
    "a frame of another link": [[5, LINK + 1], [8, LINK + 1], [7, LINK + 1, 10], [3, LINK + 1, 9, 9, []]],
    "Welcome": [_WELCOME],
    "Data": [[3, LINK, 1, 0, []]],
    "Ack": [[4, LINK, 0]],
    "Ping": [[5, LINK]],
    "Pong": [[6, LINK]],
    "Stored": [[10, LINK, True], [11, LINK, 1]],
    "Close": [[7, LINK, 10, "full"], [7, 0, 10, "full"], [7, LINK, 10, "full", 2500]],
    "Reset": [[8, LINK]],
    "any other frame": [[3, LINK, 2, 0, []], [4, LINK, 9], [99, LINK]],
}
CELLS = [
    pytest.param(state, cell, frame, id=f"{event} while {state}: {number}")
    for event, *cells in SUBSECTIONS["6.1 States"].rows()
    for name, frames in FRAMES.items()
    if re.match(rf"{name}\b", event)
    for number, frame in enumerate(frames)
    for state, cell in zip(("GREETING", "ONLINE"), cells, strict=True)
]


@pytest.mark.parametrize(("state", "cell", "frame"), CELLS)
def test_the_client_library_follows_the_table_of_states(state: str, cell: str, frame: list[Any]) -> None:
    device = Device() if state == "GREETING" else Device().go_online()
    actions = device.step(c.FramesReceived([encode(frame)]))
    ended = [action.sentence for action in actions if isinstance(action, c.Disconnect)]
    if cell == "":
        assert len(ended) == 1
        assert "broke the protocol" in ended[0]
    elif cell.startswith("→ OFFLINE"):
        assert len(ended) == 1
        assert "broke the protocol" not in ended[0]
    else:
        assert not ended
        assert device.core.state.name == ("ONLINE" if "→ ONLINE" in cell else state)
        assert ("Pong" in answer_of(actions)) == ("Pong" in cell)


def test_the_table_of_states_has_every_frame_of_a_connector() -> None:
    events = " ".join(row[0] for row in SUBSECTIONS["6.1 States"].rows())
    for name in ("Welcome", "Data", "Ack", "Ping", "Pong", "Close", "Reset", "Stored", "Changed"):
        assert re.search(rf"\b{name}\b", events), name
    assert len(CELLS) == 2 * sum(map(len, FRAMES.values()))
