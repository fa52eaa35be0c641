"""Hostile clients on a mesh: each gets a coded error or is cut off, and is counted; other clients notice nothing.

Two well-behaved users talk during every test: what they send has to arrive once and in order, and no process may end.
(The single rules of the protocol, and the answer to breaking each, are in test_independent_client.)
"""

import json
import random
import secrets
import time
from contextlib import closing
from typing import Any

import httpx
import pytest

from meshim import topology as topologies
from meshim.errors import Code
from meshim.runtime import log
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.wire.bounds import SEQ_MAX
from tests.mesh.harness.background_chat import Users
from tests.mesh.harness.independent_client import (
    ACK,
    BASE,
    BUSY,
    CLOSE,
    DATA,
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
    IndependentClient,
    pack,
)
from tests.mesh.harness.inspection import CounterRise
from tests.mesh.harness.library_client import client
from tests.mesh.harness.raw_sockets import (
    bearer_header,
    dealer,
    expect_alive,
    expect_close,
    expired_token,
    monitored,
    token_bytes,
)
from tests.mesh.harness.real_mesh import PASSWORD, RealMesh, in_thread, until

pytestmark = pytest.mark.usefixtures("chat_in_background")

BODY_BYTES, FRAME_BYTES = 65_536, 262_144
SOON_S = 2.0
"""Less than a copy waits for a position (`delivery_timeout_s`)."""
UNUSED = 1 << 40
"""No device has this id, or a larger one."""


# ---------------------------------------------------------------- frames


