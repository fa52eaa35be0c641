"""A client written from docs/protocol.md alone talks with the client library, and breaks every rule once."""

import asyncio
import secrets
from collections.abc import Awaitable, Iterator
from contextlib import closing
from typing import TypeVar

import pytest

from meshim.client import Client
from meshim.errors import Code
from tests.mesh.harness.independent_client import (
    ACK,
    CLOSE,
    DATA,
    GREET,
    PING,
    PONG,
    READ,
    RESET,
    STORED,
    WINDOW,
    IndependentClient,
    pack,
)
from tests.mesh.harness.real_mesh import PASSWORD, RealMesh, in_thread

T = TypeVar("T")


class Pair:
    """alice uses the independent client, bob the library."""

    def __init__(self, mesh: RealMesh, alice: str, bob: str) -> None:
        self.mesh = mesh
        self.names = (alice, bob)
        self.alice = IndependentClient(mesh.api, alice, PASSWORD)
        self.bob_id = self.alice.users[bob]

    def bob(self) -> Client:
        name = self.names[1]
        return Client(self.mesh.api, name, PASSWORD, device="library", state=self.mesh.folder / f"{name}.db")


async def while_reading(alice: IndependentClient, work: Awaitable[T]) -> T:
    """Return what `work` does, while alice reads and acknowledges.

    An outcome may be lost, as while a connector has no link to a transfer yet.  A resend by the client of bob heals it,
    and alice has to acknowledge that resend.
    """
    task = asyncio.ensure_future(work)
    await in_thread(alice.until, task.done)
    return await task


@pytest.fixture
async def pair(mesh: RealMesh) -> Pair:
    pair = Pair(mesh, *await mesh.register_users("alice", "bob"))
    async with pair.bob() as bob:  # so that the mesh knows the device of bob
        await bob.online()
    return pair


async def test_both_clients_exchange_messages_and_every_receipt(pair: Pair) -> None:
    alice = pair.alice
    async with pair.bob() as bob:
        await bob.online()
        await in_thread(alice.connect)
        keys = [await in_thread(alice.send_text, pair.bob_id, f"message {number}") for number in range(3)]
        messages = bob.messages()
        for number in range(3):
            message = await anext(messages)
            assert (message.sender, message.text) == (pair.names[0], f"message {number}")
            await message.mark_read()
        await in_thread(alice.until, lambda: all(alice.states[key] == {"sent", "delivered", "read"} for key in keys))
        answer = await bob.send(pair.names[0], "I have read it")
        await in_thread(alice.until, lambda: alice.shown)
        assert alice.shown == [(pair.bob_id, "I have read it", False)]
        await while_reading(alice, answer.wait_delivered())
        (stream,) = alice.watermark
        user, device, epoch, *to = stream
        await in_thread(alice.send_receipt, READ, user, device, epoch, to, answer.seq)
        await while_reading(alice, answer.wait_read())
    alice.disconnect()


async def test_a_recipient_who_was_away_gets_stored_messages_first_and_in_order(pair: Pair) -> None:
    alice = pair.alice
    await in_thread(alice.connect)
    stored = [await in_thread(alice.send_text, pair.bob_id, f"stored {number}") for number in range(3)]
    await in_thread(alice.until, lambda: all(alice.states[key] == {"sent"} for key in stored))
    assert alice.cookies[1, pair.bob_id, 0]
    async with pair.bob() as bob:
        await bob.online()
        live = await in_thread(alice.send_text, pair.bob_id, "live")
        messages = bob.messages()
        assert [(await anext(messages)).text for _ in range(4)] == ["stored 0", "stored 1", "stored 2", "live"]
        await in_thread(alice.until, lambda: all(alice.states[key] == {"sent", "delivered"} for key in [*stored, live]))
    alice.disconnect()


