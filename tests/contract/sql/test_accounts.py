"""The port `Accounts`: users, devices, tokens and relations, in memory, on SQLite and on MariaDB."""

import asyncio
import secrets

import pytest

from meshim.connector.cookies import SECRET_BYTES
from meshim.errors import DeviceInUse, StoreConflict, TooManyKeys
from meshim.stores.ports import KEY_VERSIONS_MAX, Account, Login, RelationKey, User
from meshim.wire.bounds import INTEGER_MAX
from tests.contract.sql.backends import (
    EPOCH,
    LIMITS,
    NOW,
    Backend,
    Ports,
    device_ids,
    device_of,
    entry,
    person,
    processes,
)

# ---------------------------------------------------------------- users


async def test_registered_user_is_found_by_name(ports: Ports) -> None:
    alice = await ports.accounts.register("alice", "phc-string")
    assert await ports.accounts.user("alice") == (alice, "phc-string")
    assert await ports.accounts.user("bob") is None


async def test_name_is_taken_once(ports: Ports) -> None:
    alice = await ports.accounts.register("alice", "first")
    with pytest.raises(StoreConflict, match="alice is taken"):
        await ports.accounts.register("alice", "second")
    assert await ports.accounts.user("alice") == (alice, "first")


@pytest.mark.parametrize("other", ["Alice", "älice", "alice2", "alic"])
async def test_names_are_compared_byte_by_byte(ports: Ports, other: str) -> None:
    await ports.accounts.register("alice", "hash")
    assert await ports.accounts.user(other) is None
    await ports.accounts.register(other, "hash")


async def test_register_many_gives_none_for_taken_names(ports: Ports) -> None:
    await ports.accounts.register("bob", "first")
    found = await ports.accounts.register_many([("alice", "a"), ("bob", "b"), ("carol", "c"), ("alice", "d")])
    alice = await ports.accounts.user("alice")
    carol = await ports.accounts.user("carol")
    assert alice is not None
    assert carol is not None
    assert (alice[1], carol[1]) == ("a", "c")
    assert found == [alice[0], None, carol[0], None]
    assert await ports.accounts.register_many([]) == []


async def test_register_many_takes_more_than_one_statement_holds(ports: Ports) -> None:
    users = [(f"bot{number}", "hash") for number in range(1_201)]
    found = await ports.accounts.register_many([*users, users[0]])
    assert found[-1] is None
    registered = [user for user in found if user is not None]
    assert [user.name for user in registered] == [name for name, _ in users]
    assert set(await ports.accounts.accounts([user.user_id for user in registered], NOW)) == {
        user.user_id for user in registered
    }


async def test_one_of_several_registrations_at_once_gets_the_name(backend: Backend) -> None:
    registrations = (process.accounts.register("alice", "hash") for process in await processes(backend, 4))
    answers = await asyncio.gather(*registrations, return_exceptions=True)
    assert sum(isinstance(answer, User) for answer in answers) == 1
    assert sum(isinstance(answer, StoreConflict) for answer in answers) == 3


# ---------------------------------------------------------------- devices and tokens


async def test_log_in_registers_the_device_and_the_token(ports: Ports) -> None:
    alice = await person(ports)
    token = secrets.token_bytes(32)
    device, revoked = await ports.accounts.log_in(alice.user_id, "phone", EPOCH, token, NOW + 60.5, NOW, 10)
    assert (device.name, device.epoch, device.last_seen, revoked) == ("phone", EPOCH, NOW, ())
    assert await device_ids(ports, alice) == [device.device_id]
    login = Login(alice.user_id, device.device_id, EPOCH, NOW + 60.5)
    assert await ports.accounts.login(token, NOW) == login
    assert await ports.accounts.login(token, NOW + 60.5) is None
    assert await ports.accounts.login(secrets.token_bytes(32), NOW) is None


@pytest.mark.parametrize("epoch", [0, 1, INTEGER_MAX])
async def test_every_epoch_is_kept(ports: Ports, epoch: int) -> None:
    alice = await person(ports)
    token = secrets.token_bytes(32)
    device, _ = await ports.accounts.log_in(alice.user_id, "phone", epoch, token, NOW + 60, NOW, 10)
    assert device.epoch == epoch
    assert await ports.accounts.login(token, NOW) == Login(alice.user_id, device.device_id, epoch, NOW + 60)


