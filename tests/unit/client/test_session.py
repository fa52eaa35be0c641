"""The login of a device: stored, renewed on demand, not needed to start; and the contacts fetched with it."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from meshim.client import session as session_module
from meshim.client.friends.contacts import Contacts
from meshim.client.identity import Identity
from meshim.client.session import AskSchedule, Credentials, Session, stored_token
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, Code, Refused, UsageError
from meshim.wire import rest
from tests.unit.client.rest_service import PASSWORD, PEER, RestService


@pytest.fixture
def service() -> RestService:
    return RestService().at(time.time())


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    state = StateFile(tmp_path / "alice.db")
    yield state
    state.close()


def session(
    service: RestService, state: StateFile, name: str = "alice", password: str = PASSWORD, device: str = "phone"
) -> Session:
    return Session(service.api(), state, Credentials(name, password, device))


# ---------------------------------------------------------------- opening


async def test_the_first_open_logs_in_and_later_ones_use_that_login(service: RestService, state: StateFile) -> None:
    for _ in range(3):
        opened = session(service, state)
        assert await opened.open() == Identity(1, 10, state.epoch)
        assert await opened.token(None) == service.token
        assert await opened.connectors(fresh=False) == service.connectors
    assert [(login.device, login.epoch) for login in service.logins] == [("phone", state.epoch)]
    service.away = True
    assert await session(service, state).open() == Identity(1, 10, state.epoch)


@pytest.mark.parametrize(("name", "device"), [("bob", "phone"), ("alice", "laptop")])
async def test_a_state_file_belongs_to_one_device(
    service: RestService, state: StateFile, name: str, device: str
) -> None:
    await session(service, state).open()
    with pytest.raises(UsageError, match=f"is of alice on phone, not of {name} on {device}"):
        await session(service, state, name, device=device).open()
    assert len(service.logins) == 1
    assert await session(service, state, "ALICE").open() == Identity(1, 10, state.epoch)


async def test_a_damaged_login_is_one_sentence(service: RestService, state: StateFile) -> None:
    await session(service, state).open()
    for damaged in (b"", b"\xc1", b"\x90"):
        state.put("login", damaged)
        with pytest.raises(UsageError, match=r"The login in the state file .* is damaged"):
            await session(service, state).open()
    path = state.path
    state.close()
    with pytest.raises(UsageError, match=r"The login in the state file .* is damaged"):
        stored_token(path)


async def test_the_first_open_needs_the_password_and_the_service(service: RestService, state: StateFile) -> None:
    with pytest.raises(ApiError, match="name or the password is wrong"):
        await session(service, state, password="wrong").open()
    service.away = True
    with pytest.raises(BackendUnavailable, match="is it running"):
        await session(service, state).open()
    service.away = False
    await session(service, state).open()


async def test_an_expired_token_is_renewed_unless_the_service_is_unavailable(
    service: RestService, state: StateFile
) -> None:
    service.token_life_s = 30.0
    await session(service, state).open()
    first = service.token
    service.away = True
    opened = session(service, state)
    assert await opened.open() == Identity(1, 10, state.epoch)
    assert await opened.token(None) == first
    service.away = False
    await session(service, state).open()
    assert len(service.logins) == 2
    with pytest.raises(ApiError, match="password is wrong"):
        await session(service, state, password="changed").open()


async def test_a_later_login_shows_that_there_was_one_before(service: RestService, state: StateFile) -> None:
    """So guesses of others at the password do not lock this device out."""
    service.token_life_s = 30.0
    for _ in range(3):
        await session(service, state).open()
    assert [login.proof for login in service.logins] == [None, "proof 1", "proof 2"]


async def test_a_login_answered_with_503_is_temporary_and_keeps_the_old_token(
    service: RestService, state: StateFile
) -> None:
    """REST answers a takeover with 503 while Redis is unavailable."""
    service.busy = True
    with pytest.raises(ApiError, match="Redis is away: try again") as away:
        await session(service, state).open()
    assert away.value.temporary
    service.busy, service.token_life_s = False, 30.0
    await session(service, state).open()
    token = service.token
    service.busy = True
    opened = session(service, state)
    assert await opened.open() == Identity(1, 10, state.epoch)
    for _ in range(2):
        with pytest.raises(ApiError) as again:
            await opened.token(token)
        assert again.value.temporary, "the connection tries again"
    service.busy = False
    assert await opened.token(token) == service.token != token


@pytest.mark.parametrize(("what", "other"), [("user_id", 77), ("mesh", "another")])
async def test_a_login_with_another_user_id_or_mesh_is_refused(
    service: RestService, state: StateFile, what: str, other: object
) -> None:
    opened = session(service, state)
    await opened.open()
    setattr(service, what, other)
    with pytest.raises(UsageError, match="of another mesh, or of this one before its data was deleted: remove it"):
        await opened.token(service.token)
    assert await session(service, state).open() == Identity(1, 10, state.epoch)


async def test_a_new_device_id_while_open_closes_the_client(service: RestService, state: StateFile) -> None:
    opened = session(service, state)
    await opened.open()
    service.device_id = 11
    with pytest.raises(ClientClosed, match="open a new client"):
        await opened.token(service.token)
    assert await session(service, state).open() == Identity(1, 11, state.epoch)


async def test_only_a_file_that_never_logged_in_takes_the_device_over(service: RestService, state: StateFile) -> None:
    """H11: the loser of a takeover never takes the device back, however it learns of it."""
    service.taken_over, service.token_life_s = True, 30.0
    opened = session(service, state)
    await opened.open()
    assert [login.takeover for login in service.logins] == [True]
    for lost in (opened.token(service.token), session(service, state).open()):
        with pytest.raises(Refused, match="The device phone of alice was taken over with another") as refused:
            await lost
        assert refused.value.code is Code.REPLACED
    service.taken_over = False
    await session(service, state).open()
    assert [login.takeover for login in service.logins] == [True, False]


# ---------------------------------------------------------------- requests


async def test_concurrent_requests_with_a_revoked_token_log_in_once(service: RestService, state: StateFile) -> None:
    opened = session(service, state)
    await opened.open()
    revoked = service.token
    service.revoke()
    answers = await asyncio.gather(
        opened.relations(), opened.relation("bob"), opened.connectors(fresh=True), opened.token(revoked)
    )
    assert answers[0] == service.relations
    assert answers[1] == service.relations[0]
    assert answers[3] == service.token
    assert len(service.logins) == 3  # the first, the one that revoked the token, and the one new login
    again = session(service, state)
    await again.open()
    assert await again.token(None) == service.token


async def test_the_service_is_asked_until_it_answers_and_the_last_list_is_kept_meanwhile(
    service: RestService, state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_ASK_BACKOFF_MIN_S", 0.01)
    opened = session(service, state)
    await opened.open()
    first = service.connectors
    for failure in ("away", "slow"):
        setattr(service, failure, True)
        service.requests.clear()
        asking = asyncio.create_task(opened.connectors(fresh=True))
        while len(service.requests) < 3:
            await asyncio.sleep(0.001)
        assert await opened.connectors(fresh=False) == first
        setattr(service, failure, False)
        assert await asking == first
    service.connectors = ()  # Redis has lost the leases
    assert await opened.connectors(fresh=True) == first
    service.connectors = (rest.Connector("c2", "tcp://127.0.0.1:2", ""),)
    assert await opened.connectors(fresh=False) == first
    assert await opened.connectors(fresh=True) == service.connectors
    again = session(service, state)
    await again.open()
    assert await again.connectors(fresh=False) == service.connectors


@pytest.mark.parametrize(
    ("told", "waits_s"), [("20", 20.0), ("9" * 400, 300.0), ("\xb2", 0.0), ("-5", 0.0), ("Sun, 29 Nov 2026", 0.0)]
)
async def test_rest_is_not_asked_for_connectors_before_it_says(
    service: RestService, state: StateFile, told: str, waits_s: float
) -> None:
    opened = session(service, state)
    await opened.open()
    service.retry_after = told
    service.requests.clear()
    now = asyncio.get_running_loop().time()
    asking = asyncio.create_task(opened.connectors(fresh=True))
    while not opened._asks._not_before:
        await asyncio.sleep(0)
    assert service.requests == ["/connectors"]
    assert waits_s <= opened._asks._not_before - now <= 1.5 * waits_s + 5.0
    asking.cancel()
    await asyncio.wait([asking])
    opened._asks = AskSchedule()
    service.retry_after = None
    service.connectors = (rest.Connector("c2", "tcp://127.0.0.1:2", ""),)
    assert await opened.connectors(fresh=True) == service.connectors


def test_a_service_that_does_not_answer_is_asked_less_and_less_at_any_moment_up_to_a_limit() -> None:
    firsts = []
    for _ in range(200):
        asks, now, waits = AskSchedule(), 0.0, []
        for _ in range(8):
            asks.failed(now, 0.0)
            waits.append(asks.wait_s(now))
            now += waits[-1]
        assert all(wait_s <= limit_s for wait_s, limit_s in zip(waits, [1, 2, 4, 8, 16, 30, 30, 30], strict=True))
        firsts.append(waits[0])
        asks.answered()
        asks.failed(now, 0.0)
        assert asks.wait_s(now) <= 1.0
    assert min(firsts) < 0.2, "full jitter"
    assert max(firsts) > 0.8


async def test_a_proxy_that_says_when_to_come_again_is_believed(service: RestService, state: StateFile) -> None:
    """nginx, with `limit_req` or without a service behind it, answers without a problem."""
    opened = session(service, state)
    await opened.open()
    answer = httpx.Response(503, text="<html>", headers={"retry-after": "20", "content-type": "text/html"})
    opened._api._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer))
    now = asyncio.get_running_loop().time()
    asking = asyncio.create_task(opened.connectors(fresh=True))
    while not opened._asks._not_before:
        await asyncio.sleep(0)
    assert 19.0 <= opened._asks.wait_s(now) <= 31.0
    asking.cancel()
    await asyncio.wait([asking])


# ---------------------------------------------------------------- contacts


async def contacts(service: RestService, state: StateFile) -> Contacts:
    opened = session(service, state)
    await opened.open()
    return Contacts(opened, state, lambda event: None)


async def test_friends_are_known_from_the_login(service: RestService, state: StateFile) -> None:
    known = await contacts(service, state)
    service.away = True
    assert await known.key_for("Bob") == (PEER.user_id, 1, bytes(32))
    assert known.key(PEER.user_id, 1) == bytes(32)
    assert (known.name_of(PEER.user_id), known.name_of(known.me), known.name_of(9)) == ("bob", "alice", "user-9")
    assert service.requests == ["/login"]


async def test_the_newest_key_seals_and_older_keys_open(service: RestService, state: StateFile) -> None:
    keys = (rest.ContentKey(1, b"1" * 32), rest.ContentKey(2, b"2" * 32))
    service.relations = (rest.Relation(PEER, "friends", keys),)
    known = await contacts(service, state)
    assert await known.key_for("bob") == (2, 2, b"2" * 32)
    assert known.key(2, 1) == b"1" * 32
    service.relations = (rest.Relation(PEER, "friends", (*keys, rest.ContentKey(3, b"3" * 32))),)
    service.requests.clear()
    renewed: list[int] = []
    known.on_new_keys = renewed.append
    assert known.key(2, 3) is None
    await known.fetch_keys(2)
    assert known.key(2, 3) == b"3" * 32
    await known.fetch_keys(2)
    assert service.requests == ["/relations?user_id=2"] * 2, "only the relation to the sender"
    assert (known.key(2, 4), renewed) == (None, [2])
    service.away = True
    with pytest.raises(BackendUnavailable):
        await known.fetch_keys(2)


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("carol", Code.NO_SUCH_RECIPIENT, "no such user"),
        ("no such name", Code.NO_SUCH_RECIPIENT, "cannot be the name"),
        ("\N{KELVIN SIGN}arl", Code.NO_SUCH_RECIPIENT, "cannot be the name"),
        ("Alice", Code.NO_SUCH_RECIPIENT, "Nobody writes to oneself"),
        ("dave", Code.NOT_FRIENDS, "answer with `meshim friend accept alice dave`"),
    ],
)
async def test_only_a_friend_has_a_key_to_send_with(
    service: RestService, state: StateFile, name: str, code: Code, sentence: str
) -> None:
    service.relations += (rest.Relation(rest.User(4, "dave"), "asked"),)
    known = await contacts(service, state)
    with pytest.raises(Refused, match=sentence) as refusal:
        await known.key_for(name)
    assert refusal.value.code is code


async def test_an_unknown_user_cannot_be_fetched_while_the_service_is_unavailable(
    service: RestService, state: StateFile
) -> None:
    known = await contacts(service, state)
    service.away = True
    with pytest.raises(BackendUnavailable):
        await known.key_for("carol")


async def test_an_invalidated_relation_is_fetched_again(service: RestService, state: StateFile) -> None:
    known = await contacts(service, state)
    service.relations = (rest.Relation(PEER, "removed", service.relations[0].keys),)
    await known.key_for("bob")
    known.invalidate(PEER.user_id)
    known.invalidate(99)
    with pytest.raises(Refused, match="bob is not your friend: ask with `meshim friend add alice bob`"):
        await known.key_for("bob")
    service.relations = (
        rest.Relation(PEER, "friends", (rest.ContentKey(1, bytes(32)), rest.ContentKey(2, b"n" * 32))),
    )
    assert await known.key_for("bob") == (2, 2, b"n" * 32)


async def test_a_login_while_running_updates_the_keys(service: RestService, state: StateFile) -> None:
    """As after the server's data was deleted, and the same names registered again."""
    opened = session(service, state)
    await opened.open()
    known = Contacts(opened, state, lambda event: None)
    service.relations = (rest.Relation(PEER, "friends", (rest.ContentKey(1, b"anew" * 8),)),)
    await opened.token(service.token)
    assert await known.key_for("bob") == (2, 1, b"anew" * 8)
