"""Ctrl-C ends every command that runs long, and the example of the README, without a traceback."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.mesh.harness.library_client import client, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh

README = Path(__file__).parents[3] / "README.md"


@asynccontextmanager
async def program(*arguments: str, folder: Path, stdin: str = "") -> AsyncIterator[Process]:
    """A running program with an open standard input; it is killed after the block if it has not ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=folder,
        env={**os.environ, "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(README.parent), "TERM": "dumb"},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(stdin.encode())
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_with(stream: asyncio.StreamReader | None, text: str) -> str:
    """The first line that contains the text."""
    assert stream is not None
    async with asyncio.timeout(DEADLINE_S):
        while text not in (line := (await stream.readline()).decode()):
            assert line, f"{text!r} did not come"
    return line


async def interrupted(process: Process, by: signal.Signals = signal.SIGINT) -> tuple[int | None, str, str]:
    """Press Ctrl-C; return exit code, and what came on standard output and standard error from then on."""
    process.send_signal(by)
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize(
    ("by", "expected"),
    [(signal.SIGINT, (130, "", "\n")), (signal.SIGTERM, (143, "", ""))],  # SIGINT: the line after ^C
    ids=["SIGINT", "SIGTERM"],
)
@pytest.mark.parametrize(
    ("command", "stream", "running"),
    [
        (("listen", "ALICE"), "stderr", "Connected: "),
        (("chat", "ALICE", "--to", "BOB"), "stderr", "You are "),
        (("send", "ALICE", "BOB", "hello", "--wait", "delivered"), "stderr", "It is safe in the mesh"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
async def test_a_command_of_a_device_ends(
    mesh: RealMesh,
    tmp_path: Path,
    command: tuple[str, ...],
    stream: str,
    running: str,
    by: signal.Signals,
    expected: tuple[int, str, str],
) -> None:
    alice, bob = await mesh.register_users("alice", "bob")
    typed = [{"ALICE": alice, "BOB": bob}.get(word, word) for word in command]
    arguments = ("-m", "meshim", *typed, "--api", mesh.api, "--password-stdin")
    async with program(*arguments, folder=tmp_path, stdin=f"{PASSWORD}\n") as process:
        await line_with(getattr(process, stream), running)
        assert await interrupted(process, by) == expected


@pytest.mark.parametrize(("role", "name"), [("connector", "c9"), ("transfer", "t9"), ("writer", "w9"), ("rest", "r9")])
async def test_a_role_ends(mesh: RealMesh, tmp_path: Path, role: str, name: str) -> None:
    text = mesh.data.topology.read_text()
    file = tmp_path / "mesh.yaml"
    file.write_text(re.sub(rf"\b{name[0]}1\b", name, text))
    arguments = ("-m", "meshim", role, name, "-t", str(file), "--data", str(mesh.data.root))
    async with program(*arguments, folder=tmp_path) as process:
        await line_with(process.stdout, f"ready {role} {name} ")
        code, output, errors = await interrupted(process)
    assert (code, output) == (0, "")
    assert "Traceback" not in errors


async def test_the_example_of_the_readme_ends(mesh: RealMesh, tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    ann, ben = await mesh.register_users("ann", "ben")
    example = (
        found[1].replace("http://127.0.0.1:8100", mesh.api).replace('"ann"', f'"{ann}"').replace('"ben"', f'"{ben}"')
    )
    (tmp_path / "example.py").write_text(example)
    async with (
        client(mesh, ben) as of_ben,
        program("-u", "example.py", PASSWORD, folder=tmp_path) as process,
    ):
        assert await receive_texts(of_ben, 1) == ["hello"]
        await send_and_wait(of_ben, ann, "hi ann!")
        assert "hi ann!" in await line_with(process.stdout, f"{ben} ")
        assert await interrupted(process) == (0, "", "")