async def test_another_epoch_gets_the_device_only_by_a_takeover(ports: Ports) -> None:
    """H11: a login that is refused changes nothing."""
    alice = await person(ports)
    token, refused, again = secrets.token_bytes(32), secrets.token_bytes(32), secrets.token_bytes(32)
    await ports.accounts.log_in(alice.user_id, "phone", 1, token, NOW + 60, NOW, 1)
    with pytest.raises(DeviceInUse, match="phone has logged in with another state file"):
        await ports.accounts.log_in(alice.user_id, "phone", 2, refused, NOW + 60, NOW, 1)
    assert await ports.accounts.tokens(alice.user_id, "phone") == {token: 1}
    await ports.accounts.log_in(alice.user_id, "phone", 1, again, NOW + 60, NOW, 1)
    await ports.accounts.log_out(again)
    with pytest.raises(DeviceInUse):
        await ports.accounts.log_in(alice.user_id, "phone", 2, refused, NOW + 60, NOW, 1)


async def test_a_takeover_keeps_the_device(ports: Ports) -> None:
    """R14: the device keeps its id, and so its queue, under a new epoch."""
    alice = await person(ports)
    first_token, second_token = secrets.token_bytes(32), secrets.token_bytes(32)
    first, _ = await ports.accounts.log_in(alice.user_id, "phone", 1, first_token, NOW + 60, NOW, 1)
    second, revoked = await ports.accounts.log_in(
        alice.user_id, "phone", 2, second_token, NOW + 60, NOW + 1, 1, takeover=True
    )
    assert (second.device_id, second.epoch, second.last_seen) == (first.device_id, 2, NOW + 1)
    assert revoked == (first_token,)
    assert await ports.accounts.login(first_token, NOW) is None
    assert await ports.accounts.login(second_token, NOW) == Login(alice.user_id, first.device_id, 2, NOW + 60)


