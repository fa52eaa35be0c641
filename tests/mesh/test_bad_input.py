"""A mesh among hostile clients: each gets a coded error or is cut off, and is counted; who behaves notices nothing.

Two who behave talk with each other during every test here: what they sent has to arrive, once and in order, and no
process may have ended.  (The rules one by one, and how breaking them is answered, are in test_stranger.)
"""

import json
import random
import secrets
from contextlib import closing
from typing import Any

import httpx
import pytest

from meshim import topology as topologies
from meshim.errors import Code
from meshim.runtime import log
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from tests.mesh.hostile import (
    Cast,
    answers,
    bearer,
    closed_with,
    dealer,
    doing,
    ended_token,
    raw,
    watched,
)
from tests.mesh.real_mesh import PASSWORD, RealMesh, until
from tests.mesh.stranger import (
    ACK,
    BASE,
    BUSY,
    CLOSE,
    DATA,
    DEVICE,
    GREET,
    PING,
    PONG,
    READ,
    RECEIPT,
    REJECTED,
    RESET,
    TEXT,
    USER,
    WELCOME,
    WINDOW,
    Stranger,
    pack,
)

pytestmark = pytest.mark.usefixtures("bystanders")

BODY_BYTES, FRAME_BYTES = 65_536, 262_144


# ---------------------------------------------------------------- frames


async def test_whatever_bytes_come_in_whatever_order(mallory: Stranger) -> None:
    """Pieces of valid frames, valid frames with something else in them, and noise; again and again."""
    seeded = random.Random(1)
    bob = 2
    whole = [
        pack([GREET, 1, mallory.token, mallory.epoch, mallory.link, WINDOW, "x"]),
        pack([DATA, mallory.link, 1, 0, [], [[1, bytes(80), [[1, 2, 3]]], [1, bytes(5), []]]]),
        pack([ACK, mallory.link, 0, [1, 2]]),
        pack([PING, mallory.link]),
        pack([CLOSE, mallory.link, 14, "bye"]),
        pack([RESET, mallory.link]),
        pack([2, 1, mallory.link, 1, bob, 1, 32, 1, 1, 1, 1]),
    ]
    frames = [frame[:at] for frame in whole for at in range(1, len(frame), 7)]
    for _ in range(300):
        frame = bytearray(seeded.choice(whole))
        for _ in range(seeded.randint(1, 4)):
            frame[seeded.randrange(len(frame))] = seeded.randrange(256)
        frames.append(bytes(frame))
    frames += [seeded.randbytes(seeded.randint(1, 2_000)) for _ in range(100)]
    frames += [pack([kind, mallory.link]) for kind in (-1, 0, 9, 11, 99, 2**63)] + [pack(["3", 1]), pack({3: 1})]
    seeded.shuffle(frames)

    def attack() -> None:
        for frame in frames:
            mallory.socket.send(frame)
        # Whatever became of the session: a greeting on a connection of its own is welcome.
        mallory.socket.close(100)
        mallory.connect()

    await doing(attack)
    await answers(mallory)


async def test_a_frame_over_the_limit_is_refused_with_numbers(mallory: Stranger) -> None:
    mallory.socket.send(bytes(2 * FRAME_BYTES))
    sentence = await closed_with(mallory, Code.TOO_LARGE)
    assert sentence == f"the frame has {2 * FRAME_BYTES} bytes, {FRAME_BYTES} are allowed"


async def test_a_frame_over_twice_the_limit_is_cut_off(mallory: Stranger) -> None:
    with watched(mallory.socket) as ends:
        mallory.socket.send(bytes(2 * FRAME_BYTES + 1_000))
        await doing(ends)
    assert not mallory.came(CLOSE)


async def test_messages_of_several_parts_are_dropped(mallory: Stranger) -> None:
    mallory.socket.send_multipart([pack([PING, mallory.link]), b"more"])
    mallory.socket.send_multipart([b"", pack([CLOSE, mallory.link, 1, ""])])
    mallory.socket.send_multipart([b"x"] * 500)
    mallory.socket.send(b"")
    await answers(mallory)
    assert len(mallory.came(PONG)) == 1


async def test_a_flood_is_answered_and_disturbs_nobody(mallory: Stranger, cast: Cast) -> None:
    def attack() -> None:
        for _ in range(20_000):
            mallory.send(PING, mallory.link)
        mallory.until(lambda: mallory.came(PONG))
        for _ in range(5_000):
            mallory.socket.send(b"\xc1")
        mallory.until(lambda: len(mallory.came(CLOSE)) > 100)

    await doing(attack)


# ---------------------------------------------------------------- greetings


async def test_data_before_the_greeting_is_not_taken(mesh: RealMesh, mallory: Stranger, cast: Cast) -> None:
    connector = mallory.connectors[0]
    with dealer(connector["endpoint"], connector["key"].encode()) as (speaking, _):
        speaking.send(pack([DATA, 7, 1, 0, [], [[1, b"?", []]]]))
        assert await doing(speaking.recv) == pack([RESET, 7])


