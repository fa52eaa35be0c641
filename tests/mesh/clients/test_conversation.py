"""Users talk on a mesh of real processes with the client library."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from meshim.client import Client, OrderFlag
from meshim.client.rest import Api
from meshim.errors import ApiError, Code, Refused, UsageError
from tests.mesh.harness import scenarios
from tests.mesh.harness.inspection import stored_rows
from tests.mesh.harness.library_client import (
    client,
    disconnected,
    expect_nothing_more,
    receive,
    receive_texts,
    send_and_wait,
)
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, restartable_mesh, until

# ---------------------------------------------------------------- messages arrive


async def test_two_users_online(mesh: RealMesh) -> None:
    await scenarios.two_users_online(mesh)


async def test_every_device_gets_a_copy(mesh: RealMesh) -> None:
    await scenarios.every_device_gets_a_copy(mesh)


async def test_the_first_device_of_a_user_gets_the_stored_messages(mesh: RealMesh) -> None:
    await scenarios.first_device_gets_the_stored_messages(mesh)


async def test_receipts_reach_a_disconnected_sender(mesh: RealMesh) -> None:
    await scenarios.receipts_reach_a_disconnected_sender(mesh)


async def test_thousands_both_ways_arrive_once_and_in_order(mesh: RealMesh) -> None:
    await scenarios.thousands_both_ways(mesh)


async def test_stored_messages_survive_a_restart_of_all_processes_and_come_first(tmp_path: Path) -> None:
    async with restartable_mesh(tmp_path) as mesh:
        await scenarios.stored_messages_survive_a_restart(mesh)


async def test_the_example_in_the_documentation_works(
    mesh: RealMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    monkeypatch.chdir(tmp_path)
    password, seen = PASSWORD, []

    async def answer_as_bob() -> None:
        async with client(mesh, bob_name) as bob:
            await receive(bob, 1, mark_read=True)
            await (await bob.send(alice_name, "hi")).wait_read()

    answering = asyncio.create_task(answer_as_bob())
    async with Client(mesh.api, alice_name, password, device="phone", state="alice.db") as alice:
        outgoing = await alice.send(bob_name, "hello")
        await outgoing.wait_sent()
        await outgoing.wait_delivered()
        await outgoing.wait_read()
        async for message in alice.messages():
            print(message.sender, message.text, message.id, message.sent_at)
            await message.mark_read()
            seen.append(message)
            break
        await asyncio.wait_for(answering, DEADLINE_S)
    assert (tmp_path / "alice.db").exists()
    assert capsys.readouterr().out == f"{bob_name} hi {seen[0].id} {seen[0].sent_at}\n"
    assert abs(seen[0].sent_at.timestamp() - time.time()) < DEADLINE_S


# ---------------------------------------------------------------- installations


async def receive_for_good(mesh: RealMesh, sender: Client, reader: Client, name: str, text: str) -> None:
    """Send a text that no later state file of the reader's device gets: also what was stored of it is marked."""
    await send_and_wait(sender, name, text)
    assert await receive_texts(reader, 1) == [text]
    await until(lambda: stored_rows(mesh, reader.device_id)[0] == 0, "an unread row stays in the queue")


async def test_a_new_state_file_takes_over_the_queue_of_its_device(mesh: RealMesh) -> None:
    """R14: lost state file."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice:
        async with client(mesh, bob_name) as lost:
            await receive_for_good(mesh, alice, lost, bob_name, "one")
        await send_and_wait(alice, bob_name, "two", "three")
        async with client(mesh, bob_name, state="-new") as new:
            assert new.device_id == lost.device_id
            assert await receive_texts(new, 2) == ["two", "three"]
            await expect_nothing_more(new, alice, bob_name)


async def test_an_installation_that_is_taken_over_while_connected_stops(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as old:
        await receive_for_good(mesh, alice, old, bob_name, "one")
        reading = asyncio.create_task(receive(old, 1))
        async with client(mesh, bob_name, state="-new") as new:
            with pytest.raises(Refused, match="taken over with another state file") as refusal:
                await asyncio.wait_for(reading, DEADLINE_S)
            assert refusal.value.code is Code.REPLACED
            with pytest.raises(Refused, match="taken over"):
                await old.send(alice_name, "still there?")
            await expect_nothing_more(new, alice, bob_name)
            await send_and_wait(new, alice_name, "it is me now")
            assert await receive_texts(alice, 1) == ["it is me now"]


async def test_messages_of_a_sender_with_a_new_state_file_arrive(mesh: RealMesh) -> None:
    """R14: the new file counts from 1 again, and no message counts as a duplicate of an earlier one."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, bob_name) as bob:
        for state in ("", "-second", "-third"):
            async with client(mesh, alice_name, state=state) as alice:
                await send_and_wait(alice, bob_name, "one", "two", "three")
            assert await receive_texts(bob, 3) == ["one", "two", "three"]


