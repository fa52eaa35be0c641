"""The port `DeadLetters`: letters are kept by number until they are removed; a retry loses nothing."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshim.deploy.embedded import Nats
from meshim.errors import BackendUnavailable
from meshim.stores.nats.dead_letters import JetStreamDeadLetters, retry
from meshim.stores.ports import DeadLetter, DeadLetters, LogMessage
from tests.contract.nats.backends import Backend, NatsBackend, open_backend
from tests.contract.outage import up


@pytest.fixture(params=["memory", "nats"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("nats_url")), namespace) as backend:
        yield backend


async def all_of(letters: DeadLetters) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    number = 0
    while (letter := await letters.following(number)) is not None:
        found.append(letter)
        number = letter.number
    return found


async def test_no_letters_before_the_first(backend: Backend) -> None:
    letters = await backend.dead_letters()
    assert await letters.last() == 0
    assert await letters.get(1) is None
    assert await letters.following(0) is None
    await (await backend.log()).ensure(0, 1)
    assert await all_of(letters) == []
    assert not await letters.remove(1)


async def test_a_letter_has_position_and_reason(backend: Backend) -> None:
    log, letters = await backend.log(), await backend.dead_letters()
    await log.ensure(0, 1)
    await log.dead_letter(0, 17, "The id is “too long”.", b"data")
    await log.dead_letter(3, 1 << 40, "another", b"")
    [first, second] = await all_of(letters)
    assert first == DeadLetter(1, 0, 17, first.dead_lettered_at, "The id is “too long”.", b"data")
    assert second == DeadLetter(2, 3, 1 << 40, second.dead_lettered_at, "another", b"")
    assert await letters.get(2) == second
    assert await letters.get(3) is None
    assert await letters.last() == 2


async def test_the_time_of_a_letter_is_that_of_the_server(nats_url: str, namespace: str) -> None:
    backend = NatsBackend(nats_url, namespace)
    log = await backend.log()
    await log.ensure(0, 1)
    await log.dead_letter(0, 1, "why", b"data")
    letter = await (await backend.dead_letters()).get(1)
    assert letter is not None
    assert abs(letter.dead_lettered_at - time.time()) < 60
    await backend.close()


async def test_a_removed_number_is_skipped_and_never_reused(backend: Backend) -> None:
    log, letters = await backend.log(), await backend.dead_letters()
    await log.ensure(0, 1)
    for data in (b"1", b"2", b"3"):
        await log.dead_letter(0, 1, "why", data)
    assert await letters.remove(2)
    assert not await letters.remove(2)
    assert await letters.get(2) is None
    assert [letter.number for letter in await all_of(letters)] == [1, 3]
    assert await letters.remove(3)
    await log.dead_letter(0, 1, "why", b"4")
    assert [(letter.number, letter.data) for letter in await all_of(letters)] == [(1, b"1"), (4, b"4")]


async def test_a_retry_publishes_to_the_partition_again(backend: Backend) -> None:
    log, letters = await backend.log(), await backend.dead_letters()
    await log.ensure(0, 1)
    await log.ensure(3, 500)
    await log.dead_letter(3, 17, "why", b"data")
    letter = await letters.get(1)
    assert letter is not None
    assert await retry(letter, letters, log) == 500
    assert await log.fetch(3, 10, 0.0) == [LogMessage(500, b"data")]
    assert await all_of(letters) == []


async def test_an_interrupted_retry_loses_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record may be in the log twice: test_dead_letter_command shows that this changes nothing."""
    log, letters = await backend.log(), await backend.dead_letters()
    await log.ensure(0, 1)
    await log.dead_letter(0, 17, "why", b"data")
    letter = await letters.get(1)
    assert letter is not None

    async def killed(number: int) -> bool:
        raise BackendUnavailable("It was killed here.")

    with monkeypatch.context() as patch:
        patch.setattr(letters, "remove", killed)
        with pytest.raises(BackendUnavailable):
            await retry(letter, letters, log)
    assert await all_of(letters) == [letter]
    await retry(letter, letters, log)
    assert await log.fetch(0, 10, 0.0) == [LogMessage(1, b"data"), LogMessage(2, b"data")]
    assert await all_of(letters) == []


async def test_a_letter_stays_when_the_log_is_full(backend: Backend) -> None:
    log, letters = await backend.log(max_bytes=1000), await backend.dead_letters()
    await log.ensure(0, 1)
    await log.dead_letter(0, 17, "why", bytes(600))
    await log.publish(0, bytes(600))
    letter = await letters.get(1)
    assert letter is not None
    with pytest.raises(BackendUnavailable):
        await retry(letter, letters, log)
    assert await all_of(letters) == [letter]


async def test_nats_away(servers_folder: Path, namespace: str) -> None:
    nats = Nats(servers_folder / namespace)
    async with up(nats) as server:
        backend = NatsBackend(server.url, namespace)
        client = await backend.client()
        log, letters = await backend.log(), JetStreamDeadLetters(client, namespace)
        await log.ensure(0, 1)
        await log.dead_letter(0, 17, "why", b"data")
        letter = await letters.get(1)
        assert letter is not None

    async def noticed() -> bool:
        return not client.connected

    await backend.until(noticed)
    with pytest.raises(BackendUnavailable):
        await letters.following(0)
    with pytest.raises(BackendUnavailable):
        await letters.remove(1)
    async with up(nats):

        async def back() -> bool:
            return client.connected

        await backend.until(back)
        assert await all_of(letters) == [letter]
        await backend.close()
