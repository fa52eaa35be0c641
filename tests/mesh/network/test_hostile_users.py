"""H1, H2 and H3 on a mesh: receipts to strangers, invented cookies, frames that no window bounds.

Two well-behaved users talk during every test, as in test_bad_input.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from threading import Event

import pytest

from meshim.client import Client
from meshim.errors import Code
from meshim.protocol.token_bucket import UNNUMBERED_BURST
from tests.mesh.harness.background_chat import Users
from tests.mesh.harness.independent_client import (
    ACK,
    BASE,
    CLOSE,
    DATA,
    PING,
    PONG,
    READ,
    RECEIPT,
    REJECTED,
    RESET,
    SUBMIT,
    TEXT,
    USER,
    WINDOW,
    IndependentClient,
    pack,
)
from tests.mesh.harness.inspection import CounterRise, open_database
from tests.mesh.harness.library_client import client, receive
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread
from tests.mesh.network.test_bad_input import user_id

pytestmark = pytest.mark.usefixtures("chat_in_background")

NOBODY = 1 << 40
"""No user has this id."""
TYPING = 128
SOON_S = 2.0
"""Less than a copy waits for a position (`delivery_timeout_s`)."""


def rows_from(mesh: RealMesh, sender: int) -> int:
    """How many rows are, or were, stored from this user."""
    with closing(open_database(mesh)) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM im_offline WHERE from_user_id = ?", (sender,)).fetchone()
    return int(count)


async def test_h01_a_stranger_learns_and_stores_nothing(
    mesh: RealMesh, mallory: IndependentClient, users: Users
) -> None:
    """alice is connected, trudy is not, and nobody does not exist: every answer is the same."""
    people = [await user_id(mesh, mallory, users.alice), await user_id(mesh, mallory, users.trudy), NOBODY]
    answers: dict[int, list[tuple[int, int, bool, int, bytes, int, str]]] = {user: [] for user in people}

    def on_outcome(to: list[int], first: int, last: int, *rest: object) -> None:
        answers[to[1]] += [(first, *rest)] * (last - first + 1)  # type: ignore[list-item]

    mallory.on_outcome = on_outcome  # type: ignore[method-assign, assignment]

    def attack() -> None:
        for user in people:
            to = (USER, user, 0)
            receipt = pack([READ, 1, mallory.epoch, [USER, mallory.user, 0], [[1, 9]]])
            for kind, body in ((RECEIPT, receipt), (RECEIPT, b"garbage"), (TEXT, b"?"), (BASE, b""), (TYPING, b"")):
                mallory.send_envelope(to, kind, body)
        mallory.until(lambda: all(len(each) >= 4 for each in answers.values()))

    await in_thread(attack)
    assert answers[people[0]] == answers[people[1]] == answers[NOBODY]
    assert {(status, code) for _, status, _, _, _, code, *_ in answers[NOBODY]} == {(REJECTED, Code.NOT_FRIENDS)}
    assert rows_from(mesh, mallory.user) == 0


@dataclass
class Seen:
    """The messages of one sender that an application saw: text, and whether it was stored."""

    texts: list[str]
    stored: int = 0


async def until_live(sender: Client, reader: Client, name: str) -> None:
    """Wait until the reader has got what was stored: a message comes live."""
    while True:
        await sender.send(name, "first")
        (message,) = await receive(reader, 1)
        if not message.stored:
            return


async def test_h02_invented_cookies_of_one_friend_touch_no_message_of_another(mesh: RealMesh, users: Users) -> None:
    """trudy claims that bob has to sync up to a position that never comes; what carol sends to bob stays live."""
    carol_name, bob_name, trudy_name = await mesh.register_users("carol", "bob", "trudy")
    trudy = await in_thread(IndependentClient, mesh.api, trudy_name, PASSWORD)
    bob_id = trudy.users[bob_name]
    positions = pack([[bob_id, 0, (1 << 63) - 1]])
    cookies = [secrets.token_bytes(17) + positions, b"\x01" + bytes(16) + positions]
    over, sent = Event(), Event()

    def attack() -> None:
        trudy.connect()
        with closing(trudy.socket):
            to, number = (USER, bob_id, 0), 0
            while not over.is_set():
                number += 1
                trudy.cookies[to] = cookies[number % len(cookies)]
                trudy.send_envelope(to, BASE, b"", 0)  # waits for room in the window alone
                sent.set()
                time.sleep(0.001)

    async with client(mesh, carol_name) as carol, client(mesh, bob_name) as bob:
        await asyncio.gather(carol.online(), bob.online())
        await until_live(carol, bob, bob_name)
        invalid, rows = CounterRise(mesh, "cookies_invalid"), rows_from(mesh, carol.user_id)
        attacking = asyncio.create_task(in_thread(attack))
        try:
            await in_thread(sent.wait, DEADLINE_S)
            for number in range(60):
                async with asyncio.timeout(SOON_S):
                    await (await carol.send(bob_name, f"number {number}")).wait_delivered()
                await asyncio.sleep(0.05)  # altogether longer than a copy waits for a position
        finally:
            over.set()
            await attacking
        seen = Seen([])
        async with asyncio.timeout(DEADLINE_S):
            async for message in bob.messages():
                await message.done()
                if message.sender == carol_name:
                    seen.texts.append(message.text)
                    seen.stored += message.stored
                if len(seen.texts) == 60:
                    break
        assert seen == Seen([f"number {number}" for number in range(60)], stored=0)
        await invalid.wait(10)
    assert rows_from(mesh, carol.user_id) == rows


# ---------------------------------------------------------------- H3


def base_updates(mallory: IndependentClient, number: int) -> None:
    """Without a look at the window: all are charged."""
    own = (mallory.user, mallory.device, mallory.epoch)
    items = [
        [
            SUBMIT,
            pack([1, bytes(16), *own, (USER, NOBODY, 0), 64 * number + at, 64 * number + at, BASE, 0, 0, b""]),
            b"",
        ]
        for at in range(64)
    ]
    for at in range(64):  # those before the cut may be rejected
        mallory.states[(USER, NOBODY, 0), 64 * number + at] = set()
    mallory.send(DATA, mallory.link, number, 0, items)


def other_links(mallory: IndependentClient, number: int) -> None:
    """Each has an answer, which is read: a connection that has no room for one ends without a Close."""
    if not mallory.frames_of(CLOSE):
        mallory.send(PING, mallory.link + 1)
        mallory.until(lambda: len(mallory.frames_of(RESET)) >= number or mallory.frames_of(CLOSE))


FLOODS: dict[str, tuple[Callable[[IndependentClient, int], None], set[Code]]] = {
    "pings": (lambda each, _: each.send(PING, each.link), {Code.WINDOW_EXCEEDED}),
    "pongs": (lambda each, _: each.send(PONG, each.link), {Code.WINDOW_EXCEEDED}),
    "acknowledgements": (lambda each, _: each.send(ACK, each.link, 0), {Code.WINDOW_EXCEEDED}),
    "other links": (other_links, {Code.WINDOW_EXCEEDED}),
    "duplicates": (lambda each, _: each.send(DATA, each.link, 1, 0, []), {Code.MALFORMED}),
    "early frames": (lambda each, number: each.send(DATA, each.link, number + WINDOW, 0, []), {Code.MALFORMED}),
    "base updates": (base_updates, {Code.WINDOW_EXCEEDED}),
}
FRAMES = 4 * int(UNNUMBERED_BURST)


@pytest.mark.parametrize("transport", ["zeromq", "websocket"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_h03_frames_at_line_rate_are_charged_and_cut(
    mesh: RealMesh, users: Users, flood: str, transport: str
) -> None:
    mallory = await in_thread(IndependentClient, mesh.api, users.mallory, PASSWORD, transport)
    send, codes = FLOODS[flood]

    def attack() -> None:
        mallory.connect()
        try:
            for number in range(1, FRAMES):
                send(mallory, number)
                mallory.until(lambda: not mallory.socket.poll(0))
            mallory.until(lambda: mallory.frames_of(CLOSE))
        finally:
            mallory.abort()

    await in_thread(attack)
    assert {close[2] for close in mallory.frames_of(CLOSE)} == codes
