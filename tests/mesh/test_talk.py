"""send, listen and chat on a real mesh, over pipes, as scripts and people use them."""

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

from tests.mesh.conversations import client, restartable, say, take, texts
from tests.mesh.real_mesh import DEADLINE_S, PASSWORD, RealMesh

ID = "[0-9a-f]{32}"


class Meshim:
    """The command line of one machine: its state files are in `home`."""

    def __init__(self, api: str, home: Path) -> None:
        self.api = api
        self.home = home
        self._environment = {**os.environ, "XDG_STATE_HOME": str(home), "MESHIM_API": api, "TERM": "dumb"}

    @asynccontextmanager
    async def starts(self, *arguments: str, password: str | None = PASSWORD) -> AsyncIterator[Process]:
        """A command under way; it is ended if it does not end."""
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

    async def does(
        self, *arguments: str, password: str | None = PASSWORD, stdin: str = ""
    ) -> tuple[int | None, str, str]:
        """A command to its end: (exit code, standard output, standard error)."""
        async with self.starts(*arguments, password=password) as process:
            output, errors = await asyncio.wait_for(process.communicate(stdin.encode()), DEADLINE_S)
            return process.returncode, output.decode(), errors.decode()


async def line(process: Process) -> str:
    """The next line of its standard output."""
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)).decode().rstrip("\n")


async def lines_until(process: Process, last: str) -> list[str]:
    """Lines up to one that contains `last`."""
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