async def test_any_bytes_in_any_order_leave_the_client_able_to_connect(mallory: IndependentClient) -> None:
    """Truncated frames, valid frames with random bytes in them, and random bytes, 800 in all."""
    seeded = random.Random(1)
    bob = 2
    whole = [
        pack([GREET, 1, mallory.token, mallory.epoch, mallory.link, WINDOW, "x"]),
        pack([DATA, mallory.link, 1, 0, [[1, bytes(80), bytes(60)], [1, bytes(5), b""]]]),
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
        # Whether or not the session lives: a greeting on a new connection is welcome.
        mallory.socket.close(100)
        mallory.connect()

    await in_thread(attack)
    await expect_alive(mallory)


async def test_a_frame_over_the_limit_is_refused_with_numbers(mallory: IndependentClient) -> None:
    mallory.socket.send(bytes(2 * FRAME_BYTES))
    sentence = await expect_close(mallory, Code.TOO_LARGE)
    assert sentence == f"the frame has {2 * FRAME_BYTES} bytes, {FRAME_BYTES} are allowed"


async def test_a_frame_over_twice_the_limit_is_cut_off(mallory: IndependentClient) -> None:
    with monitored(mallory.socket) as wait_ended:
        mallory.socket.send(bytes(2 * FRAME_BYTES + 1_000))
        await in_thread(wait_ended)
    assert not mallory.frames_of(CLOSE)


async def test_messages_of_several_parts_are_dropped(mallory: IndependentClient) -> None:
    mallory.socket.send_multipart([pack([PING, mallory.link]), b"more"])
    mallory.socket.send_multipart([b"", pack([CLOSE, mallory.link, 1, ""])])
    mallory.socket.send_multipart([b"x"] * 500)
    mallory.socket.send(b"")
    await expect_alive(mallory)
    assert len(mallory.frames_of(PONG)) == 1


async def test_a_flood_of_pings_is_cut_and_other_clients_notice_nothing(
    mesh: RealMesh, mallory: IndependentClient
) -> None:
    cut = CounterRise(mesh, "cut")

    def attack() -> None:
        for _ in range(20_000):
            mallory.send(PING, mallory.link)

    await in_thread(attack)
    await cut.wait()


async def test_a_flood_is_answered_and_other_clients_notice_nothing(mallory: IndependentClient) -> None:
    def attack() -> None:
        for _ in range(5_000):
            mallory.socket.send(b"\xc1")
        mallory.until(lambda: mallory.frames_of(CLOSE))  # how many more come depends on when the connection is cut

    await in_thread(attack)


# ---------------------------------------------------------------- greetings


async def test_data_before_the_greeting_is_answered_with_reset(
    mesh: RealMesh, mallory: IndependentClient, users: Users
) -> None:
    connector = mallory.connectors[0]
    with dealer(connector["endpoint"], connector["key"].encode()) as (socket_of_ours, _):
        socket_of_ours.send(pack([DATA, 7, 1, 0, [[1, b"?", b""]]]))
        assert await in_thread(socket_of_ours.recv) == pack([RESET, 7])


async def test_a_client_that_sends_before_the_welcome_is_welcome(mallory: IndependentClient) -> None:
    mallory.socket.close(0)
    await in_thread(mallory.connect, wait=False)
    mallory.send(DATA, mallory.link, 1, 0, [])  # dropped before the Welcome, frame 1 after it: it is a race
    for _ in range(5):
        mallory.send(PING, mallory.link)
    await in_thread(mallory.until, lambda: mallory.frames_of(WELCOME))
    await expect_alive(mallory)


async def test_two_greetings_at_once_end_the_connection(mallory: IndependentClient) -> None:
    mallory.socket.close(0)
    await in_thread(mallory.connect, wait=False)
    mallory.send(GREET, 1, mallory.token, mallory.epoch, mallory.link, WINDOW)
    await expect_close(mallory, Code.NOT_GREETED)
    mallory.send(PING, mallory.link)
    await in_thread(mallory.until, lambda: mallory.frames_of(RESET))


async def test_invalid_tokens_are_refused(mesh: RealMesh, mallory: IndependentClient, users: Users) -> None:
    """A token of another device, for REST alone, logged out, expired, random, and empty."""
    mallory.socket.close(0)
    password = {"name": users.mallory, "password": PASSWORD}
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        other = {**password, "device": "other", "epoch": 170, "takeover": True}
        of_other_device = (await http.post("/v1/login", json=other)).json()["token"]
        for_rest = (await http.post("/v1/login", json={**password, "device": None})).json()["token"]
        logged_out = (await http.post("/v1/login", json={**password, "device": "gone", "epoch": other["epoch"]})).json()
        await http.post("/v1/logout", headers=bearer_header(token_bytes(logged_out["token"])))
    expired = await expired_token(mesh, mallory)
    for token in (
        token_bytes(of_other_device),
        token_bytes(for_rest),
        token_bytes(logged_out["token"]),
        expired,
        secrets.token_bytes(32),
        b"",
    ):
        await in_thread(mallory.connect, token=token, wait=False)
        assert await expect_close(mallory, Code.BAD_TOKEN)
        mallory.socket.close(0)


async def test_a_session_ends_with_the_logout_of_its_token(mesh: RealMesh, mallory: IndependentClient) -> None:
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        assert (await http.post("/v1/logout", headers=bearer_header(mallory.token))).status_code == 204
    await expect_close(mallory, Code.LOGGED_OUT)
    mallory.socket.close(0)
    await in_thread(mallory.connect, wait=False)
    await expect_close(mallory, Code.BAD_TOKEN)


async def test_of_many_connections_of_one_device_the_last_stays(mallory: IndependentClient) -> None:
    """Each connection replaces the earlier one, on the same or another connector; at the end one stays."""
    greetings = 30
    sockets = []

    def connect() -> None:
        sockets.append(mallory.socket)
        mallory.connect(wait=False)

    def stays() -> bool:
        """Whether this connection is answered.  A slower greeting may get a higher session number, and replace it."""
        mallory.until(lambda: mallory.welcome or mallory.frames_of(CLOSE))
        mallory.send(PING, mallory.link)
        mallory.until(lambda: mallory.frames_of(PONG) or mallory.frames_of(CLOSE))
        assert all(close[2] == Code.REPLACED for close in mallory.frames_of(CLOSE))
        return not mallory.frames_of(CLOSE)

    def attack() -> None:
        for _ in range(greetings):
            connect()
        replaced = 0
        while not stays():
            replaced += 1
            assert replaced <= greetings, "replaced more often than there were greetings"
            connect()

    try:
        await in_thread(attack)
    finally:
        for each in sockets:
            each.close(0)


# ---------------------------------------------------------------- envelopes


async def test_messages_to_users_that_are_not_friends_are_rejected(
    mesh: RealMesh, mallory: IndependentClient, users: Users
) -> None:
    """In a flood some are answered with BUSY, while the connector reads from SQL whether the two are friends."""
    bob = await user_id(mesh, mallory, users.bob)
    outcomes = record_outcomes(mallory)

    def attack() -> None:
        for _ in range(400):
            mallory.send_envelope((USER, bob, 0), TEXT, b"?")
        mallory.until(lambda: len(outcomes) == 400)

    await in_thread(attack)
    assert {(status, code) for _, status, code, _ in outcomes} <= {(REJECTED, Code.NOT_FRIENDS), (BUSY, Code.BUSY)}
    assert (1, REJECTED, Code.NOT_FRIENDS, "sender and recipient are not friends") in outcomes


def record_outcomes(client: IndependentClient) -> list[tuple[int, int, int, str]]:
    """A list to which every outcome that arrives from now on is added: (first, status, code, sentence)."""
    outcomes: list[tuple[int, int, int, str]] = []

    def on_outcome(*fields: Any) -> None:
        first, status, code, sentence = fields[1], fields[3], fields[7], fields[8]
        outcomes.append((first, status, code, sentence))

    client.on_outcome = on_outcome  # type: ignore[method-assign, assignment]
    return outcomes


async def user_id(mesh: RealMesh, client: IndependentClient, name: str) -> int:
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        answer = await http.get(f"/v1/users/{name}", headers=bearer_header(client.token))
    return int(answer.json()["user_id"])


async def test_a_body_over_the_limit_is_refused_with_numbers(mallory: IndependentClient) -> None:
    outcomes = record_outcomes(mallory)
    mallory.send_envelope((USER, 1 << 40, 0), TEXT, bytes(BODY_BYTES + 1))
    await in_thread(mallory.until, lambda: outcomes)
    sentence = f"the body has {BODY_BYTES + 1} bytes, {BODY_BYTES} are allowed"
    assert outcomes == [(1, REJECTED, Code.TOO_LARGE, sentence)]
    await expect_alive(mallory)


@pytest.mark.parametrize("field", ["user", "device", "epoch"])
async def test_an_envelope_in_the_name_of_another_closes_the_session(mallory: IndependentClient, field: str) -> None:
    sender = {"user": mallory.user, "device": mallory.device, "epoch": mallory.epoch}
    sender[field] ^= 1
    made = pack([1, bytes(16), *sender.values(), (USER, 1, 0), 1, 1, TEXT, 0, 0, b"?"])
    mallory.submit(made, (USER, 1, 0))
    await expect_close(mallory, Code.IMPERSONATION)


async def test_a_large_field_beside_the_body_closes_the_session(mallory: IndependentClient) -> None:
    own = (mallory.user, mallory.device, mallory.epoch)
    made = pack([1, bytes(16), *own, (USER, 1, 0), 1, 1, TEXT, 0, 0, b"?", bytes(100_000)])
    mallory.submit(made, (USER, 1, 0))
    await expect_close(mallory, Code.MALFORMED)


async def test_receipts_of_a_stranger_are_rejected(mesh: RealMesh, mallory: IndependentClient, users: Users) -> None:
    """H1: mallory must not learn whether a device of alice is connected, nor have anything stored for it."""
    alice = await user_id(mesh, mallory, users.alice)

    def attack() -> None:
        to = (USER, alice, 0)
        keys = [mallory.send_envelope(to, RECEIPT, pack([READ, device, 1, to, [[1, 9]]])) for device in range(1, 9)]
        one_device = mallory.send_envelope((2, alice, 1), RECEIPT, b"garbage")
        mallory.until(lambda: all(mallory.states[key] for key in [*keys, one_device]))
        assert mallory.codes == dict.fromkeys(keys, Code.NOT_FRIENDS) | {one_device: Code.NO_SUCH_RECIPIENT}

    await in_thread(attack)


async def test_forged_receipts_of_a_friend_change_nothing(mesh: RealMesh, users: Users) -> None:
    """trudy sends receipts about messages that trudy never got, of devices that do not exist, and about alice's."""
    trudy = await in_thread(IndependentClient, mesh.api, users.trudy, PASSWORD)
    bob = trudy.users[users.bob]

    def attack() -> None:
        trudy.connect()
        with closing(trudy.socket):
            to, mine, others = (USER, bob, 0), [USER, trudy.user, 0], [USER, bob, 0]
            bodies = [b"garbage", pack([READ, UNUSED, 1, mine])]
            bodies += [pack([kind, UNUSED, UNUSED, mine, [[1, SEQ_MAX], [9, 2]] * 512]) for kind in (READ, 0, 77)]
            bodies += [
                pack([READ, device, device, of, [[1, 9]]])
                for of in (mine, others)
                for device in range(UNUSED, UNUSED + 59)
            ]
            keys = [trudy.send_envelope(to, RECEIPT, body) for body in bodies]
            trudy.until(lambda: all("sent" in trudy.states[key] for key in keys))

    async with client(mesh, users.bob, "tablet") as device:
        await device.online()
        await in_thread(attack)
        count = device.statistics
        await until(lambda: count.unreadable == 2 and count.receipts_ignored == 59 - 32, f"they are counted: {count}")


async def test_unreadable_messages_of_a_friend_delay_no_other_message(
    mesh: RealMesh, mallory: IndependentClient, users: Users
) -> None:
    """trudy is a friend of bob's; bob still gets the messages of others, and the readable ones of trudy."""
    trudy = await in_thread(IndependentClient, mesh.api, users.trudy, PASSWORD)
    bob = trudy.users[users.bob]
    own = (trudy.user, trudy.device, trudy.epoch)

    def attack() -> None:
        trudy.connect()
        with closing(trudy.socket):
            to = (USER, bob, 0)
            keys = [trudy.send_envelope(to, kind, b"garbage", 0) for kind in (TEXT, BASE, 77, 127)]
            jump = pack([1, bytes(16), *own, to, SEQ_MAX, SEQ_MAX, TEXT, 9, 0, b"?"])
            trudy.states[to, SEQ_MAX] = set()
            trudy.submit(jump, to)
            keys.append((to, SEQ_MAX))
            trudy.until(lambda: all("sent" in trudy.states[key] for key in keys))

    await in_thread(attack)


async def test_invented_cookies_delay_no_message(mesh: RealMesh, mallory: IndependentClient, users: Users) -> None:
    """A cookie of another stream, a changed one or an invented one counts as empty; a position cannot be made up."""
    trudy = await in_thread(IndependentClient, mesh.api, users.trudy, PASSWORD)
    bob = trudy.users[users.bob]
    invalid = mesh.counter_sum("cookies_invalid")
    positions = pack([[bob, 0, 1 << 60]])
    cookies = [secrets.token_bytes(17) + positions, b"\x01" + bytes(16) + positions, b"\x01", bytes(1_024)]

    def attack() -> None:
        trudy.connect()
        with closing(trudy.socket):
            to = (USER, bob, 0)
            for cookie in cookies:
                trudy.cookies[to] = cookie
                began = time.monotonic()
                sent = trudy.send_envelope(to, TEXT, b"garbage", 0)
                trudy.until(lambda sent=sent: "sent" in trudy.states[sent])
                assert time.monotonic() - began < SOON_S, "it does not wait for the invented position"

    await in_thread(attack)
    await until(lambda: mesh.counter_sum("cookies_invalid") == invalid + len(cookies), "they are counted")


async def test_a_cookie_over_its_bound_ends_the_session(mallory: IndependentClient) -> None:
    submit = [1, b"", bytes(1_025)]
    mallory.socket.send(pack([DATA, mallory.link, 1, 0, [submit]]))
    await expect_close(mallory, Code.MALFORMED)


async def test_a_cookie_of_a_mebibyte_is_cut_off(mallory: IndependentClient) -> None:
    with monitored(mallory.socket) as wait_ended:
        mallory.socket.send(pack([DATA, mallory.link, 1, 0, [[1, b"", bytes(1 << 20)]]]))
        await in_thread(wait_ended)
    assert not mallory.frames_of(CLOSE)


# ---------------------------------------------------------------- the log


async def test_a_record_that_does_not_decode_becomes_a_dead_letter(mesh: RealMesh) -> None:
    """The address of the embedded NATS comes from the data folder."""
    dead_lettered = mesh.counter_sum("dead_lettered")
    topology = topologies.load(mesh.data.topology)
    nats = await NatsClient.connect(topology.backends.nats, log.get("test", "poison"))
    try:
        await JetStreamOfflineLog(nats, topology.namespace).publish(0, b"\xc1 not a record")
    finally:
        await nats.close()
    await until(lambda: mesh.counter_sum("dead_lettered") > dead_lettered, "the record is not dead-lettered")
    data = ("--data", str(mesh.data.root))
    (letter,) = json.loads(mesh.cli("deadletter", "list", "--json", *data).stdout)["letters"]
    assert letter["reason"].startswith("The record does not decode")
    assert mesh.cli("deadletter", "drop", str(letter["number"]), "--yes", *data).returncode == 0
    assert mesh.cli("deadletter", "list", *data).stdout == "There are no dead letters.\n"
