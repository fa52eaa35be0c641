"""What an application is told without asking: friends, presence, typing, the connection, the end of its device."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from meshim.client import (
    Client,
    Connected,
    DevicesChanged,
    DeviceTakenOver,
    Disconnected,
    EventsLost,
    Friend,
    KeyChanged,
    MessagesProgressed,
    PresenceChanged,
    RelationChanged,
    Subscription,
    TypingStarted,
    TypingStopped,
)
from meshim.client.options import DEFAULTS
from meshim.client.rest import Api
from meshim.errors import ApiError, Code, Refused
from tests.mesh.harness.library_client import client, next_event, receive, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh

SOON_S = 5.0
"""Pushed, not polled: connectors read relations by themselves after `relation_ttl_s`, a minute."""


@pytest.fixture(params=["zeromq", "websocket"])
def over(request: pytest.FixtureRequest, mesh: RealMesh) -> RealMesh:
    return mesh.over(request.param)


@asynccontextmanager
async def application(mesh: RealMesh, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`meshim listen` of this user, in a process of its own."""
    state = mesh.folder / f"{name}-listen.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "meshim", "listen", name, "--api", mesh.api, "--state", str(state), "--password-stdin",
        "--json", "--transport", mesh.transport, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(f"{PASSWORD}\n".encode())
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def relation(name: str, user: Client, old: str, new: str) -> RelationChanged:
    return RelationChanged(user_id=user.user_id, name=name, old=old, new=new)  # type: ignore[arg-type]  # plain text here


# ---------------------------------------------------------------- friends


