"""The REST service: its answers, its changes to the stores, and its notifications."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import msgspec
import pytest

from meshim.errors import ApiError, BackendUnavailable, Code
from meshim.rest import core, routes
from meshim.runtime import crypto
from meshim.runtime.crypto import MasterKey
from meshim.stores.ports import KEY_VERSIONS_MAX, Account, Binding, CachedLogin, Lease, Login
from meshim.wire import rest
from meshim.wire.bounds import INTEGER_MAX
from meshim.wire.client import Change
from meshim.wire.notification import AccountChanged, Kick
from tests.contract.rest.world import PASSWORD, World, befriend, new_user, without_pause

EPOCH = INTEGER_MAX


def token_hash(token: str) -> bytes:
    return crypto.hash_token(crypto.parse_token(token))


# ---------------------------------------------------------------- accounts


async def test_a_name_is_registered_once_in_any_case(world: World) -> None:
    async with world.api() as api:
        alice = await api.register("Alice", PASSWORD)
        assert alice.name == "alice"
        with pytest.raises(ApiError, match="alice is taken") as refused:
            await api.register("aLICE", "another")
        assert (refused.value.status, refused.value.code) == (409, "name_taken")
        with pytest.raises(ApiError, match="letters"):
            await api.register("not a name", PASSWORD)
        with pytest.raises(ApiError, match="password"):
            await api.register("bob", "")


async def test_looking_up_a_user_needs_a_token(world: World) -> None:
    async with world.api() as anonymous, await new_user(world, "alice") as api:
        assert (await api.user("ALICE")).name == "alice"
        with pytest.raises(ApiError, match="no user bob") as missing:
            await api.user("bob")
        assert missing.value.status == 404
        with pytest.raises(ApiError, match="Log in first") as refused:
            await anonymous.user("alice")
        assert (refused.value.status, refused.value.code) == (401, "bad_token")


@pytest.mark.parametrize("name", ["import", "login", "accept", "..a", "a-", "a.b_c-d"])
async def test_a_name_that_is_also_a_path_segment_works(world: World, name: str) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, name) as other:
        assert (await alice.user(name)).name == name
        assert (await alice.request(name)).state == "requested"
        assert (await other.accept("alice")).state == "friends"
        await alice.remove(name)


async def test_an_import_registers_valid_names_and_reports_the_others(world: World) -> None:
    async with await new_user(world, "alice") as api:
        answers = await api.import_users([("bob", "b"), ("alice", "x"), ("Carol", "c"), ("no name", "x"), ("bob", "x")])
        assert [each.user.name if each.user else each.code for each in answers] == [
            "bob",
            "name_taken",
            "carol",
            "bad_name",
            "name_taken",
        ]
        assert (await api.login("carol", "c")).name == "carol"
        assert (await api.login("bob", "b")).name == "bob"


@pytest.mark.parametrize(
    ("address", "headers"), [("10.0.0.7", {}), ("127.0.0.1", {"x-forwarded-for": "10.0.0.7"}), ("", {})]
)
async def test_an_import_from_another_machine_is_refused(world: World, address: str, headers: dict[str, str]) -> None:
    async with world.raw(address) as http:
        response = await http.post("/v1/import", json={"users": []}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


# ---------------------------------------------------------------- logging in


async def test_a_login_registers_its_device_and_lists_the_connectors(world: World) -> None:
    await world.leases.acquire(Lease("connector", "c1", 7, "tcp://127.0.0.1:4001", "k" * 40, url="wss://h/c1"), 60.0)
    async with world.api() as api:
        alice = await api.register("alice", PASSWORD)
        answer = await api.login("Alice", PASSWORD, "phone", EPOCH)
        assert (answer.user_id, answer.name, answer.epoch) == (alice.user_id, "alice", EPOCH)
        assert answer.connectors == (rest.Connector("c1", "tcp://127.0.0.1:4001", "k" * 40, "wss://h/c1"),)
        assert await api.connectors() == answer.connectors
        # The second one is behind the same load balancer.
        await world.leases.acquire(
            Lease("connector", "c2", 8, "tcp://127.0.0.1:4001", "k" * 40, url="wss://h/c1"), 60.0
        )
        both = (rest.Connector("c1,c2", "tcp://127.0.0.1:4001", "k" * 40, "wss://h/c1"),)
        async with asyncio.timeout(5.0):
            while await api.connectors() != both:  # the list may be `REFRESH_S` old
                await asyncio.sleep(0.02)
    # A connector finds the login in the cache, and the same one in the database.
    login = Login(alice.user_id, answer.device_id, EPOCH, answer.expires_at)
    [cached] = await world.cache.logins([token_hash(answer.token)])
    assert cached is not None
    assert (cached.login, cached.verified) == (login, True)
    stored = await world.accounts.login(token_hash(answer.token), 0.0)
    assert stored is not None
    assert (stored.user, stored.device, stored.epoch) == (login.user, login.device, login.epoch)
    [account] = await world.cache.accounts([alice.user_id])
    assert account is not None
    assert account.devices == (answer.device_id,)
    assert world.recorded.notifications == [(None, AccountChanged((alice.user_id,), Change.DEVICES))]


async def test_another_state_file_gets_a_device_only_by_a_takeover(world: World) -> None:
    """H11: and the login that is refused takes no token of the device from the cache."""
    async with world.api() as api, world.api() as other:
        await api.register("alice", PASSWORD)
        first = await api.login("alice", PASSWORD, "phone", 1)
        for redis in (True, False):
            world.turn(redis=redis)
            with pytest.raises(
                ApiError, match=r"uses the device phone with another state file.*log in as another device"
            ) as e:
                await other.login("alice", PASSWORD, "phone", 2)
            assert (e.value.status, e.value.code) == (409, "device_in_use")
        world.turn()
        [cached] = await world.cache.logins([token_hash(first.token)])
        assert cached is not None
        second = await other.login("alice", PASSWORD, "phone", 2, takeover=True)
        assert second.device_id == first.device_id
        with pytest.raises(ApiError, match="with another state file"):
            await api.login("alice", PASSWORD, "phone", 1)
        assert (await other.login("alice", PASSWORD, "phone", 2)).device_id == first.device_id


async def test_a_takeover_ends_the_earlier_session_at_once(world: World) -> None:
    async with world.api() as api:
        await api.register("alice", PASSWORD)
        first = await api.login("alice", PASSWORD, "phone", 1)
        binding = Binding(first.user_id, first.device_id, 7, 99)
        await world.presence.online([(binding, (first.device_id,))])
        world.recorded.notifications.clear()
        second = await api.login("alice", PASSWORD, "phone", 2, takeover=True)
        assert (second.device_id, second.epoch) == (first.device_id, 2)
        assert second.token != first.token
        [(incarnation, kick)] = world.recorded.notifications
        assert isinstance(kick, Kick)
        assert (incarnation, kick.user, kick.device, kick.session) == (7, first.user_id, first.device_id, 99)
        assert kick.code == Code.REPLACED
        assert await world.cache.logins([token_hash(first.token)]) == [None]
        assert await world.accounts.login(token_hash(first.token), 0.0) is None
        async with world.api(first.token) as old:
            with pytest.raises(ApiError, match="log in again"):
                await old.connectors()


async def test_a_new_device_is_added_to_presence(world: World) -> None:
    async with world.api() as api:
        alice = await api.register("alice", PASSWORD)
        phone = await api.login("alice", PASSWORD, "phone", 1)
        await world.presence.online([(Binding(alice.user_id, phone.device_id, 7, 1), (phone.device_id,))])
        laptop = await api.login("alice", PASSWORD, "laptop", 2)
    entry = (await world.presence.lookup([alice.user_id]))[alice.user_id]
    assert set(entry.devices) == {phone.device_id, laptop.device_id}


async def test_two_devices_that_register_at_once_are_both_added_to_presence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process reads the devices, another registers one more, and the first writes what it read."""
    accounts = world.accounts.accounts
    between: list[rest.LoginAnswer] = []

    async def slow(*args: Any) -> Any:
        found = await accounts(*args)
        monkeypatch.setattr(world.accounts, "accounts", accounts)
        between.append(await world.api(app=world.build()).login("alice", PASSWORD, "tablet", 3))
        return found

    async with world.api() as api:
        alice = await api.register("alice", PASSWORD)
        phone = await api.login("alice", PASSWORD, "phone", 1)
        await world.presence.online([(Binding(alice.user_id, phone.device_id, 7, 1), (phone.device_id,))])
        monkeypatch.setattr(world.accounts, "accounts", slow)
        laptop = await api.login("alice", PASSWORD, "laptop", 2)
    entry = (await world.presence.lookup([alice.user_id]))[alice.user_id]
    assert set(entry.devices) == {phone.device_id, laptop.device_id, between[0].device_id}


