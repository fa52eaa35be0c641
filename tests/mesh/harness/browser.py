"""Headless Chromium, driven over its DevTools protocol, and a server of pages."""

import asyncio
import functools
import http.server
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from meshim.deploy.pdeathsig import die_with_parent
from tests.mesh.harness.real_mesh import DEADLINE_S

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless",
    "--remote-debugging-port=0",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    # As a page that has been hidden for five minutes: its timers run once a minute.
    "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/1",
)

Event = dict[str, Any]


class Page:
    """One page of the browser."""

    def __init__(self, browser: "Browser", target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    async def call(self, method: str, **parameters: object) -> Any:
        """Call a method of the DevTools protocol for this page; return its result."""
        return await self._browser.call(method, self._session, **parameters)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, of its promise if it is one.

        Raises AssertionError when it throws.
        """
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true.  Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while not await self.evaluate(condition):
                await asyncio.sleep(0.02)

    async def open(self, url: str) -> None:
        """Open a URL; return once everything is loaded."""
        await self._load("Page.navigate", url=url)

    async def reload(self) -> None:
        """Load the page again; return once everything is loaded."""
        await self._load("Page.reload")

    async def load_by(self, expression: str) -> None:
        """Evaluate an expression that loads a page; return once everything is loaded."""
        await self._load("Runtime.evaluate", expression=expression)

    async def _load(self, method: str, **parameters: object) -> None:
        loaded = asyncio.Event()
        self._browser.on(self._session, "Page.loadEventFired", lambda _: loaded.set())
        await self.call("Page.enable")
        await self.call(method, **parameters)
        await asyncio.wait_for(loaded.wait(), DEADLINE_S)

    async def listen(self, take: Callable[[str], None]) -> None:
        """Call `take` with every line that the page writes to its console."""

        def written(event: Event) -> None:
            take(" ".join(str(each.get("value")) for each in event["args"]))

        self._browser.on(self._session, "Runtime.consoleAPICalled", written)
        await self.call("Runtime.enable")

    async def hide(self) -> None:
        """Minimize the window: the page is hidden from here on."""
        window = await self._browser.call("Browser.getWindowForTarget", targetId=self._target)
        await self._browser.call(
            "Browser.setWindowBounds", windowId=window["windowId"], bounds={"windowState": "minimized"}
        )


class Browser:
    """A running browser, as one user has it: its pages share what they store."""

    def __init__(self, socket: ClientConnection) -> None:
        self._context = ""
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._listeners: dict[tuple[str, str], Callable[[Event], object]] = {}

    async def read(self) -> None:
        """Take in what the browser says, until it is cancelled."""
        async for message in self._socket:
            event = json.loads(message)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            elif listener := self._listeners.get((event.get("sessionId", ""), event["method"])):
                listener(event["params"])

    def on(self, session: str, method: str, listener: Callable[[Event], object]) -> None:
        """Call `listener` with the parameters of these events, in place of an earlier one."""
        self._listeners[session, method] = listener

    async def call(self, method: str, session: str = "", **parameters: object) -> Any:
        """Call a method of the DevTools protocol; return its result.  Raises AssertionError when it is refused."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        to = {"sessionId": session} if session else {}
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **to}))
        answered = await asyncio.wait_for(answer, DEADLINE_S)
        assert "error" not in answered, answered["error"]
        return answered["result"]

    async def close(self) -> None:
        """Close all pages, and forget what they have stored."""
        if self._context:
            await self.call("Target.disposeBrowserContext", browserContextId=self._context)

    async def page(self) -> Page:
        """Open an empty page."""
        # In a window of its own, so that hiding it hides no other.
        if not self._context:
            self._context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        created = await self.call(
            "Target.createTarget", url="about:blank", newWindow=True, browserContextId=self._context
        )
        target = created["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        return Page(self, target, session)


@contextmanager
def chromium(folder: Path) -> Iterator[str]:
    """Run Chromium during the block, with its files in `folder`; yield the URL of its DevTools protocol."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    assert program is not None, "Chromium is missing: apt install chromium-headless-shell"
    files, log = folder / "chromium", folder / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            die_with_parent([program, *_OPTIONS, f"--user-data-dir={files}", "about:blank"]),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "HOME": str(folder)},
            start_new_session=True,
        )  # fmt: skip
    try:
        port_and_path, deadline = files / "DevToolsActivePort", time.monotonic() + DEADLINE_S
        while not (port_and_path.exists() and port_and_path.read_text().count("\n")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        port, path = port_and_path.read_text().split()
        yield f"ws://127.0.0.1:{port}{path}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Debian's program is a shell script that starts the browser
        process.wait()


@asynccontextmanager
async def browser_of(devtools: str) -> AsyncIterator[Browser]:
    """Use a running Chromium during the block, with nothing that earlier users have stored."""
    async with connect(devtools, max_size=None, compression=None) as socket:
        browser = Browser(socket)
        reading = asyncio.create_task(browser.read())
        try:
            yield browser
        finally:
            await browser.close()
            reading.cancel()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def page_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder during the block; yield the origin."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