async def test_who_does_not_wait_for_the_welcome_is_welcome_all_the_same(mallory: Stranger) -> None:
    mallory.socket.close(0)
    await doing(mallory.connect, wait=False)
    for _ in range(5):
        mallory.send(DATA, mallory.link, 1, 0, [], [])
        mallory.send(PING, mallory.link)
    await doing(mallory.until, lambda: mallory.came(WELCOME))
    await answers(mallory)


async def test_two_greetings_at_once_end_the_connection(mallory: Stranger) -> None:
    mallory.socket.close(0)
    await doing(mallory.connect, wait=False)
    mallory.send(GREET, 1, mallory.token, mallory.epoch, mallory.link, WINDOW)
    await closed_with(mallory, Code.NOT_GREETED)
    mallory.send(PING, mallory.link)
    await doing(mallory.until, lambda: mallory.came(RESET))


async def test_tokens_that_open_nothing(mesh: RealMesh, mallory: Stranger, cast: Cast) -> None:
    """Of another device of hers, for REST alone, made up, taken from the end of its life, and logged out."""
    mallory.socket.close(0)
    password = {"name": cast.mallory, "password": PASSWORD}
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        other = {**password, "device": "other", "epoch": "00000000000000aa"}
        others = (await http.post("/v1/login", json=other)).json()["token"]
        rests = (await http.post("/v1/login", json={**password, "device": None})).json()["token"]
        gone = (await http.post("/v1/login", json={**password, "device": "gone", "epoch": other["epoch"]})).json()
        await http.post("/v1/logout", headers=bearer(raw(gone["token"])))
    ended = await ended_token(mesh, mallory)
    for token in (raw(others), raw(rests), raw(gone["token"]), ended, secrets.token_bytes(32), b""):
        await doing(mallory.connect, token=token, wait=False)
        assert await closed_with(mallory, Code.BAD_TOKEN)
        mallory.socket.close(0)


async def test_a_session_ends_with_its_token(mesh: RealMesh, mallory: Stranger) -> None:
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        assert (await http.post("/v1/logout", headers=bearer(mallory.token))).status_code == 204
    await closed_with(mallory, Code.LOGGED_OUT)
    mallory.socket.close(0)
    await doing(mallory.connect, wait=False)
    await closed_with(mallory, Code.BAD_TOKEN)


async def test_a_device_that_connects_and_connects(mallory: Stranger) -> None:
    """Each connection replaces an earlier one, on whatever connector; in the end one stays."""
    greetings = 30
    sockets = []

    def connect() -> None:
        sockets.append(mallory.socket)
        mallory.connect(wait=False)

    def stays() -> bool:
        """Whether this connection is answered; one whose greeting took longer may be numbered later, and replace it."""
        mallory.until(lambda: mallory.welcome or mallory.came(CLOSE))
        mallory.send(PING, mallory.link)
        mallory.until(lambda: mallory.came(PONG) or mallory.came(CLOSE))
        assert all(close[2] == Code.REPLACED for close in mallory.came(CLOSE))
        return not mallory.came(CLOSE)

    def attack() -> None:
        for _ in range(greetings):
            connect()
        replaced = 0
        while not stays():
            replaced += 1
            assert replaced <= greetings, "more often than there were greetings to come later"
            connect()

    try:
        await doing(attack)
    finally:
        for each in sockets:
            each.close(0)


# ---------------------------------------------------------------- envelopes


async def test_messages_to_strangers_are_rejected(mesh: RealMesh, mallory: Stranger, cast: Cast) -> None:
    """Of a flood only so many: the others are told to come again, since whether they are friends is being read."""
    bob = await user_id(mesh, mallory, cast.bob)
    told = outcomes_of(mallory)

    def attack() -> None:
        for _ in range(400):
            mallory.make((USER, bob, 0), TEXT, b"?")
        mallory.until(lambda: len(told) == 400)

    await doing(attack)
    assert {(status, code) for _, status, code, _ in told} <= {(REJECTED, Code.NOT_FRIENDS), (BUSY, Code.BUSY)}
    assert (1, REJECTED, Code.NOT_FRIENDS, "sender and recipient are not friends") in told


def outcomes_of(stranger: Stranger) -> list[tuple[int, int, int, str]]:
    """From now on: (first, how, code, sentence) of all that come."""
    told: list[tuple[int, int, int, str]] = []

    def outcome(*fields: Any) -> None:
        first, status, code, sentence = fields[5], fields[7], fields[11], fields[12]
        told.append((first, status, code, sentence))

    stranger.outcome = outcome  # type: ignore[method-assign, assignment]
    return told


async def user_id(mesh: RealMesh, client: Stranger, name: str) -> int:
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        answer = await http.get(f"/v1/users/{name}", headers=bearer(client.token))
    return int(answer.json()["user_id"])