async def test_a_device_that_was_dropped_leaves_presence_at_the_next_login(world: World) -> None:
    async with world.api() as api:
        alice = await api.register("alice", PASSWORD)
        old = await api.login("alice", PASSWORD, "old", 1)
        assert await world.accounts.drop_idle_devices(time.time() + 1, 10) == 1
        phone = await api.login("alice", PASSWORD, "phone", 2)
        both = (old.device_id, phone.device_id)
        await world.presence.online([(Binding(alice.user_id, phone.device_id, 7, 1), both)])
        await api.login("alice", PASSWORD, "phone", 2)
    assert (await world.presence.lookup([alice.user_id]))[alice.user_id].devices == (phone.device_id,)


async def test_a_login_without_a_device_changes_no_device(world: World) -> None:
    async with world.api() as api, world.api() as other:
        await api.register("alice", PASSWORD)
        phone = await api.login("alice", PASSWORD, "phone", EPOCH)
        world.recorded.notifications.clear()
        answer = await other.login("alice", PASSWORD)
        assert (answer.device_id, answer.epoch, answer.connectors) == (0, 0, ())
        assert await world.cache.logins([token_hash(answer.token)]) == [None], "connectors never see this token"
        assert (await world.accounts.accounts([phone.user_id], 0.0))[phone.user_id].devices == (phone.device_id,)
        assert world.recorded.notifications == []
        assert await other.relations() == await api.relations() == ()


