"""The friends of a client, and its events, over a fake REST service and without a mesh."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshim.client import (
    Client,
    Connected,
    DevicesChanged,
    DeviceTakenOver,
    Disconnected,
    Friend,
    MessagesDelayed,
    MessagesProgressed,
    RelationChanged,
    TypingStarted,
    TypingStopped,
)
from meshim.client import events as e
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, Code, Refused
from meshim.wire.client import Change, Outcome, Welcome, encode
from meshim.wire.envelope import Destination, DestinationType, Stream
from meshim.wire.link import Data
from meshim.wire.outcome import OutcomeStatus
from tests.unit.client.friends_world import waiting
from tests.unit.client.rest_service import PASSWORD, RestService

TO_BOB = Destination(DestinationType.USER, 2)


@pytest.fixture
def service() -> RestService:
    service = RestService().at(time.time())
    service.connectors = ()  # the tests are the connector
    return service


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice.db"


def client_of(service: RestService, path: Path) -> Client:
    client = Client("http://localhost", "alice", PASSWORD, device="phone", state=path)
    client._api = service.api()
    return client


@pytest.fixture
async def alice(service: RestService, path: Path) -> AsyncIterator[Client]:
    async with client_of(service, path) as client:
        yield client


def peers(path: Path) -> dict[str, str]:
    """The names and relations in a closed state file."""
    state = StateFile(path)
    try:
        return {name: relation for _, name, relation in state.peers()}
    finally:
        state.close()


async def test_friends_are_asked_for_changed_and_kept_in_the_state_file(service: RestService, path: Path) -> None:
    async with client_of(service, path) as client:
        events = client.events()
        assert await client.friends() == [Friend(2, "bob", "friends")]
        await client.remove("bob")
        assert waiting(events) == [RelationChanged(user_id=2, name="bob", old="friends", new="removed")]
        assert await client.friends() == []
        with pytest.raises(Refused) as refused:
            await client.check_friend("bob")
        assert refused.value.code is Code.NOT_FRIENDS
        assert await client.add("bob") == Friend(2, "bob", "requested")
        assert await client.accept("bob") == Friend(2, "bob", "friends")
        await client.check_friend("bob")
        await client.refuse("bob")
        assert await client.block("bob") == Friend(2, "bob", "blocked")
        assert await client.friends() == [Friend(2, "bob", "blocked")]
        with pytest.raises(Refused, match="bob is blocked"):
            await client.send("bob", "hello")
        assert (await client.unblock("bob")).state == "removed"
        await client.add("bob")
    assert peers(path) == {"bob": "requested"}
    async with client_of(service, path) as client:
        events = client.events()
        service.set_relation("bob", "friends")
        client._shell._perform(e.AccountChanged(Change.RELATIONS | Change.KEYS))
        async with asyncio.timeout(5.0):
            assert await anext(events) == RelationChanged(user_id=2, name="bob", old="requested", new="friends")


async def test_refusals_are_raised_with_their_code(service: RestService, alice: Client) -> None:
    with pytest.raises(ApiError) as refused:
        await alice.add("nobody")
    assert refused.value.code == "no_such_user"
    service.away = True
    for call in (alice.friends(), alice.accept("bob"), alice.remove("bob"), alice.block("bob")):
        with pytest.raises(BackendUnavailable):
            await call


async def test_a_token_that_ended_is_renewed(service: RestService, alice: Client) -> None:
    service.revoke()
    assert (await alice.add("bob")).state == "requested"
    assert len(service.logins) == 3


async def test_the_connection_and_the_account_are_told(alice: Client) -> None:
    events = alice.events()
    alice._shell.connection._last = "tcp://c1"
    alice._shell._perform(e.Online(65_536))
    alice._shell._perform(e.AccountChanged(Change.DEVICES))
    alice._shell._perform(e.Disconnect(Code.SHUTTING_DOWN, "bye"))
    alice._shell._perform(e.Disconnect(None, "an attempt that was not welcomed"))
    alice._shell._perform(e.TypingChanged(2, typing=True))
    async with asyncio.timeout(5.0):
        assert [await anext(events) for _ in range(4)] == [
            Connected(connector="tcp://c1"),
            DevicesChanged(),
            Disconnected(code=Code.SHUTTING_DOWN, sentence="bye"),
            TypingStarted(name="bob"),
        ]
    alice._shell._perform(e.TypingChanged(2, typing=False))
    assert waiting(events) == [TypingStopped(name="bob")]


class FullSocket:
    """Has no room for any frame."""

    def send(self, frame: bytes) -> bool:
        return False

    def close(self) -> None:
        """Nothing is open."""


async def test_a_connection_that_ends_because_a_frame_finds_no_room_is_told(alice: Client) -> None:
    events = alice.events()
    alice._shell.driver.receive(e.Connected(5, bytes(32)))
    welcome = Welcome(1, 5, 1, 1, 10, 32, 65_536, 262_144, 10_000, 25_000, 2_500, 0)
    alice._shell.driver.receive(e.FramesReceived([encode(welcome)]))
    full: Any = FullSocket()
    alice._shell.connection._socket = full
    await alice.send("bob", "hello")
    alice._shell.connection._socket = None
    assert alice.connector is None
    assert [type(event) for event in waiting(events)] == [Connected, Disconnected]


async def test_messages_of_this_device_and_of_others_are_told_by_one_event(alice: Client) -> None:
    events = alice.events()
    outgoing = await alice.send("bob", "hello")
    mine, bobs = outgoing.stream, Stream(2, 20, 5, Destination(DestinationType.USER, 1))
    assert mine == Stream(1, 10, alice._shell._state.epoch, TO_BOB)
    alice._shell._perform(e.StatusChanged(TO_BOB, 1, "sent", 0, ""))
    alice._shell._perform(e.StatusChanged(TO_BOB, 2, "sent", 0, "", hidden=True))
    alice._shell._perform(e.StatusChanged(TO_BOB, 3, "rejected", 6, "no friends"))
    alice._shell._perform(e.StreamProgressed(bobs, "read", ((1, 4),)))
    sent, rejected, read = waiting(events)
    assert isinstance(sent, MessagesProgressed)
    assert (sent.covers(outgoing), sent.peer, sent.state, sent.ranges) == (True, "bob", "sent", ((1, 1),))
    assert rejected == MessagesProgressed(
        stream=mine, peer="bob", state="rejected", ranges=((3, 3),), code=6, sentence="no friends"
    )
    assert read == MessagesProgressed(stream=bobs, peer="bob", state="read", ranges=((1, 4),))
    assert not rejected.covers(outgoing)


async def test_why_the_mesh_takes_no_messages_to_a_user_is_told_and_can_be_asked(alice: Client) -> None:
    events = alice.events()
    outgoing = await alice.send("bob", "hello")
    assert alice.delayed(outgoing) == ""
    alice._shell.driver.receive(e.Connected(5, bytes(32)))
    welcome = Welcome(1, 5, 1, 1, 10, 32, 65_536, 262_144, 10_000, 25_000, 2_500, 0)
    full = Outcome(TO_BOB, 1, 1, OutcomeStatus.BUSY, code=Code.QUEUE_FULL, sentence="too much waits")
    stored = Outcome(TO_BOB, 1, 1, OutcomeStatus.STORED, final=True, audience=1)
    alice._shell.driver.receive(e.FramesReceived([encode(welcome), encode(Data(5, 1, 0, (full,)))]))
    assert MessagesDelayed(peer="bob", code=Code.QUEUE_FULL, sentence="Too much waits.") in waiting(events)
    assert alice.delayed(outgoing) == "Too much waits."
    assert (outgoing.state, alice.statistics.queue_full) == ("pending", 1)
    alice._shell.driver.receive(e.FramesReceived([encode(Data(5, 2, 0, (stored,)))]))
    await outgoing.wait_sent()
    assert alice.delayed(outgoing) == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Refused(Code.REPLACED, "taken over"), [DeviceTakenOver(sentence="taken over")]),
        (Refused(Code.LOGGED_OUT, "logged out"), []),
    ],
)
async def test_the_end_of_the_client_is_raised_after_the_last_event(
    alice: Client, error: Refused, told: list[object]
) -> None:
    events = alice.events()
    alice._shell._fail(error)
    assert [await anext(events) for _ in told] == told
    with pytest.raises(Refused, match=error.sentence):
        await anext(events)
    for call in (alice.friends(), alice.typing("bob")):
        with pytest.raises(Refused):
            await call
    with pytest.raises(Refused):
        alice.watch("bob")


async def test_closing_ends_the_loop(service: RestService, path: Path) -> None:
    async with client_of(service, path) as client:
        reading = asyncio.ensure_future(anext(client.events()))
        await asyncio.sleep(0)
    with pytest.raises(ClientClosed):
        await reading


async def test_typing_to_who_is_no_friend_is_refused(service: RestService, alice: Client) -> None:
    service.set_relation("bob", "removed")
    await alice.friends()
    with pytest.raises(Refused) as refused:
        await alice.typing("bob")
    assert refused.value.code is Code.NOT_FRIENDS


async def test_watched_friends_are_asked_for_over_the_session(service: RestService, alice: Client) -> None:
    service.online = {2}
    events = alice.events()
    alice.watch("Bob")
    alice._shell._perform(e.Online(65_536))
    async with asyncio.timeout(5.0):
        while alice.presence("bob") != "online":
            await anext(events)
    alice.unwatch("bob")
    assert alice.presence("bob") == "unknown"