async def test_the_independent_client_gets_stored_messages_and_sends_receipts(pair: Pair) -> None:
    alice = pair.alice
    await in_thread(alice.connect)
    alice.disconnect()
    async with pair.bob() as bob:
        outgoing = [await bob.send(pair.names[0], f"stored {number}") for number in range(3)]
        for each in outgoing:
            await each.wait_sent()
        await in_thread(alice.connect)
        await in_thread(alice.until, lambda: len(alice.shown) == 3)
        assert alice.shown == [(pair.bob_id, f"stored {number}", True) for number in range(3)]
        await in_thread(alice.until, lambda: not alice.pending)
        for each in outgoing:
            await while_reading(alice, each.wait_delivered())
    await in_thread(alice.until, lambda: [frame[2] for frame in alice.frames_of(STORED)] == [False])
    alice.disconnect()


async def test_a_resent_envelope_is_answered_again_and_shown_once(pair: Pair) -> None:
    alice = pair.alice
    async with pair.bob() as bob:
        await bob.online()
        await in_thread(alice.connect)
        key = await in_thread(alice.send_text, pair.bob_id, "once")
        envelope = alice.pending[key]
        await in_thread(alice.until, lambda: "delivered" in alice.states[key])
        alice.states[key].clear()
        await in_thread(alice.submit, envelope, key[0])
        await in_thread(alice.until, lambda: alice.states[key] == {"sent", "delivered"})
        last = await in_thread(alice.send_text, pair.bob_id, "and the next")
        messages = bob.messages()
        assert [(await anext(messages)).text for _ in range(2)] == ["once", "and the next"]
        await in_thread(alice.until, lambda: "delivered" in alice.states[last])
    alice.disconnect()


# ---------------------------------------------------------------- broken rules


@pytest.fixture(scope="module")
def names(mesh: RealMesh) -> tuple[str, ...]:
    return asyncio.run(mesh.register_users("alice", "bob"))


@pytest.fixture
def unconnected(mesh: RealMesh, names: tuple[str, ...]) -> IndependentClient:
    """The device of alice with a new epoch, so that no state of the test before is left."""
    return IndependentClient(mesh.api, names[0], PASSWORD)


@pytest.fixture
def alice(unconnected: IndependentClient) -> Iterator[IndependentClient]:
    alice = unconnected
    alice.connect()
    with closing(alice.socket):
        yield alice


def expect_close(alice: IndependentClient, code: Code) -> None:
    alice.until(lambda: alice.frames_of(CLOSE))
    (close,) = alice.frames_of(CLOSE)
    assert close[2] == code
    assert close[3]


@pytest.mark.parametrize(
    ("destination", "code"),
    [
        pytest.param((1, 2**52, 0), Code.NOT_FRIENDS, id="unknown user"),
        pytest.param((7, 1, 0), Code.NO_SUCH_RECIPIENT, id="unknown destination type"),
        pytest.param((2, 1, 0), Code.NO_SUCH_RECIPIENT, id="device without a number"),
        pytest.param((1, 1, 1), Code.NO_SUCH_RECIPIENT, id="user with a device number"),
    ],
)
def test_a_message_to_an_invalid_destination_is_rejected(
    alice: IndependentClient, destination: tuple[int, ...], code: Code
) -> None:
    key = alice.send_envelope(destination, 1, b"?")
    alice.until(lambda: alice.states[key])
    assert (alice.states[key], alice.codes[key]) == ({"rejected"}, code)


def test_a_message_to_oneself_or_too_large_is_rejected(alice: IndependentClient, names: tuple[str, ...]) -> None:
    own = alice.send_envelope((1, alice.user, 0), 1, b"?")
    large = alice.send_envelope((1, alice.users[names[1]], 0), 1, bytes(alice.welcome[7] + 1))
    alice.until(lambda: alice.states[own] and alice.states[large])
    assert (alice.codes[own], alice.codes[large]) == (Code.NO_SUCH_RECIPIENT, Code.TOO_LARGE)


