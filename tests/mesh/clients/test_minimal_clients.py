"""The two clients of one page, written from docs/protocol.md, keep the promises."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.harness.clients.minimal_example import EXAMPLES, NODE_20, Language
from tests.mesh.harness.fault_injection import kill, short_timers, wait_restarted
from tests.mesh.harness.library_client import client, receive
from tests.mesh.harness.minimal_process import MinimalProcess, minimal
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, restartable_mesh, running

COUNT = 300
BOTH: list[Language] = ["python", "javascript"]
LINES_MAX = 350


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), short_timers()) as started:
        yield started


@pytest.mark.parametrize("name", ["minimal_client.py", "minimal_client.mjs"])
def test_a_minimal_client_is_a_page(name: str) -> None:
    lines = (EXAMPLES / name).read_text().splitlines()
    print(f"{name}: {len(lines)} lines")
    assert len(lines) < LINES_MAX
    assert max(map(len, lines)) <= 120
    assert not any("import meshim" in line or "from meshim" in line for line in lines)


def texts(name: str, count: int = COUNT) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


async def shown_and_read(each: MinimalProcess, shown: int, read: int, within_s: float) -> None:
    await each.until(lambda: len(each.texts) >= shown, "not all arrived", within_s)
    await each.until(lambda: each.count("read") >= read, "not all were read", within_s)


async def talk(alice: MinimalProcess, bob: MinimalProcess, count: int = COUNT, within_s: float = 60.0) -> None:
    """Each sends to the other at once; everything comes once, in order, and is read."""
    before = len(alice.texts), len(bob.texts)
    known = alice.count("read"), bob.count("read")
    alice.send(bob.name, *texts(alice.name, count))
    bob.send(alice.name, *texts(bob.name, count))
    for each, seen, reads in ((alice, before[0], known[0]), (bob, before[1], known[1])):
        await shown_and_read(each, seen + count, reads + count, within_s)
    assert alice.texts[before[0] :] == texts(bob.name, count)
    assert bob.texts[before[1] :] == texts(alice.name, count)


@pytest.mark.parametrize("other", BOTH)
@pytest.mark.parametrize("one", BOTH)
async def test_both_ways(mesh: RealMesh, tmp_path: Path, one: Language, other: Language) -> None:
    a, b = await mesh.register_users("alice", "bob")
    async with minimal(one, mesh.api, a, tmp_path / "a") as alice, minimal(other, mesh.api, b, tmp_path / "b") as bob:
        await talk(alice, bob)
        await asyncio.gather(alice.quit(), bob.quit())


@pytest.mark.parametrize("language", BOTH)
async def test_with_the_library(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    a, b = await mesh.register_users("alice", "bob")
    async with minimal(language, mesh.api, a, tmp_path / "a") as alice, client(mesh, b) as bob:
        alice.send(b, *texts(a))
        reading = asyncio.create_task(receive(bob, COUNT, mark_read=True))
        sent = [await bob.send(a, text) for text in texts(b)]
        assert [message.text for message in await reading] == texts(a)
        await alice.until(lambda: len(alice.texts) >= COUNT, "not all arrived")
        assert alice.texts == texts(b)
        await alice.until(lambda: alice.count("read") >= COUNT, "not all were read")
        async with asyncio.timeout(DEADLINE_S):
            for outgoing in sent:
                await outgoing.wait_read()


def test_node_20_is_installed() -> None:
    version = subprocess.run([NODE_20, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("v20.")


async def test_on_node_20(mesh: RealMesh, tmp_path: Path) -> None:
    """As docs/protocol.md says: WebSocket has to be switched on there."""
    a, b = await mesh.register_users("alice", "bob")
    node = (str(NODE_20), "--experimental-websocket")
    async with (
        minimal("javascript", mesh.api, a, tmp_path / "a", node) as alice,
        minimal("javascript", mesh.api, b, tmp_path / "b") as bob,
    ):
        await talk(alice, bob, 30)
        await asyncio.gather(alice.quit(), bob.quit())


@pytest.mark.parametrize("language", BOTH)
async def test_offline_over_a_restart_of_the_mesh(tmp_path: Path, language: Language) -> None:
    async with restartable_mesh(tmp_path) as restartable:
        mesh = await restartable.up()
        a, b = await mesh.register_users("alice", "bob")
        async with minimal(language, mesh.api, a, tmp_path / "a") as alice:
            async with minimal(language, mesh.api, b, tmp_path / "b") as bob:
                await talk(alice, bob, 3)
                await bob.quit()
            alice.send(b, *texts("stored", 30))
            await alice.until(lambda: alice.count("sent") >= 30, "not stored")
            await restartable.down()
            alice.send(b, *texts("while away", 30))
            leaving = asyncio.create_task(alice.quit())
            await restartable.up()
            await leaving
            assert alice.count("sent", "delivered") == 63, "it left before everything was settled"
        async with (
            minimal(language, mesh.api, a, tmp_path / "a") as again,
            minimal(language, mesh.api, b, tmp_path / "b") as bob,
        ):
            again.events.extend(alice.events)
            again.send(b, *texts("after", 30))
            await bob.until(lambda: len(bob.texts) >= 90, "not all arrived")
            assert bob.texts == texts("stored", 30) + texts("while away", 30) + texts("after", 30)
            await again.until(lambda: again.count("read") >= 93, "not all were read")


@pytest.mark.parametrize("victims", [("c1", "t1"), ("c2", "t2")])
@pytest.mark.parametrize("language", BOTH)
async def test_a_connector_and_a_transfer_are_killed(
    mesh: RealMesh, tmp_path: Path, language: Language, victims: tuple[str, ...]
) -> None:
    a, b = await mesh.register_users("alice", "bob")
    async with (
        minimal(language, mesh.api, a, tmp_path / "a") as alice,
        minimal("python", mesh.api, b, tmp_path / "b") as bob,
    ):
        talking = asyncio.create_task(talk(alice, bob))
        await alice.until(lambda: len(alice.texts) >= COUNT // 10, "nothing arrives")
        killed = [(name, kill(mesh, name)) for name in victims]
        await talking
        for name, pid in killed:
            await wait_restarted(mesh, name, pid)


@pytest.mark.parametrize("language", BOTH)
async def test_the_client_itself_is_killed(mesh: RealMesh, tmp_path: Path, language: Language) -> None:
    """Everything that it said was queued arrives; what it showed already may come once more, with the same number.

    A message that it had on disk, and could not say so before it was killed, may arrive, too.
    """
    a, b = await mesh.register_users("alice", "bob")
    seen: list[tuple[int, str]] = []
    queued: list[int] = []

    def numbered(client: MinimalProcess) -> list[tuple[int, str]]:
        return [(event["n"], event["text"]) for event in client.events if event["event"] == "message"]

    async def kill_while_it_queues(life: int) -> None:
        async with minimal(language, mesh.api, a, tmp_path / "a") as alice:
            alice.send(b, *texts(f"life {life}", 20))
            await alice.until(lambda: alice.queued >= 15, "it queues nothing")
            await alice.kill()
        queued.append(alice.queued)
        seen.extend(numbered(alice))

    async with minimal("python", mesh.api, b, tmp_path / "b") as bob:
        bob.send(a, *texts(b))
        for life in range(4):
            await kill_while_it_queues(life)
        async with minimal(language, mesh.api, a, tmp_path / "a") as alice:
            numbers = set(range(1, COUNT + 1))
            await alice.until(lambda: {n for n, _ in seen + numbered(alice)} >= numbers, "not all arrived")
            said = {text for life, count in enumerate(queued) for text in texts(f"life {life}", count)}
            await bob.until(lambda: said <= set(bob.texts), "not all that was queued arrived")
            seen.extend(numbered(alice))
            await alice.quit()
    assert sorted(set(seen)) == [(number + 1, text) for number, text in enumerate(texts(b))]
    arrived = [sum(text.startswith(f"life {life} ") for text in bob.texts) for life in range(4)]
    assert bob.texts == [text for life, count in enumerate(arrived) for text in texts(f"life {life}", count)]
    assert all(count - known in (0, 1) for count, known in zip(arrived, queued, strict=True))