async def test_a_second_process_on_a_state_file_is_refused(mesh: RealMesh) -> None:
    (alice_name,) = await mesh.register_users("alice")
    async with client(mesh, alice_name):
        file = str(mesh.folder / f"{alice_name}-phone.db")
        refused = mesh.cli(
            "listen", alice_name, "--api", mesh.api, "--device", "phone", "--state", file, "--password-stdin",
            stdin=PASSWORD + "\n",
        )  # fmt: skip
        assert refused.returncode == 2
        assert refused.stderr == (
            f"meshim: Another process uses the state file {file}: "
            "stop it, or be another device with a file of its own.\n"
        )


APPLICATION = """
import asyncio, sys
from meshim.client import Client
async def main(api, name, password, state, stuck):
    async with Client(api, name, password, device="phone", state=state) as client:
        async for message in client.messages():
            print(message.text, flush=True)
            if message.text == stuck:
                await asyncio.Event().wait()
            await message.mark_read()
asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_application_killed_while_it_handles_a_message_gets_it_repeated(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    received: list[str] = []
    async with client(mesh, alice_name) as alice:
        sending = asyncio.create_task(send_and_wait(alice, bob_name, *(str(number) for number in range(200))))
        for stuck in ("3", "77", "150", "199"):
            arguments = (mesh.api, bob_name, PASSWORD, str(mesh.folder / f"{bob_name}-app.db"), stuck)
            application = await asyncio.create_subprocess_exec(
                sys.executable, "-c", APPLICATION, *arguments, stdout=subprocess.PIPE
            )
            assert application.stdout is not None
            while not received or received[-1] != stuck or len(received) != len(set(received)) + _repeated(received):
                line = await asyncio.wait_for(application.stdout.readline(), DEADLINE_S)
                received.append(line.decode().strip())
            application.send_signal(signal.SIGKILL)
            await application.wait()
        await sending
    assert {text for text, count in Counter(received).items() if count == 2} == {"3", "77", "150"}
    assert max(Counter(received).values()) == 2
    assert sorted(set(received), key=int) == list(dict.fromkeys(received)) == [str(number) for number in range(200)]


def _repeated(received: list[str]) -> int:
    return sum(count - 1 for count in Counter(received).values())


# ---------------------------------------------------------------- processes that end


async def _connector_of(mesh: RealMesh, device: Client) -> str:
    """The name of the connector that holds the connection of a device."""
    await asyncio.wait_for(device.online(), DEADLINE_S)
    roles = mesh.status()["roles"]
    return str(next(role["name"] for role in roles if role["endpoint"] == device._shell.connection._last))


@pytest.mark.parametrize(("ending", "within_s"), [(signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)])
async def test_messages_arrive_within_seconds_of_the_end_of_a_connector(
    mesh: RealMesh, ending: signal.Signals, within_s: float
) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
        await send_and_wait(alice, bob_name, "before")
        assert await receive_texts(bob, 1) == ["before"]
        name = await _connector_of(mesh, bob)
        ended, began = mesh.signal(name, ending), time.monotonic()
        said = await alice.send(bob_name, "after")
        answered = await bob.send(alice_name, "after")
        assert await receive_texts(bob, 1) + await receive_texts(alice, 1) == ["after", "after"]
        await asyncio.wait_for(asyncio.gather(said.wait_delivered(), answered.wait_delivered()), DEADLINE_S)
        assert time.monotonic() - began < within_s
        await mesh.restarted(name, ended)


async def test_clients_of_a_stopping_connector_move_within_a_second(mesh: RealMesh) -> None:
    names = await mesh.register_users(*(f"user{number}" for number in range(6)), friends=False)
    clients = [await client(mesh, name).__aenter__() for name in names]
    connectors = [await _connector_of(mesh, each) for each in clients]
    moving = [each for each, connector in zip(clients, connectors, strict=True) if connector == connectors[0]]
    ended, began = mesh.signal(connectors[0], signal.SIGTERM), time.monotonic()
    await until(
        lambda: not any(each._shell.connection.online.is_set() for each in moving),
        "the connector does not close their sessions",
    )
    await asyncio.wait_for(asyncio.gather(*(each.online() for each in moving)), DEADLINE_S)
    assert time.monotonic() - began < 1.0
    for each in clients:
        await each.__aexit__(None, None, None)
    await mesh.restarted(connectors[0], ended)


async def test_a_killed_transfer_loses_nothing(mesh: RealMesh) -> None:
    """R6: transfer dies."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    lines = [str(number) for number in range(600)]
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
        reading = asyncio.create_task(receive(bob, len(lines), within_s=60.0))
        for index, line in enumerate(lines):
            await alice.send(bob_name, line)
            if index in (100, 400):
                name = "t1" if index == 100 else "t2"
                await mesh.restarted(name, mesh.signal(name, signal.SIGKILL))
        messages = await reading
        assert [message.text for message in messages] == lines
        assert {message.order for message in messages} == {OrderFlag.IN_ORDER}
        await asyncio.wait_for(alice.settled(), DEADLINE_S)
        await expect_nothing_more(bob, alice, bob_name)


