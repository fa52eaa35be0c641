"""The port `Accounts` on SQL: users, devices, tokens.  Relations are in `relations.py`.

Transactions lock rows in this order: user, device, tokens, and `im_offline` last.  A transaction that deletes a device
locks `im_position` before all of them.

A user without devices, because none has logged in yet or all were idle for too long, loses no message: its rows are
kept under `first_device`, and the first device to log in gets them in the same transaction.
"""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection, CursorResult

from meshim.chunks import chunks
from meshim.errors import DeviceInUse, StoreConflict
from meshim.stores.ports import Account, Device, Login, Relation, RelationKey, RelationLimits, Requested, User
from meshim.stores.sql import relations
from meshim.stores.sql.database import Database
from meshim.stores.sql.invites import add_invites, is_valid_invite, use_invite
from meshim.stores.sql.rows import first_device
from meshim.stores.sql.schema import (
    WRITE_NOTHING,
    im_device,
    im_mesh,
    im_offline,
    im_position,
    im_token,
    im_user,
    now_ms,
    to_ms,
    to_s,
)

_IN_MAX = 500
"""Values in one IN (...)."""

_NO_DEVICE = Device(0, "", 0, 0.0)


class _Token(NamedTuple):
    """A token to add, with times in milliseconds; `now` is the time of the login."""

    token_hash: bytes
    expires_at: int
    now: int


