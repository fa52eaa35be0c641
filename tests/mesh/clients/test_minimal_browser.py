"""The JavaScript client of one page in a real browser, over WebSocket and CORS."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from meshim.client.rest import Api
from meshim.topology import Security
from scripts.harness.clients import minimal_example
from tests.mesh.harness.browser import Browser, Page, browser_of, chromium, page_server
from tests.mesh.harness.fault_injection import short_timers
from tests.mesh.harness.inspection import CounterRise
from tests.mesh.harness.library_client import client, receive
from tests.mesh.harness.minimal_process import MinimalPage
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running

COUNT = 300
LEAVE = "document.getElementById('leave').click()"
SILENCE_S = 2.0
"""The mesh ends a connection that was silent for so long."""


class Site:
    """A mesh, and two origins of the same website: `listed` is in the topology."""

    def __init__(self, mesh: RealMesh, listed: str, unlisted: str) -> None:
        self.mesh = mesh
        self.listed = listed
        self.unlisted = unlisted


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    website = tmp_path_factory.mktemp("website")
    minimal_example.website(website)
    with page_server(website) as listed, page_server(website) as unlisted:
        topology = short_timers(client_heartbeat_s=SILENCE_S / 4, client_silence_s=SILENCE_S)
        topology = msgspec.structs.replace(topology, security=Security(origins=(listed,)))
        with running(tmp_path_factory.mktemp("mesh"), topology) as mesh:
            yield Site(mesh, listed, unlisted)


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
async def browser(devtools: str) -> AsyncIterator[Browser]:
    async with browser_of(devtools) as used:
        yield used


def texts(name: str, count: int = COUNT, start: int = 0) -> list[str]:
    return [f"{name} {number}" for number in range(start, start + count)]


async def test_a_page_talks_with_the_library_and_is_reloaded(site: Site, browser: Browser) -> None:
    a, b = await site.mesh.register_users("alice", "bob")
    alice = MinimalPage(a, await browser.page())
    async with client(site.mesh, b) as bob:
        await alice.log_in(site.listed, site.mesh.api)
        await alice.until(lambda: any(event["event"] == "online" for event in alice.events), "it does not connect")
        reading = asyncio.create_task(receive(bob, COUNT, mark_read=True, within_s=60.0))
        await alice.send(b, *texts(a, COUNT // 2))
        sent = [await bob.send(a, text) for text in texts(b)]
        await alice.until(lambda: alice.queued == COUNT // 2, "it does not queue")
        await alice.page.reload()
        await alice.send(b, *texts(a, COUNT // 2, COUNT // 2))
        assert [message.text for message in await reading] == texts(a)
        await alice.until(lambda: len(shown(alice)) >= COUNT, "not all arrived")
        assert sorted(shown(alice)) == list(enumerate(texts(b), start=1))
        await alice.until(lambda: alice.count("read") >= COUNT, "not all were read")
        async with asyncio.timeout(DEADLINE_S):
            for outgoing in sent:
                await outgoing.wait_read()


def shown(page: MinimalPage) -> set[tuple[int, str]]:
    """What it showed.  A page that is reloaded may show a message once more, with the same number."""
    return {(event["n"], event["text"]) for event in page.events if event["event"] == "message"}


async def open_websocket(page: Page, url: str) -> str:
    """Return what a page is told about a WebSocket: `open`, or the code with which it is closed."""
    return str(
        await page.evaluate(
            f"new Promise((done) => {{ const socket = new WebSocket({json.dumps(url)}, 'meshim.1');"
            "socket.onopen = () => done('open'); socket.onclose = ({ code }) => done(`closed ${code}`) })"
        )
    )


async def test_a_page_of_another_origin_is_refused(site: Site, browser: Browser) -> None:
    [a] = await site.mesh.register_users("alice")
    async with Api(site.mesh.api) as api:
        await api.login(a, PASSWORD)
        url = (await api.connectors())[0].url
    stranger, guest = MinimalPage(a, await browser.page()), MinimalPage(a, await browser.page())
    await stranger.log_in(site.unlisted, site.mesh.api)
    await stranger.until(lambda: bool(stranger.events), "it says nothing")
    assert stranger.events[0] == {"event": "offline", "code": 4, "reason": "Failed to fetch"}
    refused = CounterRise(site.mesh, "websocket_refused_origin")
    assert await open_websocket(stranger.page, url) == "closed 1006"
    await refused.wait()

    await guest.log_in(site.listed, site.mesh.api)
    await guest.until(lambda: any(event["event"] == "online" for event in guest.events), "it does not connect")
    assert await open_websocket(guest.page, url) == "open"


async def test_a_hidden_page_stays_connected(site: Site, browser: Browser) -> None:
    """Its timers run once a minute.  It answers the heartbeats of the connector, and messages, as they come."""
    a, b = await site.mesh.register_users("alice", "bob")
    alice = MinimalPage(a, await browser.page())
    async with client(site.mesh, b) as bob:
        await alice.log_in(site.listed, site.mesh.api)
        await alice.until(lambda: any(event["event"] == "online" for event in alice.events), "it does not connect")
        await alice.page.evaluate("{ globalThis.ticks = 0; setInterval(() => ticks += 1, 50) }")
        await alice.page.hide()
        assert await alice.page.evaluate("document.visibilityState") == "hidden"
        ticks = await alice.page.evaluate("ticks")
        await asyncio.sleep(3 * SILENCE_S)
        assert await alice.page.evaluate("ticks") - ticks <= 3 * SILENCE_S, "the timers of a hidden page run slowly"
        outgoing = await bob.send(a, "are you there?")
        await asyncio.wait_for(outgoing.wait_read(), DEADLINE_S)
        assert [event["event"] for event in alice.events if event["event"] != "relations"] == ["online", "message"]


async def test_a_second_page_of_one_user_says_that_it_waits_and_takes_over(site: Site, browser: Browser) -> None:
    a, b = await site.mesh.register_users("alice", "bob")
    first, second = MinimalPage(a, await browser.page()), MinimalPage(a, await browser.page())
    await first.log_in(site.listed, site.mesh.api)
    await first.until(lambda: any(event["event"] == "online" for event in first.events), "it does not connect")
    await second.page.listen(second.said)
    await second.page.open(f"{site.listed}/{minimal_example.PAGE}")
    await second.until(lambda: bool(second.events), "it says nothing")
    assert second.events == [{"event": "waiting", "reason": f"another page of {a} is open"}]
    await first.send(b, "before")
    await first.until(lambda: first.count("sent", "delivered") == 1, "the first page does not go on")
    await first.page.load_by(LEAVE)
    await second.until(lambda: any(event["event"] == "online" for event in second.events), "it does not take over")
    await second.send(b, "after")
    await second.until(lambda: second.count("sent", "delivered") == 1, "it sends nothing")
    assert [event["seq"] for event in first.events + second.events if event["event"] == "queued"] == [1, 2]


async def test_a_wrong_address_of_rest_can_be_mended(site: Site, browser: Browser) -> None:
    [a] = await site.mesh.register_users("alice")
    alice = MinimalPage(a, await browser.page())
    await alice.log_in(site.listed, "http://127.0.0.1:1")
    await alice.until(lambda: any(event["event"] == "offline" for event in alice.events), "it says nothing")
    await alice.page.load_by(LEAVE)
    assert await alice.page.evaluate("!document.forms.login.hidden")
    await alice.log_in(site.listed, site.mesh.api)
    await alice.until(lambda: any(event["event"] == "online" for event in alice.events), "it does not connect")


async def test_a_wrong_password_brings_the_form_back(site: Site, browser: Browser) -> None:
    [a] = await site.mesh.register_users("alice")
    alice = MinimalPage(a, await browser.page())
    await alice.log_in(site.listed, site.mesh.api, "wrong")
    await alice.until(lambda: any(event["event"] == "ended" for event in alice.events), "it does not end")
    assert alice.events[-1] == {"event": "ended", "reason": "ended with code bad_credentials"}
    assert await alice.page.evaluate("!document.forms.login.hidden && document.forms.command.hidden")