async def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(world: World) -> None:
    await world.api().register("alice", PASSWORD)
    answers = []
    async with world.raw() as http:
        for name in ("alice", "nobody"):
            response = await http.post("/v1/login", json={"name": name, "password": "wrong"})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            answers.append(response.json())
    assert answers[0] == answers[1]


async def test_failed_logins_are_limited_by_name_and_address(world: World) -> None:
    await world.api().register("alice", PASSWORD)
    right = {"name": "alice", "password": PASSWORD}
    async with world.raw("10.0.0.7") as guesser, world.raw("10.0.0.8") as alice:
        for _ in range(10):
            response = await guesser.post("/v1/login", json={"name": "Alice", "password": "guess"})
            assert response.status_code == 401
        response = await guesser.post("/v1/login", json=right)
        assert (response.status_code, response.json()["code"]) == (429, "slow_down")
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert (await alice.post("/v1/login", json=right)).status_code == 200


async def test_guesses_at_once_are_counted_before_they_are_checked(world: World) -> None:
    await world.api().register("alice", PASSWORD)
    async with world.raw("10.0.0.7") as guesser:
        guess = {"name": "alice", "password": "guess"}
        answers = await asyncio.gather(*(guesser.post("/v1/login", json=guess) for _ in range(40)))
    assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 30


async def test_the_devices_of_a_user_are_limited(world: World) -> None:
    async with world.api() as api:
        await api.register("alice", PASSWORD)
        for number in range(3):
            await api.login("alice", PASSWORD, f"device {number}", 1)
        with pytest.raises(ApiError, match="3 devices") as refused:
            await api.login("alice", PASSWORD, "one more", 1)
        assert (refused.value.status, refused.value.code) == (409, "too_many_devices")
        assert (await api.login("alice", PASSWORD, "device 0", 1)).device_id


# ---------------------------------------------------------------- logging out


async def test_a_logout_revokes_the_token_and_kicks_the_session(world: World) -> None:
    async with world.api() as api:
        await api.register("alice", PASSWORD)
        answer = await api.login("alice", PASSWORD, "phone", 1)
        other = await world.api().login("alice", PASSWORD, "laptop", 2)
        devices = (answer.device_id, other.device_id)
        bindings = [Binding(answer.user_id, device, 7, 99) for device in devices]
        await world.presence.online([(binding, devices) for binding in bindings])
        world.recorded.notifications.clear()
        await api.logout()
    [(incarnation, kick)] = world.recorded.notifications
    assert incarnation == 7
    assert isinstance(kick, Kick)
    assert (kick.user, kick.device, kick.session) == (answer.user_id, answer.device_id, 99)
    assert kick.code == Code.LOGGED_OUT
    assert await world.cache.logins([token_hash(answer.token)]) == [None]
    async with world.api(answer.token) as gone:
        with pytest.raises(ApiError, match="log in again"):
            await gone.relations()
        await gone.logout()  # again: an unknown token is no error


