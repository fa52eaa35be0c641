"""`meshim send`, `listen` and `chat` on a real mesh, over pipes."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.mesh.harness.library_client import client, receive, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, restartable_mesh

ID = "[0-9a-f]{32}"
NO_CONNECTOR = r"The connector cannot be reached \(tcp://.*\)\.\n"
"""What a command says of a mesh that is down."""


def connected(name: str) -> str:
    """What `listen` says once it is connected."""
    return f"Connected: messages for {name} are printed as they come.  Ctrl-C ends.\n"


class Meshim:
    """Runs the `meshim` command as one user of a machine, with the state files in `home`."""

    def __init__(self, api: str, home: Path) -> None:
        self.api = api
        self.home = home
        self._environment = {**os.environ, "XDG_STATE_HOME": str(home), "MESHIM_API": api, "TERM": "dumb"}

    @asynccontextmanager
    async def start(self, *arguments: str, password: str | None = PASSWORD) -> AsyncIterator[Process]:
        """A running command, which is killed after the block if it has not ended."""
        stdin = [] if password is None else ["--password-stdin"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meshim", *arguments, *stdin,
            stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self._environment,
        )  # fmt: skip
        assert process.stdin is not None
        if password is not None:
            process.stdin.write(f"{password}\n".encode())
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(
        self, *arguments: str, password: str | None = PASSWORD, stdin: str = ""
    ) -> tuple[int | None, str, str]:
        """Run a command to its end; return (exit code, standard output, standard error)."""
        async with self.start(*arguments, password=password) as process:
            output, errors = await asyncio.wait_for(process.communicate(stdin.encode()), DEADLINE_S)
            return process.returncode, output.decode(), errors.decode()


async def line(process: Process) -> str:
    """The next line of standard output."""
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)).decode().rstrip("\n")


async def lines_until(process: Process, last: str) -> list[str]:
    """The lines of standard output up to the first that contains `last`."""
    found = [await line(process)]
    while last not in found[-1]:
        assert found[-1], f"{last!r} did not come: {found}"
        found.append(await line(process))
    return found


async def type_line(process: Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n".encode())
    await process.stdin.drain()


async def ended(process: Process) -> int:
    return await asyncio.wait_for(process.wait(), DEADLINE_S)


@pytest.fixture
def meshim(mesh: RealMesh, tmp_path: Path) -> Meshim:
    return Meshim(mesh.api, tmp_path)


# ---------------------------------------------------------------- send and listen


async def test_send_prints_the_state_and_listen_prints_the_message(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    code, output, errors = await meshim.run("send", alice, bob, "hello there")
    assert (code, errors) == (0, "")
    assert re.fullmatch(f"{ID} sent\n", output)

    code, output, errors = await meshim.run("listen", bob, "--json", "--count", "1")
    assert (code, errors) == (0, connected(bob))
    heard = json.loads(output)
    assert {name: heard[name] for name in ("sender", "recipient", "text", "own", "stored", "place", "problem")} == {
        "sender": alice,
        "recipient": bob,
        "text": "hello there",
        "own": False,
        "stored": True,
        "place": "in_order",
        "problem": "",
    }

    # Both have a token in their state files now: neither needs a password.
    code, output, errors = await meshim.run("send", alice, bob, "-", password=None, stdin="two\nlines\n")
    assert (code, errors) == (0, "")
    code, output, _ = await meshim.run("listen", bob, "--count", "1", password=None)
    assert code == 0
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {alice}: two\n    lines\n", output)


async def test_send_ends_after_its_timeout_with_what_was_reached(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    code, output, errors = await meshim.run("send", alice, bob, "hello", "--wait", "read", "--timeout", "1.5")
    assert (code, output) == (1, "")
    waiting, reason = errors.splitlines()
    assert waiting.startswith("It is safe in the mesh; waiting until it is read")
    assert reason == "meshim: The message was not read within 1.5 s."


@pytest.mark.parametrize("state", ["sent", "delivered", "read"])
async def test_send_waits_for_the_given_state(mesh: RealMesh, meshim: Meshim, state: str) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    async with meshim.start("listen", bob) as listening:
        code, output, errors = await meshim.run("send", alice, bob, "hello", "--wait", state)
        assert (code, errors) == (0, "")
        reached = output.split()[1]
        states = ["sent", "delivered", "read"]
        assert states.index(reached) >= states.index(state)
        assert (await line(listening)).endswith(f"{alice}: hello")
        listening.send_signal(signal.SIGINT)
        assert await ended(listening) == 130


async def test_listen_sends_read_receipts_before_it_ends_unless_no_read(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    async with client(mesh, alice) as sender:
        unread, read = [await sender.send(bob, text) for text in ("unread", "read")]
        assert (await meshim.run("listen", bob, "--count", "1", "--no-read"))[0] == 0
        assert (await meshim.run("listen", bob, "--count", "1"))[0] == 0
        await asyncio.wait_for(read.wait_read(), DEADLINE_S)  # although `listen` has ended
        assert unread.state == "delivered"


async def test_listen_shows_messages_from_other_devices_of_the_same_user(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    assert (await meshim.run("send", alice, bob, "hello"))[0] == 0  # so that the mesh knows this device
    async with meshim.start("listen", alice, "--json") as listening, client(mesh, alice) as phone:
        await send_and_wait(phone, bob, "from my phone")
        heard = json.loads(await line(listening))
        assert (heard["own"], heard["sender"], heard["recipient"], heard["sender_device"]) == (
            True, alice, bob, phone.device_id,
        )  # fmt: skip


CONTROL_CHARACTERS = "\x1b[31mred\x07 \u202eevil\r\nbob: I owe you\x9b1A \x00 \u2028 tab\tend"


@pytest.mark.parametrize("command", ["listen", "chat"])
async def test_control_characters_are_not_printed(mesh: RealMesh, meshim: Meshim, command: str) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    async with client(mesh, alice) as sender:
        await send_and_wait(sender, bob, CONTROL_CHARACTERS)
    arguments = ("listen", bob) if command == "listen" else ("chat", bob, "--to", alice)
    async with meshim.start(*arguments) as process:
        shown = await lines_until(process, "end")
    assert shown[0].endswith(f"{alice}: \ufffd[31mred\ufffd \ufffdevil\ufffd")
    assert shown[1:] == ["    bob: I owe you\ufffd1A \ufffd \ufffd tab\tend"]


async def test_listen_ends_quietly_when_its_output_is_closed(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    async with client(mesh, alice) as sender, meshim.start("listen", bob) as listening:
        await send_and_wait(sender, bob, "one")
        assert (await line(listening)).endswith("one")
        assert listening.stdout is not None
        listening.stdout._transport.close()  # type: ignore[attr-defined]  # as `head -1` does
        await send_and_wait(sender, bob, "two", "three")
        assert await ended(listening) == 1
        assert listening.stderr is not None
        assert (await listening.stderr.read()).decode() == connected(bob)


# ---------------------------------------------------------------- chat


async def test_chat_shows_the_state_of_each_line(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    async with meshim.start("chat", alice, "--to", bob) as of_alice, meshim.start("chat", bob, "--to", alice) as of_bob:
        await type_line(of_alice, "hi bob")
        assert await line(of_bob) == f"{alice}: hi bob"
        assert await lines_until(of_alice, "read") == ["  #1 sent", "  #1 delivered", "  #1 read"]
        await type_line(of_bob, "")
        await type_line(of_bob, "hi alice")
        assert await line(of_alice) == f"{bob}: hi alice"
        assert await lines_until(of_bob, "read") == ["  #1 sent", "  #1 delivered", "  #1 read"]
        assert of_bob.stdin is not None
        of_bob.stdin.close()
        assert await ended(of_bob) == 0
        await type_line(of_alice, "are you there?")
        assert await line(of_alice) == "  #2 sent"
        assert of_alice.stdin is not None
        of_alice.stdin.close()
        assert await ended(of_alice) == 0
        assert of_alice.stderr is not None
        assert (await of_alice.stderr.read()).decode() == f"You are {alice} and talk with {bob}.  Ctrl-D ends.\n"
    code, output, _ = await meshim.run("listen", bob, "--count", "1", "--json")
    assert code == 0
    assert json.loads(output)["text"] == "are you there?"


async def test_chat_from_a_pipe_sends_all_and_ends(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    lines = [f"line {number}" for number in range(300)]
    code, output, errors = await meshim.run("chat", alice, "--to", bob, stdin="\n".join(lines))
    assert code == 0
    assert errors == f"You are {alice} and talk with {bob}.  Ctrl-D ends.\n"
    assert sorted(output.splitlines()) == sorted(f"  #{number} sent" for number in range(1, 301))
    async with client(mesh, bob) as reader:
        assert await receive_texts(reader, 300) == lines


async def test_chat_goes_on_after_a_line_that_is_refused(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    code, output, errors = await meshim.run("chat", alice, "--to", bob, stdin="x" * 70_000 + "\nshort\n")
    assert code == 0
    assert output == "  #2 sent\n"
    assert "  #1 not sent: The message has 70,0" in errors


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ("send", "ALICE", "CAROL", "hi"),
            1,
            "You and CAROL are not friends, and neither has asked: ask with `meshim friend add ALICE CAROL`.",
        ),
        (("send", "ALICE", "nobody-at-all", "hi"), 1, "There is no user nobody-at-all."),
        (("send", "ALICE", "no body", "hi"), 1, "'no body' cannot be the name of a user"),
        (("send", "ALICE", "ALICE", "hi"), 1, "Nobody writes to oneself"),
        (("send", "ALICE", "BOB", ""), 2, "There is nothing to send: the text is empty."),
        (("send", "ALICE", "BOB", "x" * 70_000), 1, "The message has 70,006 bytes, 65,508 are allowed"),
        (("chat", "ALICE"), 2, "Missing option '--to'. Try `meshim chat --help`."),
        (("listen", "ALICE", "--count", "0"), 2, ""),
    ],
)
async def test_errors_are_one_sentence_and_an_exit_code(
    mesh: RealMesh, meshim: Meshim, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    (carol,) = await mesh.register_users("carol")
    names = {"ALICE": alice, "BOB": bob, "CAROL": carol}
    done = await meshim.run(*(names.get(argument, argument) for argument in arguments))
    assert done[:2] == (code, "")
    assert done[2].count("\n") == 1
    assert done[2].startswith("meshim: ")
    if sentence:
        assert sentence.replace("CAROL", carol).replace("ALICE", alice) in done[2]


async def test_a_wrong_password_is_one_sentence(mesh: RealMesh, meshim: Meshim) -> None:
    (alice,) = await mesh.register_users("alice")
    done = await meshim.run("listen", alice, password="wrong")
    assert done == (1, "", "meshim: The name or the password is wrong.\n")


async def test_without_a_terminal_the_password_has_to_be_on_standard_input(mesh: RealMesh, meshim: Meshim) -> None:
    (alice,) = await mesh.register_users("alice")
    done = await meshim.run("listen", alice, password=None)
    assert done == (2, "", "meshim: There is no terminal to ask for the password: use --password-stdin.\n")


async def test_an_unreachable_mesh_is_one_sentence(tmp_path: Path) -> None:
    meshim = Meshim("http://127.0.0.1:9", tmp_path)
    code, output, errors = await meshim.run("send", "alice", "bob", "hello")
    assert (code, output) == (1, "")
    assert re.fullmatch(r"meshim: Cannot reach meshim at http://127\.0\.0\.1:9 \(.*\): is it running, .*\n", errors)


async def test_while_the_mesh_is_down_send_keeps_the_message_and_says_so(tmp_path: Path) -> None:
    async with restartable_mesh(tmp_path) as mesh:
        running = await mesh.up()
        alice, bob = await running.register_users("alice", "bob")
        meshim = Meshim(running.api, tmp_path / "home")
        assert (await meshim.run("send", alice, bob, "one"))[0] == 0
        await mesh.down()
        waiting = f"Waiting for a connector of the mesh at {running.api} (the message is kept) ...\n"
        kept = "The message is kept, and goes out when this device connects again.\n"
        for text, ending, exit_code in (("two", signal.SIGINT, 130), ("three", signal.SIGTERM, 143)):
            async with meshim.start("send", alice, bob, text) as sending:
                assert await error_line(sending) == waiting
                assert re.fullmatch(NO_CONNECTOR, await error_line(sending))
                sending.send_signal(ending)
                assert await error_line(sending) == kept
                assert await ended(sending) == exit_code
        code, output, errors = await meshim.run("send", alice, bob, "four", "--timeout", "0.5")
        assert (code, output, errors) == (1, "", f"{kept}meshim: The message was not sent within 0.5 s.\n")
        async with meshim.start("send", alice, bob, "five") as sending:
            assert await error_line(sending) == waiting
            await mesh.up()
            assert re.fullmatch(f"{ID} sent", await line(sending))
            assert await ended(sending) == 0
        async with client(running, bob) as reader:
            texts = [message.text for message in await receive(reader, 5)]
            assert texts == ["one", "two", "three", "four", "five"]


async def error_line(process: Process) -> str:
    """The next line of standard error."""
    assert process.stderr is not None
    return (await asyncio.wait_for(process.stderr.readline(), DEADLINE_S)).decode()


async def test_listen_and_chat_say_when_the_connection_is_lost_and_when_it_is_back(tmp_path: Path) -> None:
    async with restartable_mesh(tmp_path) as mesh:
        running = await mesh.up()
        alice, bob = await running.register_users("alice", "bob")
        meshim = Meshim(running.api, tmp_path / "home")
        waiting = f"Waiting for a connector of the mesh at {running.api}"
        async with meshim.start("listen", bob) as listening, meshim.start("chat", alice, "--to", bob) as chatting:
            assert await error_line(listening) == connected(bob)
            assert await error_line(chatting) == f"You are {alice} and talk with {bob}.  Ctrl-D ends.\n"
            await type_line(chatting, "hello")
            assert await lines_until(chatting, "sent") == ["  #1 sent"]  # so that it is connected
            await mesh.down()
            assert await error_line(listening) == f"The connection is lost.  {waiting} ...\n"
            assert await error_line(chatting) == f"The connection is lost.  {waiting} (what you type is kept) ...\n"
            await mesh.up()
            for each in (listening, chatting):
                while (said := await error_line(each)) != "Connected again.\n":
                    assert re.fullmatch(NO_CONNECTOR, said)


# ---------------------------------------------------------------- blocks


async def test_who_has_blocked_the_peer_is_told_to_unblock_first(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    assert (await meshim.run("send", alice, bob, "hello"))[0] == 0  # the state file knows the friendship from now on
    chat = ("chat", alice, "--to", bob)
    async with meshim.start(*chat) as chatting:
        assert await error_line(chatting) == f"You are {alice} and talk with {bob}.  Ctrl-D ends.\n"
        assert (await meshim.run("friend", "block", alice, bob))[0] == 0
        reason = f"{bob} is blocked: end that with `meshim friend unblock {alice} {bob}`.\n"
        await type_line(chatting, "are you there?")
        output, errors = await asyncio.wait_for(chatting.communicate(b""), DEADLINE_S)
        assert (output.decode(), errors.decode()) == (f"  #1 not sent: {reason}", "")
    for arguments in (("send", alice, bob, "hello"), chat):
        assert await meshim.run(*arguments) == (1, "", f"meshim: {reason}")
    first = f"meshim: You have blocked {bob}: unblock first with `meshim friend unblock {alice} {bob}`.\n"
    for action in ("add", "accept", "refuse", "remove"):
        assert await meshim.run("friend", action, alice, bob) == (1, "", first)

    assert (await meshim.run("friend", "unblock", alice, bob))[0] == 0
    not_friends = f"meshim: {bob} is not your friend: ask with `meshim friend add {alice} {bob}`.\n"
    assert await meshim.run("send", alice, bob, "hello") == (1, "", not_friends)


async def test_send_tells_of_a_block_that_its_state_file_does_not_know(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    assert (await meshim.run("send", alice, bob, "hello"))[0] == 0
    assert (await meshim.run("friend", "block", alice, bob))[0] == 0
    reason = f"meshim: {bob} is blocked: end that with `meshim friend unblock {alice} {bob}`.\n"
    assert await meshim.run("send", alice, bob, "hello") == (1, "", reason)