async def test_tokens_belong_to_one_device_of_one_user(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    of_phone, renewed, of_laptop, of_bob, for_rest = (secrets.token_bytes(32) for _ in range(5))
    logins = ((alice, "phone", of_phone), (alice, "laptop", of_laptop), (bob, "phone", of_bob), (alice, None, for_rest))
    for user, device, token in logins:
        await ports.accounts.log_in(user.user_id, device, 1, token, NOW + 60, NOW, 10)
    assert await ports.accounts.tokens(alice.user_id, "phone") == {of_phone: 1}
    assert await ports.accounts.tokens(bob.user_id, "phone") == {of_bob: 1}
    for user_id, device in ((alice.user_id, "Phone"), (bob.user_id, "laptop"), (1 << 52, "phone")):
        assert await ports.accounts.tokens(user_id, device) == {}
    await ports.accounts.log_in(alice.user_id, "phone", 2, renewed, NOW + 60, NOW, 10, takeover=True)
    assert await ports.accounts.tokens(alice.user_id, "phone") == {renewed: 2}
    await ports.accounts.log_out(renewed)
    assert await ports.accounts.tokens(alice.user_id, "phone") == {}
    assert await ports.accounts.tokens(alice.user_id, "laptop") == {of_laptop: 1}


async def test_an_expired_token_counts_as_unrevoked(ports: Ports) -> None:
    alice = await person(ports)
    expired, taken_over, logged_out, renewed, unknown = (secrets.token_bytes(32) for _ in range(5))
    for device, token in (("watch", expired), ("phone", taken_over), ("laptop", logged_out), ("phone", renewed)):
        await ports.accounts.log_in(alice.user_id, device, 1, token, NOW - 1, NOW, 10)
    await ports.accounts.log_out(logged_out)
    others = [secrets.token_bytes(32) for _ in range(600)]  # more than one query takes
    asked = [expired, taken_over, logged_out, *others, renewed, unknown]
    assert await ports.accounts.unrevoked(asked) == {expired, renewed}
    assert await ports.accounts.unrevoked([]) == set()


async def test_log_in_repeated_revokes_nothing(ports: Ports) -> None:
    """The answer to the first call was lost."""
    alice = await person(ports)
    token = secrets.token_bytes(32)
    first = await ports.accounts.log_in(alice.user_id, "phone", 1, token, NOW + 60, NOW, 10)
    assert await ports.accounts.log_in(alice.user_id, "phone", 1, token, NOW + 60, NOW, 10) == first
    assert await ports.accounts.login(token, NOW) is not None


async def test_devices_are_limited_per_user(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await device_of(ports, bob, "laptop", most=2)
    phone = await device_of(ports, alice, "phone", most=2)
    laptop = await device_of(ports, alice, "laptop", most=2)
    with pytest.raises(StoreConflict, match="2 devices"):
        await device_of(ports, alice, "tablet", most=2)
    assert await device_ids(ports, alice) == [phone.device_id, laptop.device_id]


async def test_devices_are_limited_for_logins_at_once(backend: Backend) -> None:
    ports = backend.process()
    alice = await person(ports)
    logins = (
        device_of(process, alice, f"device {number}", most=2)
        for number, process in enumerate(await processes(backend, 4))
    )
    answers = await asyncio.gather(*logins, return_exceptions=True)
    assert sum(isinstance(answer, StoreConflict) for answer in answers) == 2
    assert len(await device_ids(ports, alice)) == 2


async def test_logins_at_once_share_one_device(backend: Backend) -> None:
    ports = backend.process()
    alice = await person(ports)
    devices = await asyncio.gather(*(device_of(process, alice) for process in await processes(backend, 4)))
    assert len({device.device_id for device in devices}) == 1


async def test_login_of_an_unknown_user_is_refused(ports: Ports) -> None:
    for device in ("phone", None):
        with pytest.raises(StoreConflict, match="no such user"):
            await ports.accounts.log_in(1 << 52, device, 1, secrets.token_bytes(32), NOW, NOW, 10)


async def test_token_for_rest_only_touches_no_device(ports: Ports) -> None:
    alice = await person(ports)
    token = secrets.token_bytes(32)
    device, revoked = await ports.accounts.log_in(alice.user_id, None, 0, token, NOW + 60, NOW, 10)
    assert (device.device_id, device.name, device.epoch, revoked) == (0, "", 0, ())
    assert await ports.accounts.login(token, NOW) == Login(alice.user_id, 0, 0, NOW + 60)
    assert await device_ids(ports, alice) == []


async def test_user_keeps_the_newest_tokens_for_rest(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await ports.accounts.log_in(bob.user_id, None, 0, secrets.token_bytes(32), NOW + 60, NOW, 2)
    device_token = secrets.token_bytes(32)
    await ports.accounts.log_in(alice.user_id, "phone", 1, device_token, NOW + 60, NOW, 2)
    tokens = [secrets.token_bytes(32) for _ in range(4)]
    revoked = [
        (await ports.accounts.log_in(alice.user_id, None, 0, token, NOW + 60, NOW, 2))[1]
        for token in [*tokens, tokens[3]]
    ]
    assert revoked == [(), (), (tokens[0],), (tokens[1],), ()]
    logins = [await ports.accounts.login(token, NOW) for token in tokens]
    assert [login is not None for login in logins] == [False, False, True, True]
    assert await ports.accounts.login(device_token, NOW) is not None


async def test_log_out_revokes_once(backend: Backend) -> None:
    ports = backend.process()
    alice = await person(ports)
    token = secrets.token_bytes(32)
    device, _ = await ports.accounts.log_in(alice.user_id, "phone", EPOCH, token, NOW + 60, NOW, 10)
    answers = await asyncio.gather(*(process.accounts.log_out(token) for process in await processes(backend, 3)))
    login = Login(alice.user_id, device.device_id, EPOCH, NOW + 60)
    assert sorted(answers, key=lambda answer: answer is None) == [login, None, None]
    assert await ports.accounts.login(token, NOW) is None
    assert await device_ids(ports, alice) == [device.device_id]


async def test_last_seen_only_rises(ports: Ports) -> None:
    alice = await person(ports)
    phone, laptop = await device_of(ports, alice, "phone"), await device_of(ports, alice, "laptop", now=NOW + 20)
    await ports.accounts.seen([laptop.device_id, phone.device_id, 1 << 52], NOW + 10)
    for idle_before, left in ((NOW + 10, [phone, laptop]), (NOW + 20, [laptop]), (NOW + 21, [])):
        await ports.accounts.drop_idle_devices(idle_before, 10)
        assert await device_ids(ports, alice) == [device.device_id for device in left]


async def test_idle_device_goes_with_its_tokens_and_queue(backend: Backend) -> None:
    ports = backend.process()
    alice = await person(ports)
    old, token = await device_of(ports, alice, "old"), secrets.token_bytes(32)
    await ports.accounts.log_in(alice.user_id, "old", 1, token, NOW + 60, NOW, 10)
    rest_token = secrets.token_bytes(32)
    await ports.accounts.log_in(alice.user_id, None, 0, rest_token, NOW + 60, NOW, 10)
    used = await device_of(ports, alice, "used", now=NOW + 10)
    fence, _ = await ports.partitions.claim(0, "writer", 60.0) or pytest.fail("not free")
    await ports.partitions.write(0, fence, 1, [(1, [entry(alice, 1)])], NOW)

    assert await ports.accounts.drop_idle_devices(NOW + 10, 10) == 1

    assert await device_ids(ports, alice) == [used.device_id]
    assert await ports.accounts.login(token, NOW) is None
    assert await ports.accounts.login(rest_token, NOW) is not None
    assert (await backend.rows(old.device_id), await backend.rows(used.device_id)) == (0, 1)
    # A writer whose record still names the device leaves it out.
    written = await ports.partitions.write(0, fence, 2, [(2, [entry(alice, 2, [old, used])])], NOW)
    assert written.devices == ((alice.user_id, used.device_id),)
    assert written.left_out == 1


async def test_idle_devices_go_longest_idle_first_up_to_the_limit(ports: Ports) -> None:
    alice = await person(ports)
    last, *_ = [
        await device_of(ports, alice, name, now=seen) for name, seen in (("c", NOW + 3), ("a", NOW + 1), ("b", NOW + 2))
    ]
    assert await ports.accounts.drop_idle_devices(NOW + 60, 2) == 2
    assert await device_ids(ports, alice) == [last.device_id]


async def test_id_of_a_dropped_device_is_not_given_again(ports: Ports) -> None:
    alice = await person(ports)
    dropped = await device_of(ports, alice)
    assert await ports.accounts.drop_idle_devices(NOW + 1, 10) == 1
    assert (await device_of(ports, alice)).device_id > dropped.device_id


# ---------------------------------------------------------------- relations


async def _befriend(ports: Ports, one: User, other: User, version: int = 1) -> None:
    await ports.accounts.request(one.user_id, other.user_id, NOW, LIMITS)
    await ports.accounts.accept(other.user_id, one.user_id, RelationKey(version, b"key %d" % version), NOW, 100)


async def _states(ports: Ports, one: User, other: User) -> tuple[str | None, str | None]:
    ours = await ports.accounts.relation(one.user_id, other.user_id)
    theirs = await ports.accounts.relation(other.user_id, one.user_id)
    assert (ours is None) == (theirs is None)
    if ours is None or theirs is None:
        return None, None
    assert (ours.peer, theirs.peer, ours.keys) == (other, one, theirs.keys)
    return ours.state, theirs.state


@pytest.mark.parametrize("later_asks", [False, True], ids=["lower id asks", "higher id asks"])
async def test_friendship_is_requested_and_accepted(ports: Ports, later_asks: bool) -> None:
    one, other = await person(ports), await person(ports)
    if later_asks:
        one, other = other, one
    assert await _states(ports, one, other) == (None, None)

    assert (await ports.accounts.request(one.user_id, other.user_id, NOW, LIMITS)).state == "requested"
    assert await _states(ports, one, other) == ("requested", "asked")
    assert (await ports.accounts.request(one.user_id, other.user_id, NOW, LIMITS)).state == "requested"
    assert (await ports.accounts.request(other.user_id, one.user_id, NOW, LIMITS)).state == "asked"
    assert await _states(ports, one, other) == ("requested", "asked")

    relation = await ports.accounts.accept(other.user_id, one.user_id, RelationKey(1, b"wrapped"), NOW, 100)
    assert (relation.peer, relation.state, relation.keys) == (one, "friends", (RelationKey(1, b"wrapped"),))
    assert await _states(ports, one, other) == ("friends", "friends")
    assert (await ports.accounts.request(one.user_id, other.user_id, NOW, LIMITS)).state == "friends"


async def test_the_requester_cannot_accept(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    for ask_first in (False, True):
        if ask_first:
            await ports.accounts.request(alice.user_id, bob.user_id, NOW, LIMITS)
        with pytest.raises(StoreConflict, match="has not asked"):
            await ports.accounts.accept(alice.user_id, bob.user_id, RelationKey(1, b"k"), NOW, 100)


async def test_accept_can_be_repeated_with_the_same_key_only(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await ports.accounts.request(alice.user_id, bob.user_id, NOW, LIMITS)
    first = await ports.accounts.accept(bob.user_id, alice.user_id, RelationKey(1, b"k"), NOW, 100)
    assert await ports.accounts.accept(bob.user_id, alice.user_id, RelationKey(1, b"k"), NOW, 100) == first
    for key in (RelationKey(1, b"other"), RelationKey(2, b"other")):
        with pytest.raises(StoreConflict):
            await ports.accounts.accept(bob.user_id, alice.user_id, key, NOW, 100)
    assert await ports.accounts.relation(bob.user_id, alice.user_id) == first


async def test_key_versions_follow_one_another(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await ports.accounts.request(alice.user_id, bob.user_id, NOW, LIMITS)
    with pytest.raises(StoreConflict, match="is 1, not 2"):
        await ports.accounts.accept(bob.user_id, alice.user_id, RelationKey(2, b"k"), NOW, 100)
    assert await _states(ports, alice, bob) == ("requested", "asked")


async def test_a_pair_has_a_bounded_number_of_key_versions(ports: Ports) -> None:
    """A version goes only when a later one replaced it long ago: messages that wait may need it until then."""
    alice, bob = await person(ports), await person(ports)

    async def renew(version: int, now: float, needed_since: float) -> tuple[int, ...]:
        await ports.accounts.remove(alice.user_id, bob.user_id, now)
        await ports.accounts.request(alice.user_id, bob.user_id, now, LIMITS)
        key = RelationKey(version, b"key %d" % version)
        relation = await ports.accounts.accept(bob.user_id, alice.user_id, key, now, 100, needed_since)
        return tuple(key.version for key in relation.keys)

    for version in range(1, KEY_VERSIONS_MAX + 1):
        kept = await renew(version, NOW + version, NOW + version)
        assert kept == tuple(range(1, version + 1)), "below the limit none is deleted"
    next_one = KEY_VERSIONS_MAX + 1
    for needed_since in (0.0, NOW + 1.5, NOW + 2.0):  # version 1 was replaced at NOW + 2
        with pytest.raises(TooManyKeys):
            await renew(next_one, NOW + 100, needed_since)
        assert await _states(ports, alice, bob) == ("requested", "asked")
    assert await renew(next_one, NOW + 100, NOW + 2.5) == tuple(range(2, next_one + 1))
    assert await renew(next_one + 1, NOW + 200, NOW + 150) == (next_one, next_one + 1)


async def test_former_friends_keep_their_keys_and_add_one(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _befriend(ports, alice, bob)
    assert await ports.accounts.remove(bob.user_id, alice.user_id, NOW)
    assert await _states(ports, alice, bob) == ("removed", "removed")
    assert not await ports.accounts.remove(alice.user_id, bob.user_id, NOW)

    await _befriend(ports, bob, alice, version=2)
    relation = await ports.accounts.relation(alice.user_id, bob.user_id)
    assert relation is not None
    assert (relation.state, [key.version for key in relation.keys]) == ("friends", [1, 2])


async def test_former_friends_keep_their_keys_when_a_new_request_is_refused(ports: Ports) -> None:
    alice, bob = await person(ports), await person(ports)
    await _befriend(ports, alice, bob)
    await ports.accounts.remove(bob.user_id, alice.user_id, NOW)
    await ports.accounts.request(alice.user_id, bob.user_id, NOW, LIMITS)
    assert await ports.accounts.remove(bob.user_id, alice.user_id, NOW)
    relation = await ports.accounts.relation(alice.user_id, bob.user_id)
    assert relation is not None
    assert (relation.state, [key.version for key in relation.keys]) == ("removed", [1])


@pytest.mark.parametrize("who", ["withdrawn", "refused"])
async def test_withdrawn_or_refused_request_leaves_nothing(ports: Ports, who: str) -> None:
    alice, bob = await person(ports), await person(ports)
    await ports.accounts.request(alice.user_id, bob.user_id, NOW, LIMITS)
    one, other = (alice, bob) if who == "withdrawn" else (bob, alice)
    assert await ports.accounts.remove(one.user_id, other.user_id, NOW)
    assert await _states(ports, alice, bob) == (None, None)
    assert not await ports.accounts.remove(one.user_id, other.user_id, NOW)


async def test_request_to_oneself_or_an_unknown_user_is_refused(ports: Ports) -> None:
    alice = await person(ports)
    for peer, sentence in ((alice.user_id, "themselves"), (1 << 52, "no such user")):
        with pytest.raises(StoreConflict, match=sentence):
            await ports.accounts.request(alice.user_id, peer, NOW, LIMITS)


async def test_two_requests_to_each_other_at_once_make_one_relation(backend: Backend) -> None:
    ports = backend.process()
    alice, bob = await person(ports), await person(ports)
    one, other = await processes(backend, 2)
    answers = await asyncio.gather(
        one.accounts.request(alice.user_id, bob.user_id, NOW, LIMITS),
        other.accounts.request(bob.user_id, alice.user_id, NOW, LIMITS),
    )
    assert sorted(answer.state for answer in answers) == ["asked", "requested"]
    assert await _states(ports, alice, bob) in {("requested", "asked"), ("asked", "requested")}


async def test_relations_are_ordered_by_name_and_have_all_keys(ports: Ports) -> None:
    me = await ports.accounts.register("me", "hash")
    zoe, adam, eve = [await ports.accounts.register(name, "hash") for name in ("zoe", "adam", "eve")]
    await _befriend(ports, me, zoe)
    await ports.accounts.remove(me.user_id, zoe.user_id, NOW)
    await _befriend(ports, zoe, me, version=2)
    await _befriend(ports, adam, me)
    await ports.accounts.remove(adam.user_id, me.user_id, NOW)
    await ports.accounts.request(eve.user_id, me.user_id, NOW, LIMITS)
    found = await ports.accounts.relations(me.user_id)
    assert [(relation.peer, relation.state, [key.version for key in relation.keys]) for relation in found] == [
        (adam, "removed", [1]),
        (eve, "asked", []),
        (zoe, "friends", [1, 2]),
    ]
    assert await ports.accounts.relations(eve.user_id + 1000) == []


async def test_account_has_devices_and_friends(ports: Ports) -> None:
    alice, bob, carol, dave = [await person(ports) for _ in range(4)]
    phone, laptop = await device_of(ports, alice, "phone"), await device_of(ports, alice, "laptop")
    await _befriend(ports, dave, alice)
    await _befriend(ports, alice, bob)
    await ports.accounts.request(alice.user_id, carol.user_id, NOW, LIMITS)
    devices, friends = (phone.device_id, laptop.device_id), (bob.user_id, dave.user_id)
    users = [alice.user_id, carol.user_id, 1 << 52, dave.user_id]
    assert await ports.accounts.accounts(users, NOW) == {
        alice.user_id: Account(alice.user_id, devices, friends, NOW),
        carol.user_id: Account(carol.user_id, (), (), NOW),
        dave.user_id: Account(dave.user_id, (), (alice.user_id,), NOW),
    }
    assert await ports.accounts.accounts([], NOW) == {}


async def test_logins_by_token(ports: Ports) -> None:
    alice, bob = [await person(ports) for _ in range(2)]
    await _befriend(ports, alice, bob)
    good, ended, unknown = [secrets.token_bytes(32) for _ in range(3)]
    phone, _ = await ports.accounts.log_in(alice.user_id, "phone", 7, good, NOW + 60, NOW, 10)
    await ports.accounts.log_in(bob.user_id, "phone", 8, ended, NOW + 30, NOW, 10)
    account = Account(alice.user_id, (phone.device_id,), (bob.user_id,), NOW + 40)
    login = Login(alice.user_id, phone.device_id, 7, NOW + 60)
    assert await ports.accounts.logins_by_token([good, ended, unknown], NOW + 40) == {good: (login, account)}
    assert await ports.accounts.logins_by_token([], NOW) == {}
    await ports.accounts.log_out(good)
    assert await ports.accounts.logins_by_token([good], NOW) == {}


async def test_the_mesh_has_one_secret_whoever_asks_first(backend: Backend) -> None:
    asking = await processes(backend, 4)
    secrets = await asyncio.gather(*(process.accounts.mesh_secret() for process in asking))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == SECRET_BYTES
    assert await asking[0].accounts.mesh_secret() == secrets[0]


async def test_ping_answers(ports: Ports) -> None:
    await ports.accounts.ping()