async def test_an_unverified_token_in_the_cache_is_looked_up_in_the_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = world.cache.logins

    async def after_a_restart(hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        return [each and each._replace(verified=False) for each in await read(hashes)]

    async with world.api() as api:
        await api.register("alice", PASSWORD)
        answer = await api.login("alice", PASSWORD, "phone", 1)
        monkeypatch.setattr(world.cache, "logins", after_a_restart)
        await api.relations()
        await world.accounts.log_out(token_hash(answer.token))
        with pytest.raises(ApiError, match="log in again"):
            await api.relations()


async def test_a_logout_that_is_interrupted_leaves_no_token_in_the_cache(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is killed before the database has revoked the token, and then when it has."""
    log_out = world.accounts.log_out

    async def killed_before(token: bytes) -> None:
        raise BackendUnavailable("The service was killed.")

    async def killed_after(token: bytes) -> None:
        await log_out(token)
        raise BackendUnavailable("The service was killed.")

    async with world.api() as api:
        await api.register("alice", PASSWORD)
        answer = await api.login("alice", PASSWORD, "phone", 1)
        monkeypatch.setattr(world.accounts, "log_out", killed_before)
        with pytest.raises(ApiError):
            await api.logout()
        assert await world.cache.logins([token_hash(answer.token)]) == [None]
        assert await api.relations() == (), "the database decides"
        monkeypatch.setattr(world.accounts, "log_out", killed_after)
        with pytest.raises(ApiError):
            await api.logout()
        with pytest.raises(ApiError, match="log in again"):
            await api.relations()


async def test_a_logout_drops_a_token_that_redis_brought_back_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis restarts with an old dump, and a connector has the token verified there before the database revokes it."""
    log_out, drop_logins, logins = world.accounts.log_out, world.cache.drop_logins, world.cache.logins
    restarted: list[CachedLogin | None] = []

    async def restart(token: bytes) -> Login | None:
        revoked = await log_out(token)
        restarted.extend(held)
        return revoked

    async def cached(hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        return list(restarted) or await logins(hashes)

    async def drop(hashes: Sequence[bytes]) -> None:
        restarted.clear()
        await drop_logins(hashes)

    async with world.api() as api:
        await api.register("alice", PASSWORD)
        answer = await api.login("alice", PASSWORD, "phone", 1)
        held = await logins([token_hash(answer.token)])
        monkeypatch.setattr(world.accounts, "log_out", restart)
        monkeypatch.setattr(world.cache, "logins", cached)
        monkeypatch.setattr(world.cache, "drop_logins", drop)
        await api.logout()
    async with world.api(answer.token) as gone:
        with pytest.raises(ApiError, match="log in again"):
            await gone.relations()


async def test_an_unknown_token_that_logs_out_leaves_nothing_in_the_cache(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else strangers could fill Redis, where a dropped token is kept for a day."""
    dropped: list[Sequence[bytes]] = []

    async def drop(hashes: Sequence[bytes]) -> None:
        dropped.append(hashes)

    monkeypatch.setattr(world.cache, "drop_logins", drop)
    async with world.api("A" * 43) as stranger:
        await stranger.logout()
    assert dropped == []


async def test_a_session_is_kicked_though_redis_goes_away_during_its_logout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repeated logout finds the login neither in the database nor in the cache."""
    drops = iter([None, BackendUnavailable("Redis is away.")])
    drop_logins = world.cache.drop_logins

    async def second_fails(hashes: Sequence[bytes]) -> None:
        if error := next(drops):
            raise error
        await drop_logins(hashes)

    async with world.api() as api:
        await api.register("alice", PASSWORD)
        answer = await api.login("alice", PASSWORD, "phone", 1)
        await world.presence.online([(Binding(answer.user_id, answer.device_id, 7, 99), (answer.device_id,))])
        world.recorded.notifications.clear()
        monkeypatch.setattr(world.cache, "drop_logins", second_fails)
        with pytest.raises(ApiError) as away:
            await api.logout()
        assert away.value.status == 503
    assert [incarnation for incarnation, _ in world.recorded.notifications] == [7]


async def test_a_repeated_logout_completes_one_that_redis_missed(world: World) -> None:
    async with world.api() as api:
        await api.register("alice", PASSWORD)
        answer = await api.login("alice", PASSWORD, "phone", 1)
        await world.presence.online([(Binding(answer.user_id, answer.device_id, 7, 99), (answer.device_id,))])
        await world.accounts.log_out(token_hash(answer.token))  # a logout during which Redis went away
        world.turn(redis=False)
        with pytest.raises(ApiError) as away:
            await api.logout()
        assert away.value.status == 503
        world.turn()
        world.recorded.notifications.clear()
        await api.logout()
    assert [incarnation for incarnation, _ in world.recorded.notifications] == [7]
    assert await world.cache.logins([token_hash(answer.token)]) == [None]


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer " + "A" * 43, "Bearer " + "ü" * 43])
async def test_a_request_without_a_valid_token_is_refused(world: World, header: str) -> None:
    async with world.raw() as http:
        response = await http.get("/v1/relations", headers=[(b"authorization", header.encode())])
    assert (response.status_code, response.json()["code"]) == (401, "bad_token")


# ---------------------------------------------------------------- friends


async def test_friends_share_a_key_that_is_wrapped_at_rest(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        asked = await alice.request("Bob")
        assert (asked.peer.name, asked.state, asked.keys) == ("bob", "requested", ())
        assert [(each.peer.name, each.state) for each in await bob.relations()] == [("alice", "asked")]
        assert [told for _, told in world.recorded.notifications] == [AccountChanged((1, 2), Change.RELATIONS)]
        accepted = await bob.accept("alice")
        assert (accepted.state, [key.version for key in accepted.keys]) == ("friends", [1])
        seen_by_alice = await alice.relation("bob")
        assert seen_by_alice.keys == accepted.keys
        assert len(accepted.keys[0].key) == 32
        phone = await alice.login("alice", PASSWORD, "phone", 1)
        assert phone.relations == (seen_by_alice,)
    ids = (accepted.peer.user_id, asked.peer.user_id)
    assert world.recorded.notifications[1] == (None, AccountChanged((ids[1], ids[0]), Change.RELATIONS | Change.KEYS))
    [first, second] = await world.cache.accounts(ids)
    assert first is not None
    assert second is not None
    assert (first.friends, second.friends) == ((ids[1],), (ids[0],))
    stored = await world.accounts.relation(*ids)
    assert stored is not None
    assert accepted.keys[0].key not in stored.keys[0].wrapped


async def test_two_users_who_ask_each_other_become_friends(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await alice.request("bob")
        assert (await bob.request("alice")).state == "friends"
        assert (await alice.request("bob")).state == "friends"
        assert (await alice.accept("bob")).state == "friends"
        assert len((await alice.relation("bob")).keys) == 1


async def test_an_ended_friendship_keeps_its_keys_for_old_messages(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        before = await befriend(world, alice, bob)
        await alice.remove("bob")
        [account] = await world.cache.accounts([before.peer.user_id])
        assert account is not None
        assert account.friends == ()
        assert len(world.recorded.notifications) == 1
        [ended] = await bob.relations()
        assert (ended.state, ended.keys) == ("removed", before.keys)
        with pytest.raises(ApiError, match="not friends"):
            await bob.remove("alice")
        await bob.request("alice")
        again = await alice.accept("bob")
        assert [key.version for key in again.keys] == [1, 2]
        assert again.keys[0] == before.keys[0]
        assert again.keys[1].key != before.keys[0].key


async def test_a_friendship_that_is_ended_and_made_anew_without_end_is_refused_in_the_end(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await befriend(world, alice, bob)
        for _ in range(KEY_VERSIONS_MAX - 1):
            await alice.remove("bob")
            await alice.request("bob")
            await bob.accept("alice")
        await alice.remove("bob")
        await alice.request("bob")
        with pytest.raises(ApiError) as refused:
            await bob.accept("alice")
        assert (refused.value.status, refused.value.code) == (409, "too_many_friendships")
        [relation] = await alice.relations()
        assert (relation.state, len(relation.keys)) == ("requested", KEY_VERSIONS_MAX)
        later = world.build(clock=lambda: time.time() + 91 * 86400)
        async with world.api(app=later) as api:
            await api.login("bob", PASSWORD)
            relation = await api.accept("alice")
        assert [key.version for key in relation.keys] == [KEY_VERSIONS_MAX, KEY_VERSIONS_MAX + 1]


async def test_a_relation_is_found_by_the_id_of_the_peer_and_only_one_of_the_own(world: World) -> None:
    async with (
        await new_user(world, "alice") as alice,
        await new_user(world, "bob") as bob,
        await new_user(world, "carol") as carol,
        world.raw() as http,
    ):
        await befriend(world, alice, bob)
        bobs, carols = [(await alice.user(name)).user_id for name in ("bob", "carol")]
        assert await alice.relations(bobs) == (await alice.relation("bob"),)
        assert await alice.relations(carols) == await alice.relations(INTEGER_MAX) == ()
        assert await carol.relations(bobs) == ()
        for wrong in ("bob", 0, -1, INTEGER_MAX + 1, 1 << 63, 1 << 70):
            answer = await http.get(
                f"/v1/relations?user_id={wrong}", headers={"authorization": f"Bearer {alice.token}"}
            )
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


async def test_refused_and_withdrawn_requests_change_no_account(world: World) -> None:
    without_pause(world)
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await alice.request("bob")
        with pytest.raises(ApiError, match="bob to accept"):
            await alice.accept("bob")
        await bob.refuse("alice")
        with pytest.raises(ApiError, match="has not asked"):
            await bob.accept("alice")
        await alice.request("bob")
        await alice.remove("bob")
        with pytest.raises(ApiError) as missing:
            await bob.relation("alice")
        assert (missing.value.status, missing.value.code) == (404, "no_such_relation")
    whats = [told.what for _, told in world.recorded.notifications if isinstance(told, AccountChanged)]
    assert whats == [Change.RELATIONS] * 4, "devices ask for the request; connectors read no account"


async def test_invalid_friend_requests_are_refused_with_their_code(world: World) -> None:
    async with await new_user(world, "alice") as alice:
        for name, code in (("alice", "yourself"), ("nobody", "no_such_user"), ("no%2Fname", "bad_name")):
            with pytest.raises(ApiError) as refused:
                await alice.request(name)
            assert refused.value.code == code


async def test_presence_covers_friends_on_living_connectors_only(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await new_user(world, "carol")
        ids = {name: (await alice.user(name)).user_id for name in ("alice", "bob", "carol")}
        await befriend(world, alice, bob)
        await alice.request("carol")
        await world.leases.acquire(Lease("connector", "c1", 7, "tcp://127.0.0.1:1"), 60.0)
        await world.presence.online([(Binding(ids[name], n, 7, 1), (n,)) for n, name in enumerate(("bob", "carol"), 1)])
        assert await alice.presence() == (rest.PeerPresence(rest.User(ids["bob"], "bob"), online=True),)
        assert [each.online for each in await bob.presence()] == [False]
        # The same binding, on a connector whose lease has ended.
        await world.leases.release(Lease("connector", "c1", 7))
        assert [each.online for each in await alice.presence()] == [False]


async def test_a_web_page_of_a_listed_origin_may_ask_and_read(world: World) -> None:
    """Browsers ask first (OPTIONS), since requests have a JSON body or a token."""
    page, other = "https://chat.example", "https://evil.example"
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    security = msgspec.structs.replace(world.topology.security, origins=(page,))
    world.topology = msgspec.structs.replace(world.topology, security=security)
    transport = world.transport(app=world.build())
    async with httpx.AsyncClient(base_url="http://localhost", transport=transport) as http:
        allowed = await http.options("/v1/login", headers={"Origin": page, **asked})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == page
        assert {"authorization", "content-type"} <= set(
            allowed.headers["access-control-allow-headers"].lower().split(", ")
        )
        assert (await http.options("/v1/login", headers={"Origin": other, **asked})).status_code == 400
        read = await http.get("/healthz", headers={"Origin": page})
        assert read.headers["access-control-allow-origin"] == page
        assert read.headers["access-control-expose-headers"] == "retry-after"
        refused = await http.get("/v1/users/alice", headers={"Origin": page})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page)
        assert "access-control-allow-origin" not in (await http.get("/healthz", headers={"Origin": other})).headers


async def test_without_origins_no_web_page_may_read(world: World) -> None:
    async with world.raw() as http:
        page = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
        for answer in (await http.options("/v1/login", headers=page), await http.get("/healthz", headers=page)):
            assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_another_master_key_has_its_own_code(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await befriend(world, alice, bob)
        async with world.api(alice.token, world.build(MasterKey(b"x" * 32))) as elsewhere:
            with pytest.raises(ApiError, match=r"restore master\.key") as refused:
                await elsewhere.relations()
        assert (refused.value.status, refused.value.code) == (500, "wrong_master_key")


async def test_a_login_that_cannot_give_the_keys_costs_the_device_nothing(world: World) -> None:
    """Its token stays valid: the keys are read before the new token is committed."""
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        await befriend(world, alice, bob)
        token = (await alice.login("alice", PASSWORD, "phone", 1)).token
        async with world.api(app=world.build(MasterKey(b"x" * 32))) as elsewhere:
            with pytest.raises(ApiError) as refused:
                await elsewhere.login("alice", PASSWORD, "phone", 1)
        assert (refused.value.status, refused.value.code) == (500, "wrong_master_key")
        async with world.api(token) as phone:
            assert [relation.peer.name for relation in await phone.relations()] == ["bob"]


# ---------------------------------------------------------------- backends away


async def test_the_database_is_away(world: World) -> None:
    async with world.api() as api, world.raw() as http:
        await api.register("alice", PASSWORD)
        await api.login("alice", PASSWORD, "phone", 1)
        world.turn(sql=False)
        response = await http.post("/v1/login", json={"name": "alice", "password": PASSWORD})
        assert (response.status_code, response.json()["code"]) == (503, "backend_unavailable")
        assert "database is away" in response.json()["detail"]
        assert int(response.headers["retry-after"]) > 0
        assert await api.connectors() == (), "a known token still finds its connectors (R8)"
        with pytest.raises(ApiError) as away:
            await api.relations()
        assert away.value.temporary


async def test_redis_is_away(world: World) -> None:
    lease = Lease("connector", "c1", 7, "tcp://127.0.0.1:4001")
    await world.leases.acquire(lease, 60.0)
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        before = await alice.connectors()
        world.turn(redis=False)
        assert (await alice.login("alice", PASSWORD)).user_id, "a token for REST alone"
        assert await alice.connectors() == before != (), "the last list"
        await alice.request("bob")
        assert (await bob.accept("alice")).state == "friends"
        assert len(world.recorded.notifications) == 2, "connectors are notified all the same"
        with pytest.raises(ApiError) as away:
            await alice.presence()
        assert (away.value.status, away.value.code) == (503, "backend_unavailable")
        world.turn()
    assert "change-not-notified" in world.log.getvalue()


async def test_no_device_is_taken_over_while_redis_is_away(world: World) -> None:
    """R14: the cache would still accept the token of the old state file."""
    async with world.api() as old, world.api() as new:
        await old.register("alice", PASSWORD)
        first = await old.login("alice", PASSWORD, "phone", 1)
        world.turn(redis=False)
        with pytest.raises(ApiError, match=r"Redis is away.*try again") as away:
            await new.login("alice", PASSWORD, "phone", 2, takeover=True)
        assert (away.value.status, away.value.code) == (503, "backend_unavailable")
        assert away.value.retry_after_s
        login = await world.accounts.login(token_hash(first.token), 0.0)
        assert login is not None
        assert login.epoch == 1, "nothing was committed"
        world.turn()
        assert await old.relations() == (), "the device was not taken over"
        assert (await new.login("alice", PASSWORD, "phone", 2, takeover=True)).device_id == first.device_id


async def test_redis_goes_away_during_the_commit_of_a_takeover(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R14: the cache must not accept the token of the old state file after the commit."""
    log_in = world.accounts.log_in

    async def last_moment(*args: Any) -> Any:
        world.turn(redis=False)
        return await log_in(*args)

    async with world.api() as api:
        await api.register("alice", PASSWORD)
        first = await api.login("alice", PASSWORD, "phone", 1)
        monkeypatch.setattr(world.accounts, "log_in", last_moment)
        with pytest.raises(ApiError, match=r"Redis is away.*again"):
            await api.login("alice", PASSWORD, "phone", 2, takeover=True)
        monkeypatch.setattr(world.accounts, "log_in", log_in)
        world.turn()
        assert await world.cache.logins([token_hash(first.token)]) == [None]
        second = await api.login("alice", PASSWORD, "phone", 2, takeover=True)
    assert await world.accounts.login(token_hash(second.token), 0.0) is not None


async def test_a_new_device_is_logged_in_once_presence_lists_it(world: World) -> None:
    """Messages get a copy for each device that presence lists: an answer before that could lose some.  The connectors
    hear of the device all the same."""
    async with world.api() as api:
        user = (await api.register("alice", PASSWORD)).user_id
        phone = await api.login("alice", PASSWORD, "phone", 1)
        binding = Binding(user=user, device=phone.device_id, incarnation=7, session=1)
        await world.presence.online([(binding, (phone.device_id,))])
        world.recorded.notifications.clear()
        world.turn(redis=False)
        with pytest.raises(ApiError, match=r"Redis is away.*log in again") as away:
            await api.login("alice", PASSWORD, "laptop", 2, takeover=True)
        assert (away.value.status, away.value.code, away.value.temporary) == (503, "backend_unavailable", True)
        assert world.recorded.notifications == [(None, AccountChanged((user,), int(Change.DEVICES)))]
        world.turn()
        laptop = await api.login("alice", PASSWORD, "laptop", 2, takeover=True)
        listed = (await world.presence.lookup([user]))[user].devices
        assert listed == (phone.device_id, laptop.device_id)


async def test_a_registration_wins_over_what_a_connector_with_a_fast_clock_has_cached(world: World) -> None:
    """A greeting of another device of the user would otherwise write the list without the new device to presence."""
    async with world.api() as api:
        user = (await api.register("alice", PASSWORD)).user_id
        phone = await api.login("alice", PASSWORD, "phone", 1)
        fast = time.time() + 3600.0
        await world.cache.put_accounts([Account(user, (phone.device_id,), (), fast)])
        laptop = await api.login("alice", PASSWORD, "laptop", 2)
        [account] = await world.cache.accounts([user])
        assert account is not None
        assert account.devices == (phone.device_id, laptop.device_id)


async def test_an_uncommitted_takeover_ends_no_login(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is killed when the old token has left the cache, and is still valid in the database."""

    async def killed(*_: Any) -> Any:
        raise BackendUnavailable("The service was killed.")

    async with world.api() as old, world.api() as new:
        await old.register("alice", PASSWORD)
        first = await old.login("alice", PASSWORD, "phone", 1)
        monkeypatch.setattr(world.accounts, "log_in", killed)
        with pytest.raises(ApiError):
            await new.login("alice", PASSWORD, "phone", 2, takeover=True)
        assert await world.cache.logins([token_hash(first.token)]) == [None]
        assert await old.relations() == ()


async def test_a_login_between_eviction_and_commit_is_revoked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token was not in the cache yet at the eviction; the later login must revoke it there too."""
    log_in = world.accounts.log_in
    between: list[rest.LoginAnswer] = []

    async def late(*args: Any) -> Any:
        monkeypatch.setattr(world.accounts, "log_in", log_in)
        between.append(await world.api().login("alice", PASSWORD, "phone", 2, takeover=True))
        return await log_in(*args)

    async with world.api() as api:
        await api.register("alice", PASSWORD)
        monkeypatch.setattr(world.accounts, "log_in", late)
        last = await api.login("alice", PASSWORD, "phone", 3, takeover=True)
    hashes = [token_hash(answer.token) for answer in (*between, last)]
    assert [each and each.login.epoch for each in await world.cache.logins(hashes)] == [None, 3]


async def test_nats_is_away(world: World) -> None:
    async with await new_user(world, "alice") as alice, await new_user(world, "bob") as bob:
        world.turn(nats=False)
        await alice.request("bob")
        assert (await bob.accept("alice")).state == "friends"
        await alice.login("alice", PASSWORD, "phone", 1)
        await alice.logout()


async def test_readyz_reports_which_backend_is_away(world: World) -> None:
    async with world.raw() as http:
        assert (await http.get("/healthz")).json() == {"ok": True, "reason": ""}
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        world.turn(redis=False)
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        found = msgspec.json.decode(ready.content, type=rest.Readiness)
        assert {name: probe.ok for name, probe in found.backends.items()} == {"sql": True, "redis": False, "nats": True}
        assert found.backends["redis"].reason == "Redis is away."
        assert (await http.get("/healthz")).status_code == 200


async def test_readyz_says_that_nothing_can_be_stored(world: World) -> None:
    world.not_stored = "NATS refuses to store."
    async with world.raw() as http:
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        found = msgspec.json.decode(ready.content, type=rest.Readiness)
        assert {name: probe.ok for name, probe in found.backends.items()} == {"sql": True, "redis": True, "nats": False}
        assert found.backends["nats"].reason == "NATS refuses to store."


async def test_many_requests_of_readyz_ask_once_whether_it_stores(world: World) -> None:
    async with world.raw() as http:
        answers = await asyncio.gather(*(http.get("/readyz") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert world.storing_asked == 1


# ---------------------------------------------------------------- bad requests


async def problem_of(response: httpx.Response) -> rest.Problem:
    assert response.headers["content-type"].startswith(rest.PROBLEM_JSON)
    problem = msgspec.json.decode(response.content, type=rest.Problem, strict=True)
    assert problem.status == response.status_code
    assert problem.code in core.PROBLEMS
    assert problem.type.endswith(problem.code)
    assert problem.detail.endswith(".")
    assert "\n" not in problem.detail
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"\xff"',
        b'{"name": "alice"}',
        b'{"name": 1, "password": "x"}',
        b'{"name": "a", "password": "x", "epoch": 1.5}',
        b'{"name": "a", "password": "x", "epoch": 9007199254740992}',
        b'{"name": "a", "password": "\\ud800"}',
        b'{"name": "a", "password": "x", "device": ""}',
        b"[" * 10_000,
    ],
)
async def test_an_invalid_body_is_answered_with_a_problem(world: World, body: bytes) -> None:
    async with world.raw() as http:
        response = await http.post("/v1/login", content=body, headers={"content-type": "application/json"})
    assert (await problem_of(response)).status == 400


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b'{"name": "alice"}', "Object missing required field `password`"),
        (b'{"name": 1, "password": "x"}', "Expected `str`, got `int` - at `name`"),
    ],
)
async def test_the_answer_to_an_invalid_body_names_the_field(world: World, body: bytes, wrong: str) -> None:
    async with world.raw() as http:
        response = await http.post("/v1/users", content=body, headers={"content-type": "application/json"})
    assert (await problem_of(response)).detail == f"Validation failed for POST /v1/users: {wrong}."


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}]
)
async def test_a_body_of_another_content_type_is_refused(world: World, headers: dict[str, str]) -> None:
    body = msgspec.json.encode(rest.Credentials("alice", PASSWORD))
    async with world.raw() as http:
        response = await http.post("/v1/users", content=body, headers=headers)
        assert (await problem_of(response)).code == "unsupported_media_type"
        response = await http.post(
            "/v1/users", content=body, headers={"content-type": "application/json; charset=utf-8"}
        )
        assert response.status_code == 201


async def test_unknown_paths_and_methods_are_answered_with_a_problem(world: World) -> None:
    async with world.raw() as http:
        for method, path, code in (
            ("GET", "/v1/nothing", "not_found"),
            ("GET", "/", "not_found"),
            ("PUT", "/v1/login", "method_not_allowed"),
        ):
            assert (await problem_of(await http.request(method, path))).code == code


@pytest.mark.parametrize(("path", "limit"), [("login", routes.BODY_BYTES_MAX), ("import", routes.IMPORT_BYTES_MAX)])
async def test_a_body_over_the_limit_is_refused(world: World, path: str, limit: int) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(limit // 1000 + 2):
            yield b" " * 1000

    async with world.raw() as http:
        for content in (b" " * (limit + 1), endless()):
            response = await http.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
            assert (await problem_of(response)).code == "too_large"


async def test_the_largest_import_fits(world: World) -> None:
    users = [{"name": "!" * 64, "password": "\x01" * 256}] * core.IMPORT_USERS_MAX
    async with world.raw() as http:
        response = await http.post("/v1/import", json={"users": users})
    assert response.status_code == 200


async def test_fields_of_later_versions_are_ignored(world: World) -> None:
    async with world.raw() as http:
        response = await http.post("/v1/users", json={"name": "alice", "password": PASSWORD, "nickname": "Al"})
    assert response.status_code == 201


async def test_an_unexpected_exception_is_logged_and_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(name: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(world.sql, "user", broken, raising=False)
    async with world.raw() as http:
        response = await http.post("/v1/login", json={"name": "alice", "password": PASSWORD})
    problem = await problem_of(response)
    assert problem.code == "internal"
    assert "secret" not in response.text
    assert "secret detail" in world.log.getvalue()


async def test_openapi_lists_every_endpoint(world: World) -> None:
    async with world.raw() as http:
        schema = (await http.get("/schema/openapi.json")).json()
    shown = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert shown == {
        "POST /v1/users",
        "POST /v1/import",
        "GET /v1/users/{name}",
        "POST /v1/login",
        "POST /v1/logout",
        "GET /v1/connectors",
        "GET /v1/relations",
        "GET /v1/relations/{name}",
        "POST /v1/relations/{name}",
        "DELETE /v1/relations/{name}",
        "POST /v1/relations/{name}/accept",
        "POST /v1/relations/{name}/refuse",
        "POST /v1/relations/{name}/block",
        "POST /v1/relations/{name}/unblock",
        "GET /v1/presence",
        "GET /healthz",
        "GET /readyz",
    }
    assert schema["paths"]["/v1/relations"]["get"]["security"] == [{"token": []}]
    assert "security" not in schema["paths"]["/v1/login"]["post"]