async def test_a_friendship_from_request_to_end_appears_on_all_devices_without_polling(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben", friends=False)
    async with client(mesh, ann_name) as ann, client(mesh, ben_name) as phone, client(mesh, ben_name, "pc") as pc:
        events, on_pc, of_ann = phone.events(), pc.events(), ann.events()
        for each in (ann, phone, pc):
            await asyncio.wait_for(each.online(), DEADLINE_S)
        async with asyncio.timeout(SOON_S):
            assert (await ann.add(ben_name)).state == "requested"
            assert await next_event(of_ann, RelationChanged) == relation(ben_name, phone, "none", "requested")
            for reader in (events, on_pc):
                assert await next_event(reader, RelationChanged) == relation(ann_name, ann, "none", "asked")
        assert [(friend.name, friend.state) for friend in await phone.friends()] == [(ann_name, "asked")]
        async with asyncio.timeout(SOON_S):
            assert (await phone.accept(ann_name)).state == "friends"
            for reader in (events, on_pc):
                assert await next_event(reader, RelationChanged) == relation(ann_name, ann, "asked", "friends")
            assert await next_event(of_ann, RelationChanged) == relation(ben_name, phone, "requested", "friends")
            await send_and_wait(ann, ben_name, "hello")
        async with asyncio.timeout(SOON_S):
            await phone.remove(ann_name)
            for reader in (events, on_pc):
                assert await next_event(reader, RelationChanged) == relation(ann_name, ann, "friends", "removed")
            assert await next_event(of_ann, RelationChanged) == relation(ben_name, phone, "friends", "removed")
        assert await ann.friends() == []


async def test_refused_requests_and_new_keys_are_told(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    async with client(mesh, ann_name) as ann, client(mesh, ben_name) as ben:
        events, of_ben = ann.events(), ben.events()
        await asyncio.wait_for(asyncio.gather(ann.online(), ben.online()), DEADLINE_S)
        await ann.remove(ben_name)
        await next_event(of_ben, RelationChanged, lambda event: event.new == "removed")
        await ann.add(ben_name)
        await next_event(of_ben, RelationChanged, lambda event: event.new == "asked")
        await next_event(events, RelationChanged, lambda event: event.new == "requested")
        await ben.refuse(ann_name)
        assert await next_event(events, RelationChanged) == relation(ben_name, ben, "requested", "removed")
        # Read before the next request: what is unread of one relation becomes one event, or none if nothing changed.
        assert await next_event(of_ben, RelationChanged) == relation(ann_name, ann, "asked", "removed")
        with pytest.raises(ApiError) as refused:
            await ben.accept(ann_name)
        assert refused.value.code == "not_asked"
        with pytest.raises(ApiError) as too_soon:
            await ann.add(ben_name)
        assert too_soon.value.code == "asked_lately"
        await ben.add(ann_name)
        await next_event(events, RelationChanged, lambda event: event.new == "asked")
        assert (await ann.add(ben_name)).state == "friends"
        assert (await next_event(events, KeyChanged)).version == 2


async def test_who_is_blocked_is_no_friend_and_cannot_ask_until_that_ends(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    async with client(mesh, ann_name) as ann, client(mesh, ann_name, "pc") as pc, client(mesh, ben_name) as ben:
        for each in (ann, pc, ben):
            await asyncio.wait_for(each.online(), DEADLINE_S)
        of_ben, on_pc = ben.events(), pc.events()
        assert await ann.block(ben_name) == Friend(ben.user_id, ben_name, "blocked")
        assert (await next_event(on_pc, RelationChanged)).new == "blocked"
        assert (await next_event(of_ben, RelationChanged)).new == "removed", "ben does not learn of the block"
        with pytest.raises(Refused) as refused:
            await ann.send(ben_name, "hello")
        assert refused.value.code is Code.NOT_FRIENDS
        assert (await ben.add(ann_name)).state == "requested"
        assert [friend.state for friend in await ann.friends()] == ["blocked"]
        with pytest.raises(ApiError) as error:
            await ann.add(ben_name)
        assert error.value.code == "blocked"
        assert (await ann.unblock(ben_name)).state == "asked", "the request has waited"
        assert (await ann.accept(ben_name)).state == "friends"
        assert (await next_event(of_ben, RelationChanged, lambda event: event.new == "friends")).name == ann_name
        await (await ann.send(ben_name, "hello")).wait_sent()


async def test_a_request_that_came_while_the_device_was_away_appears_when_it_is_back(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben", friends=False)
    async with client(mesh, ben_name) as ben:
        await ben.online()
    async with client(mesh, ann_name) as ann:
        await ann.add(ben_name)
        async with client(mesh, ben_name) as ben:
            assert await next_event(ben.events(), RelationChanged) == relation(ann_name, ann, "none", "asked")


async def test_a_new_device_of_the_user_is_told(mesh: RealMesh) -> None:
    [ann_name] = await mesh.register_users("ann")
    async with client(mesh, ann_name) as ann:
        events = ann.events()
        await ann.online()
        async with client(mesh, ann_name, "pc") as pc:
            await pc.online()
            await asyncio.wait_for(next_event(events, DevicesChanged), SOON_S)


# ---------------------------------------------------------------- presence and typing


async def test_presence_of_a_watched_friend_turns_when_the_process_is_killed(over: RealMesh) -> None:
    ann_name, ben_name, cid_name = await over.register_users("ann", "ben", "cid")
    options = msgspec.structs.replace(DEFAULTS, presence_poll_s=0.5)
    async with client(over, ann_name, options=options) as ann, client(over, cid_name) as cid:
        await cid.online()
        events = ann.events()
        ann.watch(ben_name, cid_name)
        assert ann.presence(cid_name) == "unknown"
        async with application(over, ben_name) as ben:
            seen: dict[str, str] = {}
            while seen != {cid_name: "online", ben_name: "online"}:
                change = await next_event(events, PresenceChanged)
                assert change.old == seen.get(change.name, "unknown")
                seen[change.name] = change.new
            assert (ann.presence(ben_name), ann.presence(cid_name)) == ("online", "online")
            ben.send_signal(signal.SIGKILL)
            await ben.wait()
            # By the end of the connection: the next Ping, which would tell as well, is up to 10 s away.
            gone = await asyncio.wait_for(next_event(events, PresenceChanged), SOON_S)
            assert gone == PresenceChanged(name=ben_name, old="online", new="offline")
        ann.unwatch(ben_name)
        assert (ann.presence(ben_name), ann.presence(cid_name)) == ("unknown", "online")


async def test_presence_is_unknown_while_rest_is_away(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    options = msgspec.structs.replace(DEFAULTS, presence_poll_s=0.3)
    async with client(mesh, ann_name, options=options) as ann, client(mesh, ben_name) as ben:
        await asyncio.wait_for(ben.online(), DEADLINE_S)
        events = ann.events()
        ann.watch(ben_name)
        await next_event(events, PresenceChanged, lambda event: event.new == "online")
        ann._api._http.timeout = 1.0  # the service is stopped, and would be waited for
        mesh.signal("r1", signal.SIGSTOP)
        try:
            unknown = await asyncio.wait_for(next_event(events, PresenceChanged), SOON_S)
            assert unknown == PresenceChanged(name=ben_name, old="online", new="unknown")
        finally:
            mesh.signal("r1", signal.SIGCONT)
        assert await next_event(events, PresenceChanged) == PresenceChanged(name=ben_name, old="unknown", new="online")
        assert ann.statistics.presence_requests_failed > 0


async def type_until_shown(typist: Client, name: str, reader: Subscription) -> TypingStarted:
    """Type until the friend sees it: what meets a device that is not synced yet is dropped."""
    shown = asyncio.ensure_future(next_event(reader, TypingStarted))
    while not shown.done():
        await typist.typing(name)
        await asyncio.wait([shown], timeout=0.2)
    return shown.result()


async def test_typing_is_shown_and_vanishes(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    ann_options = msgspec.structs.replace(DEFAULTS, typing_every_s=0.1)
    ben_options = msgspec.structs.replace(ann_options, typing_shown_s=1.0)
    async with (
        client(mesh, ann_name, options=ann_options) as ann, client(mesh, ann_name, "pc") as anns_pc,
        client(mesh, ben_name, options=ben_options) as ben,
    ):  # fmt: skip
        for each in (ann, anns_pc, ben):
            await asyncio.wait_for(each.online(), DEADLINE_S)
        events, on_pc = ben.events(), anns_pc.events()
        assert await type_until_shown(ann, ben_name, events) == TypingStarted(name=ann_name)
        assert await asyncio.wait_for(next_event(events, TypingStopped), SOON_S) == TypingStopped(name=ann_name)
        told = await type_until_shown(ben, ann_name, on_pc)
        assert told == TypingStarted(name=ben_name), "what the user types on another device is no news"
        await send_and_wait(ben, ann_name, "hello")
        stopped = await asyncio.wait_for(next_event(on_pc, TypingStopped), SOON_S)  # without it: after 6 s
        assert stopped == TypingStopped(name=ben_name)


async def test_typing_is_not_kept_for_friends_who_are_away(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    options = msgspec.structs.replace(DEFAULTS, typing_every_s=0.1)
    async with client(mesh, ann_name, options=options) as ann:
        async with client(mesh, ben_name) as ben:
            await ben.online()
        await ann.online()
        await ann.typing(ben_name)
        await send_and_wait(ann, ben_name, "hello")
        async with client(mesh, ben_name) as ben:
            events = ben.events()
            assert await receive_texts(ben, 1) == ["hello"]
            await send_and_wait(ben, ann_name, "hello")
            seen = [type(await anext(events))]
            while MessagesProgressed not in seen:
                seen.append(type(await anext(events)))
            assert TypingStarted not in seen
            assert await type_until_shown(ann, ben_name, events) == TypingStarted(name=ann_name), "and now it comes"


# ---------------------------------------------------------------- connection and device


async def test_a_device_that_is_taken_over_hears_of_it_and_then_ends(over: RealMesh) -> None:
    [ann_name] = await over.register_users("ann")
    async with client(over, ann_name) as old:
        events = old.events()
        await next_event(events, Connected)
        async with client(over, ann_name, state="-new") as new:
            await new.online()
            taken = await asyncio.wait_for(next_event(events, DeviceTakenOver), SOON_S)
            assert "was taken over with another state file" in taken.sentence
            for reader in (events, old.events()):
                with pytest.raises(Refused) as refused:
                    await asyncio.wait_for(anext(reader), SOON_S)
                assert refused.value.code is Code.REPLACED


# ---------------------------------------------------------------- messages, and readers that are slow


async def test_messages_tell_how_far_they_have_come(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    async with client(mesh, ann_name) as ann, client(mesh, ben_name) as ben:
        await asyncio.wait_for(asyncio.gather(ann.online(), ben.online()), DEADLINE_S)
        events = ann.events()
        outgoing = await ann.send(ben_name, "hello")
        first = await next_event(events, MessagesProgressed)
        assert (first.covers(outgoing), first.peer) == (True, ben_name)
        assert first.state in ("sent", "delivered"), "it may have been stored first"
        await receive(ben, 1, mark_read=True)
        read = await next_event(events, MessagesProgressed, lambda event: event.state != "delivered")
        assert (read.covers(outgoing), read.state) == (True, "read")
        async with Api(mesh.api) as api:
            await api.login(ben_name, PASSWORD)
            await api.remove(ann_name)
        await next_event(events, RelationChanged)
        ann._shell.contacts._relations[ben_name] = (ben.user_id, "friends")  # as if the news had not come yet
        refused = await ann.send(ben_name, "again")
        no = await next_event(events, MessagesProgressed)
        assert (no.covers(refused), no.state, no.code) == (True, "rejected", Code.NOT_FRIENDS)


async def test_a_slow_reader_loses_nothing_silently(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    names = await mesh.register_users(*(f"x{number}" for number in range(6)), friends=False)
    options = msgspec.structs.replace(DEFAULTS, events_max=3)
    async with client(mesh, ann_name, options=options) as ann, client(mesh, ben_name) as ben:
        await asyncio.wait_for(asyncio.gather(ann.online(), ben.online()), DEADLINE_S)
        slow, slower = ann.events(), ann.events()
        outgoing = [await ann.send(ben_name, str(number)) for number in range(100)]
        await receive(ben, 100, mark_read=True)
        for each in outgoing:
            await asyncio.wait_for(each.wait_read(), DEADLINE_S)
        read = await next_event(slow, MessagesProgressed, lambda event: event.state == "read")
        assert all(read.covers(each) for each in outgoing)
        for name in names:
            await ann.add(name)
        told = [event.name for event in [await anext(slow) for _ in range(3)] if isinstance(event, RelationChanged)]
        lost = await next_event(slow, EventsLost)
        assert (told, lost.count) == (list(names[: len(told)]), 6 - len(told))
        lost_too = await next_event(slower, EventsLost)
        assert ann.statistics.events_lost == lost.count + lost_too.count
        assert [friend.name for friend in await ann.friends()] == [ben_name, *names]


async def test_killed_connectors_are_a_connection_down_and_up(mesh: RealMesh) -> None:
    ann_name, ben_name = await mesh.register_users("ann", "ben")
    async with client(mesh.over("zeromq"), ann_name) as ann, client(mesh.over("websocket"), ben_name) as ben:
        readers = {each: each.events() for each in (ann, ben)}
        await asyncio.wait_for(asyncio.gather(ann.online(), ben.online()), DEADLINE_S)
        before = {each: each.connector for each in readers}
        pids = {name: mesh.signal(name, signal.SIGKILL) for name in ("c1", "c2")}
        for each, reader in readers.items():
            down = await asyncio.wait_for(next_event(reader, Disconnected), SOON_S)
            assert (down.code, down.sentence, each.connector) == (None, "the connection was lost", None)
        for each, reader in readers.items():
            up = await next_event(reader, Connected)
            assert up.connector != before[each]
            assert up.connector == each.connector
        for name, pid in pids.items():
            await mesh.restarted(name, pid)