@pytest.mark.parametrize(
    "frame",
    [b"\xc1", b"garbage", b"\x90", pack([99, 1]), pack([5, -1]), b"\x94\x07\x01\x01\xa2\xff\xfe", b"\x91" * 10_000],
)
def test_an_undecodable_frame_ends_the_link(alice: IndependentClient, frame: bytes) -> None:
    alice.socket.send(frame)
    expect_close(alice, Code.MALFORMED)


def test_acknowledging_a_frame_that_was_never_sent_ends_the_link(alice: IndependentClient) -> None:
    alice.send(ACK, alice.link, 7, [])
    expect_close(alice, Code.MALFORMED)


def test_an_envelope_in_the_name_of_another_user_ends_the_link(
    alice: IndependentClient, names: tuple[str, ...]
) -> None:
    bob = alice.users[names[1]]
    alice.send_envelope((1, bob, 0), 1, b"?", user=bob)
    expect_close(alice, Code.IMPERSONATION)


def test_a_second_greeting_ends_the_link(alice: IndependentClient) -> None:
    alice.send(GREET, 1, alice.token, alice.epoch, alice.link, WINDOW)
    expect_close(alice, Code.NOT_GREETED)


def test_frames_beyond_the_window_end_the_link(alice: IndependentClient) -> None:
    """More empty frames than the window, written at once: the connector acknowledges none of them in between."""
    for number in range(1, 20 * alice.welcome[6]):
        alice.send(DATA, alice.link, number, 0, [])
    expect_close(alice, Code.WINDOW_EXCEEDED)


@pytest.mark.parametrize("number", [1, 3])
def test_a_frame_that_is_not_the_next_ends_the_link(alice: IndependentClient, number: int) -> None:
    alice.send(DATA, alice.link, 1, 0, [])
    alice.until(lambda: alice.frames_of(ACK))
    assert alice.frames_of(ACK)[-1][2:] == [1]
    alice.send(DATA, alice.link, number, 0, [])
    expect_close(alice, Code.MALFORMED)


def test_a_ping_is_answered_and_an_unknown_link_reset(alice: IndependentClient) -> None:
    alice.send(PING, alice.link)
    alice.until(lambda: alice.frames_of(PONG))
    other = secrets.randbits(53)
    alice.send(PING, other)
    alice.until(lambda: alice.frames_of(RESET))
    assert alice.frames_of(RESET) == [[RESET, other]]


def test_wrong_tokens_and_unknown_versions_are_refused(unconnected: IndependentClient) -> None:
    alice = unconnected
    for token in (b"", bytes(32), bytes(33)):
        alice.connect(token=token, wait=False)
        expect_close(alice, Code.BAD_TOKEN)
        alice.socket.close(0)
    alice.connect(wait=False, version=2)
    expect_close(alice, Code.VERSION)
    alice.socket.close(0)
    alice.epoch ^= 1
    alice.connect(wait=False)
    expect_close(alice, Code.BAD_TOKEN)
    alice.socket.close(0)


def test_a_later_connection_of_the_device_takes_over(alice: IndependentClient) -> None:
    first, link, frames = alice.socket, alice.link, alice.frames
    with closing(first):
        alice.connect()
        second, alice.socket, alice.link, alice.frames = alice.socket, first, link, frames
        with closing(second):
            expect_close(alice, Code.REPLACED)


async def test_an_unacknowledged_frame_ends_the_link(pair: Pair) -> None:
    alice = pair.alice
    await in_thread(alice.connect)
    alice.acknowledges = False
    async with pair.bob() as bob:
        outgoing = await bob.send(pair.names[0], "not acknowledged")
        await in_thread(alice.until, lambda: alice.frames_of(DATA))
        await in_thread(expect_close, alice, Code.UNRESPONSIVE)
        alice.socket.close(0)
        await outgoing.wait_sent()  # it was stored
        assert outgoing.state == "sent"
        await in_thread(alice.connect)
        await in_thread(alice.until, lambda: alice.duplicates)
        assert [text for _, text, _ in alice.shown] == ["not acknowledged"]
    alice.disconnect()
