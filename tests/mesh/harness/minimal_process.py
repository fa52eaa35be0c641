"""A minimal client of `examples/`: commands go to it, events come from it as JSON, as a process or in a page."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from scripts.harness.clients import minimal_example
from scripts.harness.clients.minimal_example import Language
from tests.mesh.harness.browser import Page
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD


class MinimalDevice:
    """One device, of the user `name`, by what it said."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        """Everything that it said, in order."""
        self._changed = asyncio.Event()

    def said(self, line: str | bytes) -> None:
        """Take in an event."""
        self.events.append(json.loads(line))
        self._changed.set()

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


class MinimalProcess(MinimalDevice):
    """A minimal client as a process of its own."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        super().__init__(name)
        self._process = process
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.said(line)

    def command(self, *lines: str) -> None:
        """Give it commands, one on each line."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    def send(self, peer: str, *texts: str) -> None:
        self.command(*(f"send {peer} {text}" for text in texts))

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


class MinimalPage(MinimalDevice):
    """A minimal client in a page of a browser, `minimal_page.html`, used through its forms."""

    def __init__(self, name: str, page: Page) -> None:
        super().__init__(name)
        self.page = page

    async def log_in(self, origin: str, api: str, password: str = PASSWORD) -> None:
        """Open the page from an origin, and log in."""
        await self.page.listen(self.said)
        await self.page.open(f"{origin}/{minimal_example.PAGE}")
        values = json.dumps({"rest": api, "name": self.name, "password": password})
        await self.page.evaluate(
            f"for (const [name, value] of Object.entries({values})) document.forms.login[name].value = value;"
            "document.forms.login.requestSubmit()"
        )

    async def send(self, peer: str, *texts: str) -> None:
        """Type messages, as soon as the page lets its user."""
        await self.page.until("!document.forms.command.hidden")
        lines = json.dumps([f"send {peer} {text}" for text in texts])
        await self.page.evaluate(
            f"for (const line of {lines}) {{ document.forms.command.line.value = line;"
            "document.forms.command.requestSubmit() }"
        )


@asynccontextmanager
async def minimal(
    language: Language, api: str, name: str, state: Path, node: Sequence[str] = ()
) -> AsyncIterator[MinimalProcess]:
    """Run a minimal client, with its state in the file `state`, during the block.  `node` is the command of Node."""
    command = minimal_example.command(language, state.parent / language)
    command[:1] = node or command[:1]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, api, name, PASSWORD, str(state), stdin=pipe, stdout=pipe)
    client_process = MinimalProcess(name, process)
    try:
        yield client_process
    finally:
        if process.returncode is None:
            await client_process.kill()
