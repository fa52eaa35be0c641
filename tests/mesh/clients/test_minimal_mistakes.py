"""What the minimal clients say to a newcomer who mistypes: one line, and the commands behind it are obeyed."""

import asyncio
import re
import signal
import sqlite3
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshim.client.rest import Api
from scripts.harness.clients import minimal_example
from scripts.harness.clients.minimal_example import NODE_20, Language
from tests.mesh.harness.fault_injection import short_timers
from tests.mesh.harness.library_client import client, receive
from tests.mesh.harness.minimal_process import MinimalDevice, minimal
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running

BOTH: list[Language] = ["python", "javascript"]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), short_timers()) as started:
        yield started


@pytest.mark.parametrize("language", BOTH)
async def test_a_command_that_is_refused_holds_nothing_back(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    a, b = await mesh.register_users("alice", "bob")
    [c] = await mesh.register_users("carol")
    wrong = {
        f"send {b}x hello": "not_friends",
        f"send {c} hello": "not_friends",
        f"add {b}x": "no_such_user",
        "add a/b": "not_found",
        "add a?b%": "bad_name",
        "add zoë": "bad_name",
        f"add {a}": "yourself",
        "add": "method_not_allowed",
        f"sned {b} hello": "unknown_command",
        "": "unknown_command",
    }
    async with minimal(language, mesh.api, a, tmp_path / "a") as alice:
        alice.command(*wrong, f"send {b} hello", "quit")
        await alice.until(lambda: alice.queued == 1, "it does not obey the command behind those that are refused")
        await alice.quit()
    refused = [event for event in alice.events if event["event"] == "refused"]
    assert {event["command"]: event["code"] for event in refused} == wrong
    assert len(refused) == len(wrong)
    assert alice.count("sent", "delivered") == 1


@pytest.mark.parametrize("language", BOTH)
async def test_a_friendship_is_asked_for_and_told(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    a, b = await mesh.register_users("alice", "bob", friends=False)

    def states(device: MinimalDevice) -> list[str]:
        return [state for event in device.events if event["event"] == "relations" for state in event["states"].values()]

    async with (
        minimal(language, mesh.api, a, tmp_path / "a") as alice,
        minimal(language, mesh.api, b, tmp_path / "b") as bob,
    ):
        alice.command(f"add {b}")
        await bob.until(lambda: "asked" in states(bob), "he is not told of the request")
        await alice.until(lambda: "requested" in states(alice), "she is not told of it")
        bob.command(f"add {a}", f"send {a} hello")
        await alice.until(lambda: alice.texts == ["hello"], "nothing arrives")
        await alice.until(lambda: "friends" in states(alice), "she is not told of the friendship")
        await bob.until(lambda: "friends" in states(bob), "he is not told of the friendship")


@pytest.mark.parametrize("language", BOTH)
async def test_any_name_is_a_friend_as_others_are(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    """In JavaScript every object has a `__proto__` and a `constructor`."""
    [a] = await mesh.register_users("alice")
    names = ["__proto__", "constructor"] if language == "javascript" else ["__init__"]
    async with Api(mesh.api) as api:
        await api.import_users([(name, PASSWORD) for name in names])
    await mesh.make_friends(a, *names)
    async with (
        minimal(language, mesh.api, a, tmp_path / "a") as alice,
        minimal("python", mesh.api, names[0], tmp_path / "p") as friend,
    ):
        alice.send(names[0], "hello")
        await friend.until(lambda: friend.texts == ["hello"], "nothing arrives")
        friend.send(a, "hello yourself")
        await alice.until(lambda: alice.texts == ["hello yourself"], "nothing arrives")
        assert alice.events[-1]["sender"] == names[0]


async def start(language: Language, folder: Path, *arguments: str, node: str = "") -> Process:
    command = minimal_example.command(language, folder)
    command[:1] = [node] if node else command[:1]
    return await asyncio.create_subprocess_exec(*command, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)


async def last_words(process: Process) -> str:
    """Return what it says on standard error; it ends with code 1."""
    async with asyncio.timeout(DEADLINE_S):
        _, said = await process.communicate()
    assert process.returncode == 1
    return said.decode().strip()


@pytest.mark.parametrize("language", BOTH)
async def test_without_arguments_it_says_which(tmp_path: Path, language: Language) -> None:
    said = await last_words(await start(language, tmp_path / language, "http://127.0.0.1:1"))
    assert f"{minimal_example.FILES[language]} REST NAME PASSWORD STATE" in said


@pytest.mark.parametrize("language", BOTH)
async def test_a_wrong_password_is_one_line(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    [a] = await mesh.register_users("alice")
    said = await last_words(await start(language, tmp_path / language, mesh.api, a, "wrong", str(tmp_path / "a")))
    assert re.fullmatch(r".*bad_credentials", said)


@pytest.mark.parametrize("language", BOTH)
async def test_a_state_belongs_to_one_user(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    a, b = await mesh.register_users("alice", "bob")
    async with minimal(language, mesh.api, a, tmp_path / "a") as alice:
        alice.send(b, "hello")
        await alice.quit()
    said = await last_words(await start(language, tmp_path / language, mesh.api, b, PASSWORD, str(tmp_path / "a")))
    assert re.fullmatch(rf".* device of {a}: .*", said)


@pytest.mark.parametrize("language", BOTH)
async def test_a_state_that_cannot_be_opened_is_one_line(tmp_path: Path, language: Language) -> None:
    state = str(tmp_path / "no such folder" / "a")
    said = await last_words(await start(language, tmp_path / language, "http://127.0.0.1:1", "alice", PASSWORD, state))
    assert "\n" not in said
    assert re.search(r"unable to open|no such file", said)


async def test_a_state_that_is_in_use_is_one_line(tmp_path: Path) -> None:
    state = sqlite3.connect(tmp_path / "a")
    state.executescript("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE")
    process = await start("python", tmp_path / "python", "http://127.0.0.1:1", "alice", PASSWORD, str(tmp_path / "a"))
    assert await last_words(process) == "database is locked"
    state.close()


async def test_node_20_needs_an_option(tmp_path: Path) -> None:
    arguments = ("http://127.0.0.1:1", "alice", PASSWORD, str(tmp_path / "a"))
    said = await last_words(await start("javascript", tmp_path / "node", *arguments, node=str(NODE_20)))
    assert said == "This version of Node needs the option --experimental-websocket."


async def test_ctrl_c_ends_it_without_a_word(mesh: RealMesh, tmp_path: Path) -> None:
    """Node ends by the signal itself."""
    [a] = await mesh.register_users("alice")
    process = await start("python", tmp_path / "python", mesh.api, a, PASSWORD, str(tmp_path / "a"))
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        while b'"online"' not in await process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert (process.returncode, said) == (130, b"")


FULL = """
import { Client, Disk, fileDisk } from "./minimal_client.mjs";
const [, , api, name, password, state] = process.argv, file = await fileDisk(state);
let room = 1; // for the login
const disk = new Disk(file, (changes) => {
  room -= 1;
  if (room >= 0) return file.write(changes);
  room = 100; // too late
  throw new Error("no space left");
});
const client = new Client(api, name, password, disk, (event) => console.log(JSON.stringify(event)));
client.lines.push("send PEER hello");
await client.run().catch(({ message }) => { console.error(message); process.exit(1); });
"""


async def test_a_full_disk_ends_it_and_what_was_not_written_is_not_said_to_be_queued(
    mesh: RealMesh, tmp_path: Path
) -> None:
    a, b = await mesh.register_users("alice", "bob")
    command = minimal_example.command("javascript", tmp_path / "javascript")
    program = tmp_path / "javascript" / "full.mjs"
    program.write_text(FULL.replace("PEER", b))
    arguments = (mesh.api, a, PASSWORD, str(tmp_path / "a"))
    process = await asyncio.create_subprocess_exec(command[0], str(program), *arguments, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(DEADLINE_S):
        said, error = await process.communicate()
    assert error.decode().strip() == "no space left"
    assert b'"queued"' not in said
    async with minimal("javascript", mesh.api, a, tmp_path / "a") as again, client(mesh, b) as bob:
        again.send(b, "hello")
        assert [message.text for message in await receive(bob, 1)] == ["hello"]
        await again.quit()