async def test_a_body_over_the_limit_is_refused_with_numbers(mallory: Stranger) -> None:
    told = outcomes_of(mallory)
    mallory.make((USER, 1 << 40, 0), TEXT, bytes(BODY_BYTES + 1))
    await doing(mallory.until, lambda: told)
    sentence = f"the body has {BODY_BYTES + 1} bytes, {BODY_BYTES} are allowed"
    assert told == [(1, REJECTED, Code.TOO_LARGE, sentence)]
    await answers(mallory)


@pytest.mark.parametrize("field", ["user", "device", "epoch"])
async def test_an_envelope_that_claims_to_be_of_another(mallory: Stranger, field: str) -> None:
    who = {"user": mallory.user, "device": mallory.device, "epoch": mallory.epoch}
    who[field] ^= 1
    made = pack([1, bytes(16), *who.values(), (USER, 1, 0), 1, 1, TEXT, 0, 0, b"?"])
    mallory.submit(made, (USER, 1, 0))
    await closed_with(mallory, Code.IMPERSONATION)


async def test_an_envelope_stuffed_beside_its_body(mallory: Stranger) -> None:
    own = (mallory.user, mallory.device, mallory.epoch)
    made = pack([1, bytes(16), *own, (USER, 1, 0), 1, 1, TEXT, 0, 0, b"?", bytes(100_000)])
    mallory.submit(made, (USER, 1, 0))
    await closed_with(mallory, Code.MALFORMED)


async def test_receipts_that_mean_harm(mesh: RealMesh, mallory: Stranger, cast: Cast) -> None:
    """Receipts need no friendship: they say nothing of messages that one did not get."""
    alice = await user_id(mesh, mallory, cast.alice)
    everything = pack([READ, 0, [USER, alice, 0], [[1, 1 << 62]] * 1_000])

    def attack() -> None:
        keys = [mallory.make((DEVICE, alice, device), RECEIPT, b"garbage") for device in range(1, 30)]
        keys += [mallory.make((DEVICE, alice, device), RECEIPT, everything[:4_000]) for device in range(1, 30)]
        short = pack([READ, 0, [USER, alice, 0], [[1, 1 << 62]] * 100])
        keys += [mallory.make((DEVICE, alice, device), RECEIPT, short) for device in range(1, 30)]
        keys.append(mallory.make((DEVICE, alice, 1), RECEIPT, everything))
        mallory.until(lambda: all(mallory.states[key] for key in keys))
        assert mallory.codes == {keys[-1]: Code.TOO_LARGE}

    await doing(attack)


async def test_a_friend_who_sends_what_cannot_be_read(mesh: RealMesh, mallory: Stranger, cast: Cast) -> None:
    """It costs bob neither the messages of others nor the ones that she sends properly."""
    trudy = await doing(Stranger, mesh.api, cast.trudy, PASSWORD)
    bob = trudy.users[cast.bob]
    own = (trudy.user, trudy.device, trudy.epoch)

    def attack() -> None:
        trudy.connect()
        with closing(trudy.socket):
            to = (USER, bob, 0)
            keys = [trudy.make(to, kind, b"garbage", 0) for kind in (TEXT, BASE, 77, 127)]
            jump = pack([1, bytes(16), *own, to, 1 << 62, 1 << 62, TEXT, 9, 0, b"?"])
            trudy.states[to, 1 << 62] = set()
            trudy.submit(jump, to)
            keys.append((to, 1 << 62))
            trudy.until(lambda: all("sent" in trudy.states[key] for key in keys))
            # Held back for a position that will never come, then stored, then read.
            trudy.after[to] = {(bob, 0): 1 << 60}
            late = trudy.make(to, TEXT, b"garbage", 0)
            trudy.until(lambda: "sent" in trudy.states[late])

    await doing(attack)


# ---------------------------------------------------------------- the log


async def test_a_record_that_nobody_can_read_becomes_a_dead_letter(mesh: RealMesh) -> None:
    """Found through the data folder, as nobody else knows where embedded backends are."""
    dead_lettered = mesh.counted("dead_lettered")
    topology = topologies.load(mesh.data.topology)
    nats = await NatsClient.connect(topology.backends.nats, log.get("test", "poison"))
    try:
        await JetStreamOfflineLog(nats, topology.namespace).publish(0, b"\xc1 not a record")
    finally:
        await nats.close()
    await until(lambda: mesh.counted("dead_lettered") > dead_lettered, "it is not dead-lettered")
    data = ("--data", str(mesh.data.root))
    (letter,) = json.loads(mesh.meshim("deadletter", "list", "--json", *data).stdout)["letters"]
    assert letter["reason"].startswith("The record does not decode")
    assert mesh.meshim("deadletter", "drop", str(letter["number"]), "--yes", *data).returncode == 0
    assert mesh.meshim("deadletter", "list", *data).stdout == "There are no dead letters.\n"
