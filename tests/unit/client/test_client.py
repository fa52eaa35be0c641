"""A client without a mesh: it starts, persists what it is given, and closes at any time."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshim.client import Client, Outgoing
from meshim.client import session as session_module
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, Code, Refused, UsageError
from meshim.wire.envelope import Destination, DestinationType, Stream, decode_envelope
from tests.unit.client.rest_service import PASSWORD, RestService

STREAM = Stream(1, 10, 7, Destination(DestinationType.USER, 2))


@pytest.fixture
def service() -> RestService:
    return RestService().at(time.time())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice.db"


def alice(service: RestService, path: Path, password: str = PASSWORD) -> Client:
    client = Client("http://localhost", "alice", password, device="phone", state=path)
    client._api = service.api()
    return client


def composed(path: Path) -> list[int]:
    """The seqs in the outbox of a closed state file."""
    state = StateFile(path)
    try:
        return [decode_envelope(out.envelope).seq for out in state.load().unsettled]
    finally:
        state.close()


def is_in_use(path: Path) -> bool:
    """Whether a client has the state file open."""
    try:
        StateFile(path).close()
    except UsageError:
        return True
    return False


@asynccontextmanager
async def waiting(*coroutines: Any) -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """Run these coroutines as tasks that wait; at the end of the block they must be done within 5 s."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)
    yield tasks
    async with asyncio.timeout(5.0):
        await asyncio.wait(tasks)


# ---------------------------------------------------------------- starting


async def test_a_client_with_a_token_starts_and_sends_without_the_service(service: RestService, path: Path) -> None:
    async with alice(service, path) as client:
        assert (client.user_id, client.device_id) == (1, 10)
    service.away = True
    async with alice(service, path) as client:
        outgoing = await client.send("bob", "hello")
        assert outgoing.state == "pending"
    assert composed(path) == [1]


async def test_a_failed_login_is_raised_and_unlocks_the_state_file(service: RestService, path: Path) -> None:
    with pytest.raises(ApiError, match="password is wrong"):
        await alice(service, path, "wrong").__aenter__()
    service.away = True
    with pytest.raises(BackendUnavailable):
        await alice(service, path).__aenter__()
    assert composed(path) == []


async def test_a_state_file_in_use_is_refused(service: RestService, path: Path) -> None:
    async with alice(service, path):
        with pytest.raises(UsageError, match="Another process uses the state file"):
            await alice(service, path).__aenter__()