# ---------------------------------------------------------------- without REST, or without a mesh


async def test_clients_with_a_token_talk_while_rest_is_stopped(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    for name in (alice_name, bob_name):
        async with client(mesh, name):
            pass
    stopped = mesh.signal("r1", signal.SIGSTOP)
    try:
        async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
            began = time.monotonic()
            await send_and_wait(alice, bob_name, "no REST")
            assert await receive_texts(bob, 1) == ["no REST"]
            for each in (alice, bob):
                async with disconnected(each):
                    pass
            await send_and_wait(bob, alice_name, "still none")
            assert await receive_texts(alice, 1) == ["still none"]
            assert time.monotonic() - began < 10.0
    finally:
        os.kill(stopped, signal.SIGCONT)


async def test_a_client_started_before_the_mesh_connects_once_it_is_up(tmp_path: Path) -> None:
    async with restartable_mesh(tmp_path) as mesh:
        running = await mesh.up()
        alice_name, bob_name = await running.register_users("alice", "bob")
        for name in (alice_name, bob_name):
            async with client(running, name) as each:
                await each.online()
        await mesh.down()
        async with client(running, alice_name) as alice, client(running, bob_name) as bob:
            outgoing = await alice.send(bob_name, "is anybody there?")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(alice.online(), 0.5)
            await mesh.up()
            began = time.monotonic()
            await asyncio.gather(alice.online(), bob.online())
            assert time.monotonic() - began < 10.0
            assert await receive_texts(bob, 1) == ["is anybody there?"]
            await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)


# ---------------------------------------------------------------- refusals


async def test_a_wrong_password_is_refused_and_the_state_file_unlocked(mesh: RealMesh) -> None:
    (alice_name,) = await mesh.register_users("alice")
    file = mesh.folder / f"{alice_name}-phone.db"
    with pytest.raises(ApiError, match="name or the password is wrong"):
        await Client(mesh.api, alice_name, "wrong", device="phone", state=file).__aenter__()
    async with client(mesh, alice_name) as alice:
        await asyncio.wait_for(alice.online(), DEADLINE_S)


async def test_a_body_over_the_limit_is_refused_by_the_library_and_by_the_connector(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
        await asyncio.wait_for(alice.online(), DEADLINE_S)
        with pytest.raises(Refused, match=r"The message has 65,54\d bytes, 65,508 are allowed") as refusal:
            await alice.send(bob_name, "x" * 65_536)
        assert refusal.value.code is Code.TOO_LARGE
        alice._shell.sender.body_bytes = 1 << 20  # as in a library with a higher limit
        refused = await alice.send(bob_name, "x" * 65_536)
        with pytest.raises(Refused, match=r"The body has 6557\d bytes, 65536 are allowed") as refusal:
            await asyncio.wait_for(refused.wait_sent(), DEADLINE_S)
        assert refusal.value.code is Code.TOO_LARGE
        assert refused.state == "rejected"
        largest = "x" * 65_500
        await send_and_wait(alice, bob_name, largest)
        assert await receive_texts(bob, 1) == [largest]  # at once: the refused message leaves no gap


async def test_the_library_refuses_to_send_to_a_user_who_is_no_friend(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob", friends=False)
    async with client(mesh, alice_name) as alice:
        with pytest.raises(Refused, match="are not friends"):
            await alice.send(bob_name, "hello")
        with pytest.raises(Refused, match="no user"):
            await alice.send("nobody-of-that-name", "hello")


async def test_after_the_end_of_a_friendship_stored_messages_come_and_no_new_ones(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, bob_name):
        pass
    async with client(mesh, alice_name) as alice:
        await send_and_wait(alice, bob_name, "before")
        async with Api(mesh.api) as api:
            await api.login(bob_name, PASSWORD)
            await api.remove(alice_name)
        accepted, refusal = ["before"], None
        while refusal is None:  # until the connector of alice hears of the change
            outgoing = await alice.send(bob_name, f"after {len(accepted)}")
            try:
                await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
                accepted.append(f"after {len(accepted)}")
            except Refused as error:
                refusal = error
        assert (refusal.code, refusal.sentence) == (Code.NOT_FRIENDS, "Sender and recipient are not friends.")
        with pytest.raises(Refused, match="is not your friend: ask with"):
            await alice.send(bob_name, "and again")  # now the library of alice knows it too
        async with client(mesh, bob_name) as bob:
            assert await receive_texts(bob, len(accepted)) == accepted
            await mesh.make_friends(alice_name, bob_name)
            await expect_nothing_more(bob, alice, bob_name)


async def test_another_users_state_file_is_refused(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name):
        pass
    file = mesh.folder / f"{alice_name}-phone.db"
    with pytest.raises(UsageError, match=f"This state file is of {alice_name} on phone, not of {bob_name} on phone"):
        await Client(mesh.api, bob_name, PASSWORD, device="phone", state=file).__aenter__()