async def test_send_says_how_far_it_came_and_listen_prints_it(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    code, output, errors = await meshim.does("send", alice, bob, "hello there")
    assert (code, errors) == (0, "")
    assert re.fullmatch(f"{ID} sent\n", output)

    code, output, errors = await meshim.does("listen", bob, "--json", "--count", "1")
    assert (code, errors) == (0, "")
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

    # Both are known now: no password is asked for.
    code, output, errors = await meshim.does("send", alice, bob, "-", password=None, stdin="two\nlines\n")
    assert (code, errors) == (0, "")
    code, output, _ = await meshim.does("listen", bob, "--count", "1", password=None)
    assert code == 0
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {alice}: two\n    lines\n", output)


@pytest.mark.parametrize("how_far", ["sent", "delivered", "read"])
async def test_send_waits_for_as_much_as_it_is_told(mesh: RealMesh, meshim: Meshim, how_far: str) -> None:
    alice, bob = await mesh.people("alice", "bob")
    async with meshim.starts("listen", bob) as listening:
        code, output, errors = await meshim.does("send", alice, bob, "hello", "--wait", how_far)
        assert (code, errors) == (0, "")
        state = output.split()[1]
        states = ["sent", "delivered", "read"]
        assert states.index(state) >= states.index(how_far)
        assert (await line(listening)).endswith(f"{alice}: hello")
        listening.send_signal(signal.SIGINT)
        assert await ended(listening) == 130


async def test_listen_tells_that_it_was_read_before_it_ends_or_not_at_all(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    async with client(mesh, alice) as sender:
        unread, read = [await sender.send(bob, text) for text in ("unread", "read")]
        assert (await meshim.does("listen", bob, "--count", "1", "--no-read"))[0] == 0
        assert (await meshim.does("listen", bob, "--count", "1"))[0] == 0
        await asyncio.wait_for(read.wait_read(), DEADLINE_S)  # though nobody is there any more
        assert unread.state == "delivered"


async def test_listen_shows_what_other_devices_of_hers_sent(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    assert (await meshim.does("send", alice, bob, "hello"))[0] == 0  # so that this device is known
    async with meshim.starts("listen", alice, "--json") as listening, client(mesh, alice) as phone:
        await say(phone, bob, "from my phone")
        heard = json.loads(await line(listening))
        assert (heard["own"], heard["sender"], heard["recipient"], heard["sender_device"]) == (
            True, alice, bob, phone.device_id,
        )  # fmt: skip


NASTY = "\x1b[31mred\x07 \u202eevil\r\nbob: I owe you\x9b1A \x00 \u2028 tab\tend"


@pytest.mark.parametrize("command", ["listen", "chat"])
async def test_nothing_that_a_terminal_would_obey_is_printed(mesh: RealMesh, meshim: Meshim, command: str) -> None:
    alice, bob = await mesh.people("alice", "bob")
    async with client(mesh, alice) as sender:
        await say(sender, bob, NASTY)
    arguments = ("listen", bob) if command == "listen" else ("chat", bob, "--to", alice)
    async with meshim.starts(*arguments) as process:
        shown = await lines_until(process, "end")
    assert shown[0].endswith(f"{alice}: \ufffd[31mred\ufffd \ufffdevil\ufffd")
    assert shown[1:] == ["    bob: I owe you\ufffd1A \ufffd \ufffd tab\tend"]


async def test_whoever_reads_may_stop_reading(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    async with client(mesh, alice) as sender, meshim.starts("listen", bob) as listening:
        await say(sender, bob, "one")
        assert (await line(listening)).endswith("one")
        assert listening.stdout is not None
        listening.stdout._transport.close()  # type: ignore[attr-defined]  # as `head -1` does
        await say(sender, bob, "two", "three")
        assert await ended(listening) == 1
        assert listening.stderr is not None
        assert await listening.stderr.read() == b""


# ---------------------------------------------------------------- chat


async def test_two_who_chat_see_how_far_their_lines_come(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    async with meshim.starts("chat", alice, "--to", bob) as hers, meshim.starts("chat", bob, "--to", alice) as his:
        await type_line(hers, "hi bob")
        assert await line(his) == f"{alice}: hi bob"
        assert await lines_until(hers, "read") == ["  #1 sent", "  #1 delivered", "  #1 read"]
        await type_line(his, "")
        await type_line(his, "hi alice")
        assert await line(hers) == f"{bob}: hi alice"
        assert await lines_until(his, "read") == ["  #1 sent", "  #1 delivered", "  #1 read"]
        assert his.stdin is not None
        his.stdin.close()
        assert await ended(his) == 0
        await type_line(hers, "are you there?")
        assert await line(hers) == "  #2 sent"
        assert hers.stdin is not None
        hers.stdin.close()
        assert await ended(hers) == 0
        assert hers.stderr is not None
        assert (await hers.stderr.read()).decode() == f"You are {alice} and talk with {bob}.  Ctrl-D ends.\n"
    code, output, _ = await meshim.does("listen", bob, "--count", "1", "--json")
    assert code == 0
    assert json.loads(output)["text"] == "are you there?"


async def test_chat_from_a_pipe_sends_all_and_ends(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    lines = [f"line {number}" for number in range(300)]
    code, output, errors = await meshim.does("chat", alice, "--to", bob, stdin="\n".join(lines))
    assert code == 0
    assert errors == f"You are {alice} and talk with {bob}.  Ctrl-D ends.\n"
    assert sorted(output.splitlines()) == sorted(f"  #{number} sent" for number in range(1, 301))
    async with client(mesh, bob) as reader:
        assert await texts(reader, 300) == lines


async def test_chat_goes_on_after_a_line_that_is_refused(mesh: RealMesh, meshim: Meshim) -> None:
    alice, bob = await mesh.people("alice", "bob")
    code, output, errors = await meshim.does("chat", alice, "--to", bob, stdin="x" * 70_000 + "\nshort\n")
    assert code == 0
    assert output == "  #2 sent\n"
    assert "  #1 not sent: the message has 70,0" in errors


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("send", "ALICE", "STRANGER", "hi"), 1, "You and STRANGER are not friends, and neither has asked."),
        (("send", "ALICE", "nobody-at-all", "hi"), 1, "There is no user nobody-at-all."),
        (("send", "ALICE", "no body", "hi"), 1, "'no body' cannot be the name of a user"),
        (("send", "ALICE", "ALICE", "hi"), 1, "nobody writes to oneself"),
        (("send", "ALICE", "BOB", ""), 2, "There is nothing to send: the text is empty."),
        (("send", "ALICE", "BOB", "x" * 70_000), 1, "the message has 70,006 bytes, 65,508 are allowed"),
        (("chat", "ALICE"), 2, "Missing option '--to'. Try `meshim chat --help`."),
        (("listen", "ALICE", "--count", "0"), 2, ""),
    ],
)
async def test_errors_are_one_sentence_and_an_exit_code(
    mesh: RealMesh, meshim: Meshim, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    alice, bob = await mesh.people("alice", "bob")
    (stranger,) = await mesh.people("stranger")
    names = {"ALICE": alice, "BOB": bob, "STRANGER": stranger}
    done = await meshim.does(*(names.get(argument, argument) for argument in arguments))
    assert done[:2] == (code, "")
    assert done[2].count("\n") == 1
    assert done[2].startswith("meshim: ")
    if sentence:
        assert sentence.replace("STRANGER", stranger) in done[2]


async def test_a_wrong_password_is_told_in_a_sentence(mesh: RealMesh, meshim: Meshim) -> None:
    (alice,) = await mesh.people("alice")
    done = await meshim.does("listen", alice, password="wrong")
    assert done == (1, "", "meshim: The name or the password is wrong.\n")


async def test_without_a_terminal_the_password_has_to_be_on_standard_input(mesh: RealMesh, meshim: Meshim) -> None:
    (alice,) = await mesh.people("alice")
    done = await meshim.does("listen", alice, password=None)
    assert done == (2, "", "meshim: There is no terminal to ask for the password: use --password-stdin.\n")


async def test_a_mesh_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    meshim = Meshim("http://127.0.0.1:9", tmp_path)
    code, output, errors = await meshim.does("send", "alice", "bob", "hello")
    assert (code, output) == (1, "")
    assert re.fullmatch(r"meshim: Cannot reach meshim at http://127\.0\.0\.1:9 \(.*\): is it running, .*\n", errors)


async def test_while_the_mesh_is_down_messages_are_kept_and_the_person_is_told(tmp_path: Path) -> None:
    async with restartable(tmp_path) as mesh:
        running = await mesh.up()
        alice, bob = await running.people("alice", "bob")
        meshim = Meshim(running.api, tmp_path / "home")
        assert (await meshim.does("send", alice, bob, "one"))[0] == 0
        await mesh.down()
        waiting = f"Waiting for a connector of the mesh at {running.api} (what you write is kept) ...\n"
        async with meshim.starts("send", alice, bob, "two") as sending:
            assert sending.stderr is not None
            assert (await asyncio.wait_for(sending.stderr.readline(), DEADLINE_S)).decode() == waiting
            sending.send_signal(signal.SIGINT)
            told = await asyncio.wait_for(sending.stderr.readline(), DEADLINE_S)
            assert told == b"The message is kept, and goes out when this device connects again.\n"
            assert await ended(sending) == 130
        async with meshim.starts("send", alice, bob, "three") as sending:
            assert sending.stderr is not None
            assert (await asyncio.wait_for(sending.stderr.readline(), DEADLINE_S)).decode() == waiting
            await mesh.up()
            assert re.fullmatch(f"{ID} sent", await line(sending))
            assert await ended(sending) == 0
        async with client(running, bob) as reader:
            assert [message.text for message in await take(reader, 3)] == ["one", "two", "three"]