async def test_a_cancelled_start_closes_the_state_file(
    service: RestService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    opened: list[StateFile] = []

    def slowly(path: Path) -> StateFile:
        begun.set()
        assert go_on.wait(5.0)
        opened.append(StateFile(path))
        return opened[0]

    monkeypatch.setattr(session_module, "StateFile", slowly)
    starting = asyncio.ensure_future(alice(service, path).__aenter__())
    assert await asyncio.to_thread(begun.wait, 5.0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    go_on.set()
    async with asyncio.timeout(5.0):
        while not (opened and opened[0]._closed):
            await asyncio.sleep(0.01)
    assert composed(path) == []


async def test_a_client_can_be_entered_once(service: RestService, path: Path) -> None:
    client = alice(service, path)
    async with client:
        pass
    with pytest.raises(UsageError, match="make another one"):
        await client.__aenter__()


async def test_the_state_file_is_named_after_the_device_by_default(
    service: RestService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = Client("http://localhost", "Alice", PASSWORD, device="../pc / 1")
    client._api = service.api()
    async with client:
        assert (tmp_path / "alice-..%2Fpc%20%2F%201.db").exists()


# ---------------------------------------------------------------- sending


async def test_unsettled_messages_stay_in_the_outbox_after_a_restart(service: RestService, path: Path) -> None:
    for number in (1, 2):
        async with alice(service, path) as client:
            assert (await client.send("bob", "hello")).seq == number
    assert composed(path) == [1, 2]


@pytest.mark.parametrize("size", [65_536, 70_000])
async def test_a_message_over_the_limit_is_refused_with_both_sizes(service: RestService, path: Path, size: int) -> None:
    async with alice(service, path) as client:
        with pytest.raises(Refused, match=r"bytes, 65,508 are allowed") as refusal:
            await client.send("bob", "x" * size)
        assert refusal.value.code is Code.TOO_LARGE
        await client.send("bob", "x" * 65_500)
    assert composed(path) == [1]


async def test_a_text_that_is_not_unicode_is_refused(service: RestService, path: Path) -> None:
    async with alice(service, path) as client:
        with pytest.raises(UsageError, match="not Unicode"):
            await client.send("bob", "\udc80")
        assert (await client.send("bob", "fine")).seq == 1


async def test_send_waits_while_the_stream_is_full(service: RestService, path: Path) -> None:
    client = await alice(service, path).__aenter__()
    await asyncio.gather(*(client.send("bob", str(number)) for number in range(256)))
    async with waiting(client.send("bob", "one more")) as [blocked]:
        await client.__aexit__(None, None, None)
    assert isinstance(blocked.exception(), ClientClosed)
    assert composed(path) == list(range(1, 257))


# ---------------------------------------------------------------- closing


async def test_closing_raises_client_closed_in_every_wait(service: RestService, path: Path) -> None:
    client = await alice(service, path).__aenter__()
    outgoing = await client.send("bob", "hello")
    async with waiting(
        outgoing.wait_sent(), outgoing.wait_read(), anext(client.messages()), client.online(), client.settled()
    ) as tasks:
        await client.__aexit__(None, None, None)
    assert [type(task.exception()) for task in tasks] == [ClientClosed] * 5
    assert outgoing.state == "pending"
    for call in (client.send("bob", "again"), anext(client.messages()), client.online(), client.settled()):
        with pytest.raises(ClientClosed):
            await call


async def test_closing_during_a_write_persists_each_message_once(service: RestService, path: Path) -> None:
    for _ in range(20):
        client = await alice(service, path).__aenter__()
        sending = [asyncio.ensure_future(client.send("bob", "hello")) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await client.__aexit__(None, None, None)
        done = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(each, Outgoing | ClientClosed) for each in done), done
        before = len(composed(path))
        assert before >= sum(isinstance(each, Outgoing) for each in done)
    assert composed(path) == list(range(1, before + 1))


async def test_closing_continues_when_its_task_is_cancelled(service: RestService, path: Path) -> None:
    client = await alice(service, path).__aenter__()
    await client.send("bob", "hello")
    leaving = asyncio.ensure_future(client.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(5.0):
        while is_in_use(path):
            await asyncio.sleep(0.01)
    assert composed(path) == [1]


# ---------------------------------------------------------------- failing


async def test_a_state_file_that_cannot_be_written_ends_the_client(service: RestService, path: Path) -> None:
    async with alice(service, path) as client:
        pages = client._shell._state._db.execute("PRAGMA page_count").fetchone()[0]
        client._shell._state._db.execute(f"PRAGMA max_page_count={pages}")
        outgoing: list[Outgoing] = []

        async def send_for_ever() -> None:
            while True:
                outgoing.append(await client.send("bob", "x" * 10_000))

        async with waiting(anext(client.messages())) as [reading]:
            with pytest.raises(UsageError, match="cannot be written"):
                await send_for_ever()
        for error in (reading.exception(), await _error_of(client.send("bob", "again"))):
            assert isinstance(error, UsageError)
    assert len(composed(path)) == len(outgoing)


async def test_an_unexpected_exception_is_reported_and_ends_the_client(
    service: RestService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    async with alice(service, path) as client:

        def broken(*arguments: object) -> None:
            raise AssertionError("a bug")

        monkeypatch.setattr(client._shell.core.outbox, "add", broken)
        for _ in range(2):
            with pytest.raises(ClientClosed, match="The client failed: AssertionError"):
                await client.send("bob", "hello")
    assert [context["message"] for context in reported] == ["meshim client failed"]


async def test_a_database_error_while_reading_is_raised_in_messages(
    service: RestService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice(service, path) as client:
        client._shell._state._db.execute("ALTER TABLE inbox RENAME TO gone")
        with pytest.raises(sqlite3.OperationalError):
            await anext(client.messages())


# ---------------------------------------------------------------- outgoing messages


async def test_a_failure_keeps_the_states_reached_before() -> None:
    outgoing = Outgoing("id", "bob", STREAM, 1)
    outgoing.advance("delivered", 0, "")
    outgoing.fail(ClientClosed("closed"))
    await outgoing.wait_sent()
    await outgoing.wait_delivered()
    with pytest.raises(ClientClosed):
        await outgoing.wait_read()
    assert outgoing.state == "delivered"


async def test_the_end_of_a_client_rejects_no_message() -> None:
    outgoing = Outgoing("id", "bob", STREAM, 1)
    outgoing.fail(Refused(Code.REPLACED, "taken over"))
    assert outgoing.state == "pending"
    with pytest.raises(Refused, match="taken over"):
        await outgoing.wait_sent()


@pytest.mark.parametrize(("code", "known"), [(6, Code.NOT_FRIENDS), (999, Code.MALFORMED)])
async def test_a_rejection_is_raised_in_all_waits_and_later_ones(code: int, known: Code) -> None:
    outgoing = Outgoing("id", "bob", STREAM, 1)
    async with waiting(outgoing.wait_sent(), outgoing.wait_read()) as tasks:
        outgoing.advance("rejected", code, "no")
    for error in (*(task.exception() for task in tasks), await _error_of(outgoing.wait_delivered())):
        assert isinstance(error, Refused)
        assert error.code is known
        assert error.sentence == ("No." if code == known else f"No (code {code}).")
    assert outgoing.state == "rejected"


async def _error_of(work: Coroutine[Any, Any, object]) -> BaseException | None:
    done = asyncio.ensure_future(work)
    await asyncio.wait([done])
    return done.exception()


async def test_a_cancelled_wait_is_removed() -> None:
    outgoing = Outgoing("id", "bob", STREAM, 1)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await outgoing.wait_read()
    assert outgoing._waiting == []