class SqlAccounts:
    """The port `Accounts` on SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, name: str, password_hash: str) -> User:
        [user] = await self._database.write(_register, [(name, password_hash)])
        if user is None:
            raise StoreConflict(f"The name {name} is taken.")
        return user

    async def register_invited(self, name: str, password_hash: str, invite: bytes, now: float) -> User:
        return await self._database.write(_register_invited, name, password_hash, invite, to_ms(now))

    async def add_invites(self, invites: Sequence[bytes], expires_at: float, now: float) -> None:
        await self._database.write(add_invites, invites, to_ms(expires_at), to_ms(now))

    async def invited(self, invite: bytes, now: float) -> bool:
        return await self._database.read(is_valid_invite, invite, to_ms(now))

    async def register_many(self, users: Sequence[tuple[str, str]]) -> list[User | None]:
        return await self._database.write(_register, users)

    async def user(self, name: str) -> tuple[User, str] | None:
        return await self._database.read(_user, name)

    async def log_in(
        self,
        user_id: int,
        device: str | None,
        epoch: int,
        token_hash: bytes,
        expires_at: float,
        now: float,
        devices_max: int,
        takeover: bool = False,
    ) -> tuple[Device, tuple[bytes, ...]]:
        token = _Token(token_hash, to_ms(expires_at), to_ms(now))
        if device is None:
            return await self._database.write(_log_in_to_rest, user_id, token, devices_max)
        return await self._database.write(_log_in, user_id, device, epoch, token, devices_max, takeover)

    async def tokens(self, user_id: int, device: str) -> dict[bytes, int]:
        return await self._database.read(_tokens, user_id, device)

    async def log_out(self, token_hash: bytes) -> Login | None:
        return await self._database.write(_log_out, token_hash)

    async def login(self, token_hash: bytes, now: float) -> Login | None:
        return (await self.logins([token_hash], now)).get(token_hash)

    async def logins(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, Login]:
        return await self._database.read(_logins, token_hashes, now)

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        return await self._database.read(_unrevoked, token_hashes)

    async def seen(self, device_ids: Sequence[int], now: float) -> None:
        await self._database.write(_seen, device_ids, to_ms(now))

    async def drop_idle_devices(self, before: float, limit: int) -> int:
        # One transaction per device: its queue may be long, and writers wait meanwhile.
        idle = await self._database.read(_idle_devices, to_ms(before), limit)
        return sum([await self._database.write(_drop_device, device, to_ms(before)) for device in idle])

    async def accounts(self, user_ids: Sequence[int], now: float) -> dict[int, Account]:
        return await self._database.read(_accounts, user_ids, now)

    async def logins_by_token(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, tuple[Login, Account]]:
        return await self._database.read(_authenticate, token_hashes, now)

    async def relation(self, user_id: int, peer_id: int) -> Relation | None:
        return await self._database.read(relations.relation, user_id, peer_id)

    async def relations(self, user_id: int) -> list[Relation]:
        return await self._database.read(relations.relations, user_id)

    async def request(self, user_id: int, peer_id: int, now: float, limits: RelationLimits) -> Requested:
        return await self._database.write(relations.request, user_id, peer_id, to_ms(now), limits)

    async def accept(
        self, user_id: int, peer_id: int, key: RelationKey, now: float, relations_max: int, needed_since: float = 0.0
    ) -> Relation:
        return await self._database.write(
            relations.accept, user_id, peer_id, key, to_ms(now), relations_max, to_ms(needed_since)
        )

    async def remove(self, user_id: int, peer_id: int, now: float) -> str | None:
        return await self._database.write(relations.remove, user_id, peer_id, to_ms(now))

    async def block(self, user_id: int, peer_id: int, now: float, relations_max: int) -> str | None:
        return await self._database.write(relations.block, user_id, peer_id, to_ms(now), relations_max)

    async def unblock(self, user_id: int, peer_id: int, now: float) -> bool:
        return await self._database.write(relations.unblock, user_id, peer_id, to_ms(now))

    async def friends(self, user_id: int, among: Sequence[int] | None = None) -> list[User]:
        return await self._database.read(relations.friends_by_name, user_id, among)

    async def mesh_secret(self) -> bytes:
        secret: bytes | None = await self._database.read(_mesh_secret)
        if secret is None:
            return await self._database.write(_make_mesh_secret, secrets.token_bytes(32))
        return secret

    async def ping(self) -> None:
        await self._database.read(_ping)

    async def check_writable(self) -> None:
        await self._database.write(_write_nothing)


# ---------------------------------------------------------------- users


def _register(connection: Connection, users: Sequence[tuple[str, str]]) -> list[User | None]:
    ids: dict[str, int] = {}  # of names that were free and not yet returned for an earlier item of `users`
    now = connection.scalar(select(now_ms()))
    for chunk in chunks(users, _IN_MAX):
        names = [name for name, _ in chunk]
        taken = set(connection.scalars(select(im_user.c.name).where(im_user.c.name.in_(names))))
        free = {name: password_hash for name, password_hash in reversed(chunk) if name not in taken}
        if free:
            rows = [{"name": name, "password_hash": hash_, "gmt_create": now} for name, hash_ in free.items()]
            connection.execute(insert(im_user), rows)
            found = connection.execute(select(im_user.c.name, im_user.c.id).where(im_user.c.name.in_(free)))
            ids |= {row.name: row.id for row in found}
    return [User(ids.pop(name), name) if name in ids else None for name, _ in users]


def _register_invited(connection: Connection, name: str, password_hash: str, invite: bytes, now: int) -> User:
    use_invite(connection, invite, now)
    [user] = _register(connection, [(name, password_hash)])
    if user is None:
        raise StoreConflict(f"The name {name} is taken.")  # and the invite is not used up
    return user


def _user(connection: Connection, name: str) -> tuple[User, str] | None:
    row = connection.execute(select(im_user.c.id, im_user.c.password_hash).where(im_user.c.name == name)).first()
    return None if row is None else (User(row.id, name), row.password_hash)


# ---------------------------------------------------------------- devices and tokens


def _log_in(
    connection: Connection, user_id: int, name: str, epoch: int, token: _Token, devices_max: int, takeover: bool
) -> tuple[Device, tuple[bytes, ...]]:
    _lock_user(connection, user_id)
    device_id = _known_device(connection, user_id, name, epoch, token.now, takeover)
    if device_id is None:
        device_id = _new_device(connection, user_id, name, epoch, token.now, devices_max)
    former = connection.scalars(select(im_token.c.token_hash).where(im_token.c.device_id == device_id)).all()
    revoked = _replace_tokens(connection, former, token, user_id=user_id, device_id=device_id, epoch=epoch)
    return Device(device_id, name, epoch, to_s(token.now)), revoked


def _log_in_to_rest(
    connection: Connection, user_id: int, token: _Token, tokens_max: int
) -> tuple[Device, tuple[bytes, ...]]:
    _lock_user(connection, user_id)
    others_newest_first = (
        select(im_token.c.token_hash)
        .where(im_token.c.user_id == user_id, im_token.c.device_id.is_(None))
        .where(im_token.c.token_hash != token.token_hash)
        .order_by(im_token.c.id.desc())
    )
    former = [*connection.scalars(others_newest_first).all()[tokens_max - 1 :], token.token_hash]
    return _NO_DEVICE, _replace_tokens(connection, former, token, user_id=user_id, device_id=None, epoch=0)


def _lock_user(connection: Connection, user_id: int) -> None:
    """Serialize the logins of a user."""
    if connection.scalar(select(im_user.c.id).where(im_user.c.id == user_id).with_for_update()) is None:
        raise StoreConflict("There is no such user.")


def _known_device(
    connection: Connection, user_id: int, name: str, epoch: int, now: int, takeover: bool
) -> int | None:  # fmt: skip
    device = im_device.c
    named = select(device.id, device.epoch).where(device.user_id == user_id, device.name == name)
    row = connection.execute(named.with_for_update()).first()  # locked, so that it is not dropped meanwhile
    if row is None:
        return None
    if row.epoch != epoch and not takeover:
        raise DeviceInUse(f"{name} has logged in with another state file.")
    # The queue and its lease stay with the device: the new epoch takes them over (R14).
    connection.execute(update(im_device).where(device.id == row.id).values(epoch=epoch, last_seen=now))
    return int(row.id)


def _new_device(connection: Connection, user_id: int, name: str, epoch: int, now: int, devices_max: int) -> int:
    of_user = im_device.c.user_id == user_id
    others = connection.scalars(select(func.count()).select_from(im_device).where(of_user)).one()
    if others >= devices_max:
        raise StoreConflict(f"There are {devices_max} devices already, as many as there may be: log in as one of them.")
    values = {"user_id": user_id, "name": name, "epoch": epoch, "last_seen": now, "gmt_create": now}
    new_id = _inserted_id(connection.execute(insert(im_device).values(values)))
    if not others:
        waiting = im_offline.c.to_device == first_device(user_id)
        connection.execute(update(im_offline).where(waiting).values(to_device=new_id))
    return new_id


def _inserted_id(result: CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def _replace_tokens(
    connection: Connection, former: Sequence[bytes], token: _Token, **stands_for: int | None
) -> tuple[bytes, ...]:
    """Delete the former tokens, add this one, and return the hashes of the deleted ones.

    When a call is repeated, this token is one of the former tokens, and is not returned.
    """
    if former:
        connection.execute(delete(im_token).where(im_token.c.token_hash.in_(former)))
    values = {"token_hash": token.token_hash, "expires_at": token.expires_at, "gmt_create": token.now}
    connection.execute(insert(im_token).values(values | stands_for))
    return tuple(hash_ for hash_ in former if hash_ != token.token_hash)


def _tokens(connection: Connection, user_id: int, name: str) -> dict[bytes, int]:
    query = select(im_token.c.token_hash, im_token.c.epoch).join(im_device, im_token.c.device_id == im_device.c.id)
    rows = connection.execute(query.where(im_device.c.user_id == user_id, im_device.c.name == name))
    return {row.token_hash: row.epoch for row in rows}


def _logins(connection: Connection, token_hashes: Sequence[bytes], now: float) -> dict[bytes, Login]:
    token = im_token.c
    query = select(token.token_hash, token.user_id, token.device_id, token.epoch, token.expires_at)
    found: dict[bytes, Login] = {}
    for chunk in chunks(token_hashes, _IN_MAX):
        for token_hash, user, device, epoch, expires_at in connection.execute(query.where(token.token_hash.in_(chunk))):
            if to_s(expires_at) > now:
                found[token_hash] = Login(user, device or 0, epoch, to_s(expires_at))
    return found


def _authenticate(
    connection: Connection, token_hashes: Sequence[bytes], now: float
) -> dict[bytes, tuple[Login, Account]]:  # fmt: skip
    logins = _logins(connection, token_hashes, now)
    accounts = _accounts_of(connection, sorted({login.user for login in logins.values()}), now)
    return {token_hash: (login, accounts[login.user]) for token_hash, login in logins.items()}


def _unrevoked(connection: Connection, token_hashes: Sequence[bytes]) -> set[bytes]:
    query = select(im_token.c.token_hash)
    found: set[bytes] = set()
    for chunk in chunks(token_hashes, _IN_MAX):
        found.update(connection.scalars(query.where(im_token.c.token_hash.in_(chunk))))
    return found


def _log_out(connection: Connection, token_hash: bytes) -> Login | None:
    login = _logins(connection, [token_hash], 0.0).get(token_hash)
    gone = connection.execute(delete(im_token).where(im_token.c.token_hash == token_hash)).rowcount
    return login if gone else None  # of two calls at once, one has revoked it


def _seen(connection: Connection, device_ids: Sequence[int], now: int) -> None:
    for chunk in chunks(sorted(device_ids), _IN_MAX):  # sorted, so that transactions lock in the same order
        connection.execute(
            update(im_device).where(im_device.c.id.in_(chunk), im_device.c.last_seen < now).values(last_seen=now)
        )


def _idle_devices(connection: Connection, before: int, limit: int) -> Sequence[int]:
    idle = select(im_device.c.id).where(im_device.c.last_seen < before)
    return connection.scalars(idle.order_by(im_device.c.last_seen).limit(limit)).all()


def _drop_device(connection: Connection, device_id: int, before: int) -> int:
    """Delete the device with its tokens and queue, unless it was connected since; return how many were deleted."""
    # Blocks writers, which look up the devices of users and then commit rows for them.
    connection.execute(select(im_position.c.partition).order_by(im_position.c.partition).with_for_update()).all()
    user_id = connection.scalar(select(im_device.c.user_id).where(im_device.c.id == device_id))
    if user_id is None:
        return 0
    _lock_user(connection, user_id)  # the set of devices must not change
    idle = delete(im_device).where(im_device.c.id == device_id, im_device.c.last_seen < before)
    dropped = connection.execute(idle).rowcount  # the foreign key deletes its tokens too
    if dropped:
        others = select(im_device.c.id).where(im_device.c.user_id == user_id).limit(1)
        if connection.scalar(others) is None:
            _keep_for_first_device(connection, user_id, device_id)
        connection.execute(delete(im_offline).where(im_offline.c.to_device == device_id))
    return dropped


def _keep_for_first_device(connection: Connection, user_id: int, device_id: int) -> None:
    """Keep the unread rows of the last device for the next one."""
    row = im_offline.c
    unread = (row.to_device == device_id) & (row.has_read == 0)
    connection.execute(update(im_offline).where(unread).values(to_device=first_device(user_id)))


def _accounts(connection: Connection, user_ids: Sequence[int], now: float) -> dict[int, Account]:
    query = select(im_user.c.id).order_by(im_user.c.id)
    found = (connection.scalars(query.where(im_user.c.id.in_(chunk))) for chunk in chunks(user_ids, _IN_MAX))
    return _accounts_of(connection, [user_id for ids in found for user_id in ids], now)


def _accounts_of(connection: Connection, user_ids: Sequence[int], now: float) -> dict[int, Account]:
    """As `_accounts`, for users that exist."""
    device = im_device.c
    query = select(device.user_id, device.id).order_by(device.id)
    accounts: dict[int, Account] = {}
    for chunk in chunks(user_ids, _IN_MAX):
        devices: dict[int, list[int]] = {user: [] for user in chunk}
        for user, device_id in connection.execute(query.where(device.user_id.in_(chunk))):
            devices[user].append(device_id)
        friends = relations.friends(connection, devices.keys())
        accounts |= {user: Account(user, tuple(ids), friends[user], now) for user, ids in devices.items()}
    return accounts


def _mesh_secret(connection: Connection) -> bytes | None:
    secret: bytes | None = connection.scalar(select(im_mesh.c.secret))
    return secret


def _make_mesh_secret(connection: Connection, secret: bytes) -> bytes:
    """Add the row, unless there is one by now: of several calls at once one adds it, and all get the same."""
    made = _mesh_secret(connection)
    if made is None:
        connection.execute(insert(im_mesh).values(id=1, secret=secret))
    return made or secret


def _ping(connection: Connection) -> None:
    connection.execute(select(1)).one()


def _write_nothing(connection: Connection) -> None:
    connection.execute(WRITE_NOTHING)
