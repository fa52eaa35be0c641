"""Somebody who has read docs/protocol.md and nothing else talks with the client library, and breaks every rule once."""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from meshim.client import Client
from meshim.errors import Code
from tests.mesh.real_mesh import PASSWORD, RealMesh
from tests.mesh.stranger import ACK, CLOSE, DATA, GREET, PING, PONG, READ, RESET, STORED, WINDOW, Stranger, pack


class Pair:
    """alice uses the stranger's client, bob the library."""

    def __init__(self, mesh: RealMesh, alice: str, bob: str) -> None:
        self.mesh = mesh
        self.names = (alice, bob)
        self.alice = Stranger(mesh.api, alice, PASSWORD)
        self.bob_id = self.alice.users[bob]

    def bob(self) -> Client:
        name = self.names[1]
        return Client(self.mesh.api, name, PASSWORD, device="library", state=self.mesh.folder / f"{name}.db")


@pytest.fixture
async def pair(mesh: RealMesh) -> Pair:
    pair = Pair(mesh, *await mesh.people("alice", "bob"))
    async with pair.bob() as bob:  # so that his device is known
        await bob.online()
    return pair


async def doing(work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(work, *arguments)


async def test_they_talk_and_every_receipt_comes(pair: Pair) -> None:
    alice = pair.alice
    async with pair.bob() as bob:
        await bob.online()
        await doing(alice.connect)
        keys = [await doing(alice.text, pair.bob_id, f"message {number}") for number in range(3)]
        messages = bob.messages()
        for number in range(3):
            message = await anext(messages)
            assert (message.sender, message.text) == (pair.names[0], f"message {number}")
            await message.mark_read()
        await doing(alice.until, lambda: all(alice.states[key] == {"sent", "delivered", "read"} for key in keys))
        answer = await bob.send(pair.names[0], "I have read it")
        await doing(alice.until, lambda: alice.shown)
        assert alice.shown == [(pair.bob_id, "I have read it", False)]
        await answer.wait_delivered()
        (stream,) = alice.watermark
        user, device, epoch, *to = stream
        await doing(alice.receipt, READ, user, device, epoch, to, 1)
        await answer.wait_read()
    alice.disconnect()


async def test_who_is_away_gets_it_later_and_in_order(pair: Pair) -> None:
    alice = pair.alice
    await doing(alice.connect)
    stored = [await doing(alice.text, pair.bob_id, f"stored {number}") for number in range(3)]
    await doing(alice.until, lambda: all(alice.states[key] == {"sent"} for key in stored))
    assert max(alice.after[1, pair.bob_id, 0].values()) > 0
    async with pair.bob() as bob:
        await bob.online()
        live = await doing(alice.text, pair.bob_id, "live")
        messages = bob.messages()
        assert [(await anext(messages)).text for _ in range(4)] == ["stored 0", "stored 1", "stored 2", "live"]
        await doing(alice.until, lambda: all(alice.states[key] == {"sent", "delivered"} for key in [*stored, live]))
    alice.disconnect()


async def test_what_was_stored_for_the_stranger_comes_first_and_is_receipted(pair: Pair) -> None:
    alice = pair.alice
    await doing(alice.connect)
    alice.disconnect()
    async with pair.bob() as bob:
        outgoing = [await bob.send(pair.names[0], f"stored {number}") for number in range(3)]
        for each in outgoing:
            await each.wait_sent()
        await doing(alice.connect)
        await doing(alice.until, lambda: len(alice.shown) == 3)
        assert alice.shown == [(pair.bob_id, f"stored {number}", True) for number in range(3)]
        await doing(alice.until, lambda: not alice.pending)
        for each in outgoing:
            await each.wait_delivered()
    await doing(alice.until, lambda: [frame[2] for frame in alice.came(STORED)] == [False])
    alice.disconnect()


async def test_the_same_bytes_again_are_answered_again_and_shown_once(pair: Pair) -> None:
    alice = pair.alice
    async with pair.bob() as bob:
        await bob.online()
        await doing(alice.connect)
        key = await doing(alice.text, pair.bob_id, "once")
        envelope = alice.pending[key]
        await doing(alice.until, lambda: "delivered" in alice.states[key])
        alice.states[key].clear()
        await doing(alice.submit, envelope, key[0])
        await doing(alice.until, lambda: alice.states[key] == {"sent", "delivered"})
        last = await doing(alice.text, pair.bob_id, "and the next")
        messages = bob.messages()
        assert [(await anext(messages)).text for _ in range(2)] == ["once", "and the next"]
        await doing(alice.until, lambda: "delivered" in alice.states[last])
    alice.disconnect()


# ---------------------------------------------------------------- rules that were broken


@pytest.fixture(scope="module")
def names(mesh: RealMesh) -> tuple[str, ...]:
    return asyncio.run(mesh.people("alice", "bob"))


@pytest.fixture
def unconnected(mesh: RealMesh, names: tuple[str, ...]) -> Stranger:
    """Her device again with a new epoch, so that nothing is left of the test before."""
    return Stranger(mesh.api, names[0], PASSWORD)


@pytest.fixture
def alice(unconnected: Stranger) -> Iterator[Stranger]:
    alice = unconnected
    alice.connect()
    with closing(alice.socket):
        yield alice


def closed_with(alice: Stranger, code: Code) -> None:
    alice.until(lambda: alice.came(CLOSE))
    (close,) = alice.came(CLOSE)
    assert close[2] == code
    assert close[3]


@pytest.mark.parametrize(
    ("destination", "code"),
    [
        pytest.param((1, 2**62, 0), Code.NOT_FRIENDS, id="nobody one knows"),
        pytest.param((7, 1, 0), Code.NO_SUCH_RECIPIENT, id="a type that is not spoken"),
        pytest.param((2, 1, 0), Code.NO_SUCH_RECIPIENT, id="a device without its number"),
        pytest.param((1, 1, 1), Code.NO_SUCH_RECIPIENT, id="a user with one"),
    ],
)
def test_messages_that_may_not_pass_are_rejected(alice: Stranger, destination: tuple[int, ...], code: Code) -> None:
    key = alice.make(destination, 1, b"?")
    alice.until(lambda: alice.states[key])
    assert (alice.states[key], alice.codes[key]) == ({"rejected"}, code)


def test_a_message_to_oneself_or_too_large_is_rejected(alice: Stranger, names: tuple[str, ...]) -> None:
    own = alice.make((1, alice.user, 0), 1, b"?")
    large = alice.make((1, alice.users[names[1]], 0), 1, bytes(alice.welcome[7] + 1))
    alice.until(lambda: alice.states[own] and alice.states[large])
    assert (alice.codes[own], alice.codes[large]) == (Code.NO_SUCH_RECIPIENT, Code.TOO_LARGE)


@pytest.mark.parametrize(
    "frame",
    [b"\xc1", b"garbage", b"\x90", pack([99, 1]), pack([5, -1]), b"\x94\x07\x01\x01\xa2\xff\xfe", b"\x91" * 10_000],
)
def test_what_cannot_be_read_ends_the_link(alice: Stranger, frame: bytes) -> None:
    alice.socket.send(frame)
    closed_with(alice, Code.MALFORMED)


def test_acknowledging_what_was_never_sent_ends_the_link(alice: Stranger) -> None:
    alice.send(ACK, alice.link, 7, [])
    closed_with(alice, Code.MALFORMED)


def test_an_envelope_of_somebody_else_ends_the_link(alice: Stranger, names: tuple[str, ...]) -> None:
    bob = alice.users[names[1]]
    alice.make((1, bob, 0), 1, b"?", user=bob)
    closed_with(alice, Code.IMPERSONATION)


def test_a_second_greeting_ends_the_link(alice: Stranger) -> None:
    alice.send(GREET, 1, alice.token, alice.epoch, alice.link, WINDOW)
    closed_with(alice, Code.NOT_GREETED)


def test_frames_beyond_the_window_end_the_link(alice: Stranger) -> None:
    alice.send(DATA, alice.link, 2 * alice.welcome[6] + 2, 0, [], [])
    closed_with(alice, Code.WINDOW_EXCEEDED)


def test_an_early_frame_is_kept_and_a_duplicate_acknowledged_again(alice: Stranger) -> None:
    alice.send(DATA, alice.link, 2, 0, [], [])
    alice.until(lambda: alice.came(ACK))
    assert alice.came(ACK)[-1][2:] == [0, [2]]
    alice.send(DATA, alice.link, 1, 0, [], [])
    alice.until(lambda: alice.came(ACK)[-1][2:] == [2, []])
    before = len(alice.came(ACK))
    alice.send(DATA, alice.link, 1, 0, [], [])
    alice.until(lambda: len(alice.came(ACK)) > before)
    assert alice.came(ACK)[-1][2:] == [2, []]


def test_a_ping_is_answered_and_a_link_that_nobody_knows_reset(alice: Stranger) -> None:
    alice.send(PING, alice.link)
    alice.until(lambda: alice.came(PONG))
    other = secrets.randbits(64)
    alice.send(PING, other)
    alice.until(lambda: alice.came(RESET))
    assert alice.came(RESET) == [[RESET, other]]


def test_tokens_that_are_wrong_and_versions_that_are_not_swake_upn(unconnected: Stranger) -> None:
    alice = unconnected
    for token in (b"", bytes(32), bytes(33)):
        alice.connect(token=token, wait=False)
        closed_with(alice, Code.BAD_TOKEN)
        alice.socket.close(0)
    alice.connect(wait=False, version=2)
    closed_with(alice, Code.VERSION)
    alice.socket.close(0)
    alice.epoch ^= 1
    alice.connect(wait=False)
    closed_with(alice, Code.BAD_TOKEN)
    alice.socket.close(0)


def test_a_later_connection_of_the_device_takes_over(alice: Stranger) -> None:
    first, link, frames = alice.socket, alice.link, alice.frames
    with closing(first):
        alice.connect()
        second, alice.socket, alice.link, alice.frames = alice.socket, first, link, frames
        with closing(second):
            closed_with(alice, Code.REPLACED)


async def test_what_is_not_acknowledged_comes_again_and_then_the_link_ends(pair: Pair) -> None:
    alice = pair.alice
    await doing(alice.connect)
    alice.acknowledges = False
    async with pair.bob() as bob:
        outgoing = await bob.send(pair.names[0], "nobody takes me")
        await doing(alice.until, lambda: len(alice.came(DATA)) == 2)
        first, second = alice.came(DATA)
        assert (first[2], first[5]) == (second[2], second[5])
        await doing(closed_with, alice, Code.UNRESPONSIVE)
        alice.socket.close(0)
        await outgoing.wait_sent()  # it was stored
        assert outgoing.state == "sent"
        await doing(alice.connect)
        await doing(alice.until, lambda: alice.duplicates)
        assert [text for _, text, _ in alice.shown] == ["nobody takes me"]
    alice.disconnect()
