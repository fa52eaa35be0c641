"""The port `Accounts` in memory, for tests and the simulation; behaves as `sql/accounts.py`."""

from collections.abc import Sequence

from meshim.errors import (
    AskedLately,
    DeviceInUse,
    NoSuchInvite,
    StoreConflict,
    TooManyKeys,
    TooManyRelations,
    TooManyRequests,
)
from meshim.stores.memory.database import MemoryDatabase, StoredDevice, StoredRelation
from meshim.stores.ports import (
    KEY_VERSIONS_MAX,
    Account,
    Device,
    Login,
    Relation,
    RelationKey,
    RelationLimits,
    Requested,
    User,
)


class MemoryAccounts:
    """The port `Accounts` in memory."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def register(self, name: str, password_hash: str) -> User:
        [user] = await self.register_many([(name, password_hash)])
        if user is None:
            raise StoreConflict(f"The name {name} is taken.")
        return user

    async def register_invited(self, name: str, password_hash: str, invite: bytes, now: float) -> User:
        if not await self.invited(invite, now):
            raise NoSuchInvite("There is no such invite.")
        user = await self.register(name, password_hash)
        del self._database.invites[invite]
        return user

    async def add_invites(self, invites: Sequence[bytes], expires_at: float, now: float) -> None:
        held = self._database.invites
        self._database.invites = {each: end for each, end in held.items() if end > now}
        self._database.invites |= dict.fromkeys(invites, expires_at)

    async def invited(self, invite: bytes, now: float) -> bool:
        return self._database.invites.get(invite, now) > now

    async def register_many(self, users: Sequence[tuple[str, str]]) -> list[User | None]:
        return [self._register(name, password_hash) for name, password_hash in users]

    def _register(self, name: str, password_hash: str) -> User | None:
        if name in self._database.users:
            return None
        user = User(next(self._database.ids), name)
        self._database.users[name] = user, password_hash
        self._database.names[user.user_id] = name
        return user

    async def user(self, name: str) -> tuple[User, str] | None:
        return self._database.users.get(name)

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
        if user_id not in self._database.names:
            raise StoreConflict("There is no such user.")
        if device is None:
            stands_for = Device(0, "", 0, 0.0)
        else:
            stands_for = self._take_device(user_id, device, epoch, now, devices_max, takeover)
        tokens = self._database.tokens
        former = [
            hash_
            for hash_, login in tokens.items()
            if (login.user, login.device) == (user_id, stands_for.device_id) and hash_ != token_hash
        ]
        if device is None:
            former = former[: max(0, len(former) - (devices_max - 1))]
        for hash_ in former:
            del tokens[hash_]
        tokens.pop(token_hash, None)  # a repeated call makes the token the newest
        tokens[token_hash] = Login(user_id, stands_for.device_id, stands_for.epoch, expires_at)
        return stands_for, tuple(former)

    def _take_device(self, user_id: int, name: str, epoch: int, now: float, devices_max: int, takeover: bool) -> Device:
        devices = self._database.devices_of(user_id)
        device = next((device for device in devices if device.name == name), None)
        if device is None:
            if len(devices) >= devices_max:
                raise StoreConflict(
                    f"There are {devices_max} devices already, as many as there may be: log in as one of them."
                )
            device = StoredDevice(next(self._database.ids), user_id, name, epoch, now)
            if (waiting := self._database.first_devices.pop(user_id, None)) is not None:
                device.queue, device.messages = waiting.queue, waiting.messages
            self._database.devices[device.device_id] = device
        elif device.epoch != epoch and not takeover:
            raise DeviceInUse(f"{name} has logged in with another state file.")
        device.epoch, device.last_seen = epoch, now
        return Device(device.device_id, name, epoch, now)

    async def tokens(self, user_id: int, device: str) -> dict[bytes, int]:
        named = {found.device_id for found in self._database.devices_of(user_id) if found.name == device}
        return {hash_: login.epoch for hash_, login in self._database.tokens.items() if login.device in named}

    async def log_out(self, token_hash: bytes) -> Login | None:
        return self._database.tokens.pop(token_hash, None)

    async def login(self, token_hash: bytes, now: float) -> Login | None:
        return (await self.logins([token_hash], now)).get(token_hash)

    async def logins(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, Login]:
        tokens = self._database.tokens
        return {each: tokens[each] for each in token_hashes if each in tokens and tokens[each].expires_at > now}

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        return {token_hash for token_hash in token_hashes if token_hash in self._database.tokens}

    async def seen(self, device_ids: Sequence[int], now: float) -> None:
        for device_id in device_ids:
            if device_id in self._database.devices:
                device = self._database.devices[device_id]
                device.last_seen = max(device.last_seen, now)

    async def drop_idle_devices(self, before: float, limit: int) -> int:
        devices = self._database.devices
        idle = sorted((d for d in devices.values() if d.last_seen < before), key=lambda d: d.last_seen)[:limit]
        for device in idle:
            del devices[device.device_id]
            for hash_ in [h for h, login in self._database.tokens.items() if login.device == device.device_id]:
                del self._database.tokens[hash_]
            if not self._database.devices_of(device.user_id):
                self._keep_for_first_device(device)
        return len(idle)

    def _keep_for_first_device(self, last: StoredDevice) -> None:
        waiting = self._database.first_device_of(last.user_id)
        for row in last.queue:
            if row.read_at is None:
                waiting.keep(row)

    async def accounts(self, user_ids: Sequence[int], now: float) -> dict[int, Account]:
        return {user: self._account(user, now) for user in user_ids if user in self._database.names}

    async def logins_by_token(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, tuple[Login, Account]]:
        logins = {token_hash: await self.login(token_hash, now) for token_hash in token_hashes}
        return {hash_: (login, self._account(login.user, now)) for hash_, login in logins.items() if login}

    def _account(self, user_id: int, now: float) -> Account:
        related = self._database.relations_of(user_id)
        friends = sorted(peer.user_id for peer, relation in related if relation.state == "friends")
        return Account(user_id, tuple(d.device_id for d in self._database.devices_of(user_id)), tuple(friends), now)

    async def relation(self, user_id: int, peer_id: int) -> Relation | None:
        return next((found for found in await self.relations(user_id) if found.peer.user_id == peer_id), None)

    async def relations(self, user_id: int) -> list[Relation]:
        found = []
        for peer, relation in self._database.relations_of(user_id):
            state = relation.state_for(user_id)
            if state is not None:
                found.append(Relation(peer, state, tuple(relation.keys)))
        return found

    async def request(self, user_id: int, peer_id: int, now: float, limits: RelationLimits) -> Requested:
        self._check_pair(user_id, peer_id)
        self._forget_over((user_id, peer_id), now - limits.pause_s)
        relation = self._database.relations.get(_pair(user_id, peer_id))
        before = _before(relation, user_id)
        if before not in {None, "removed"}:
            return Requested(before or "")
        if relation is not None and relation.requested_by == user_id and relation.request_changed_at <= now:
            wait_s = relation.request_changed_at + limits.pause_s - now
            if wait_s > 0:
                raise AskedLately("The last request to this user has just ended.", wait_s)
        if before is None:
            self._check_limit(user_id, "You have", limits.relations)
        if len(self._waiting(user_id, outgoing=True)) >= limits.outgoing:
            raise TooManyRequests(f"{limits.outgoing} requests wait for an answer, as many as may.")
        dropped = self._make_room(peer_id, limits.incoming)
        relation = self._database.relations.setdefault(_pair(user_id, peer_id), StoredRelation("none", 0))
        relation.state, relation.requested_by, relation.request_changed_at = "requested", user_id, now
        return Requested(_before(relation, user_id) or "", dropped)

    def _waiting(self, user_id: int, *, outgoing: bool) -> list[tuple[User, StoredRelation]]:
        """The requests of this user, or to this user, that wait for an answer."""
        related = self._database.relations_of(user_id)
        return [
            (peer, each)
            for peer, each in related
            if each.state == "requested" and (each.requested_by == user_id) == outgoing
        ]

    def _make_room(self, user_id: int, requests_max: int) -> int | None:
        waiting = self._waiting(user_id, outgoing=False)
        if len(waiting) < requests_max:
            return None
        peer, oldest = min(waiting, key=lambda each: each[1].request_changed_at)
        oldest.state, oldest.request_changed_at = "removed" if oldest.keys else "none", 0.0
        self._forget_if_empty(user_id, peer.user_id)
        return peer.user_id

    def _forget_over(self, users: tuple[int, int], before: float) -> None:
        """Forget what pauses of these users have left that were over before this time."""
        for pair, relation in list(self._database.relations.items()):
            if relation.state == "none" and set(pair) & set(users) and relation.request_changed_at <= before:
                relation.request_changed_at = 0.0
                self._forget_if_empty(*pair)

    def _check_pair(self, user_id: int, peer_id: int) -> None:
        if user_id == peer_id:
            raise StoreConflict("Nobody can be a friend of themselves.")
        if not {user_id, peer_id} <= self._database.names.keys():
            raise StoreConflict("There is no such user.")

    def _check_limit(self, user_id: int, who: str, relations_max: int) -> None:
        related = [relation for _, relation in self._database.relations_of(user_id)]
        count = sum(bool(each.keys) + (user_id in each.blocked_by) for each in related)
        if count >= relations_max:
            raise TooManyRelations(f"{who} {relations_max} relations, as many as there may be.")

    async def accept(
        self, user_id: int, peer_id: int, key: RelationKey, now: float, relations_max: int, needed_since: float = 0.0
    ) -> Relation:
        self._check_pair(user_id, peer_id)
        relation = self._database.relations.get(_pair(user_id, peer_id))
        if relation is not None and relation.state_for(user_id) == "asked":
            last = relation.keys[-1].version if relation.keys else 0
            if key.version != last + 1:
                raise StoreConflict(f"The next version of the key is {last + 1}, not {key.version}.")
            if not relation.keys:
                self._check_limit(user_id, "You have", relations_max)
                self._check_limit(peer_id, "That user has", relations_max)
            if len(relation.keys) >= KEY_VERSIONS_MAX:
                replaced = sum(made < needed_since for made in relation.keys_made) - 1
                if replaced < 1:
                    raise TooManyKeys(f"The two have {KEY_VERSIONS_MAX} versions of their key, and all may be needed.")
                del relation.keys[:replaced], relation.keys_made[:replaced]
            relation.keys.append(key)
            relation.keys_made.append(now)
            relation.state, relation.request_changed_at = "friends", 0.0
        elif relation is None or relation.state != "friends" or relation.keys[-1] != key:
            raise StoreConflict("That user has not asked for friendship.")
        return Relation(User(peer_id, self._database.names[peer_id]), relation.state, tuple(relation.keys))

    async def remove(self, user_id: int, peer_id: int, now: float) -> str | None:
        relation = self._database.relations.get(_pair(user_id, peer_id))
        before = _before(relation, user_id)
        if relation is None or before in {None, "removed", "blocked"}:
            return None
        relation.state = "removed" if relation.keys else "none"
        relation.request_changed_at = 0.0 if before == "friends" else now
        return before

    async def block(self, user_id: int, peer_id: int, now: float, relations_max: int) -> str | None:
        self._check_pair(user_id, peer_id)
        relation = self._database.relations.get(_pair(user_id, peer_id))
        before = _before(relation, user_id)
        if before is None:
            self._check_limit(user_id, "You have", relations_max)
        relation = self._database.relations.setdefault(_pair(user_id, peer_id), StoredRelation("none", 0))
        if before in {"friends", "requested", "hidden"}:
            relation.state = "removed" if relation.keys else "none"
            relation.request_changed_at = 0.0 if before == "friends" else now
        relation.blocked_by.add(user_id)
        return before

    async def unblock(self, user_id: int, peer_id: int, now: float) -> bool:
        relation = self._database.relations.get(_pair(user_id, peer_id))
        if relation is None or user_id not in relation.blocked_by:
            return False
        relation.blocked_by.remove(user_id)
        self._forget_if_empty(user_id, peer_id)
        return True

    def _forget_if_empty(self, user_id: int, peer_id: int) -> None:
        relation = self._database.relations[_pair(user_id, peer_id)]
        if relation.state == "none" and not relation.blocked_by and not relation.request_changed_at:
            del self._database.relations[_pair(user_id, peer_id)]

    async def friends(self, user_id: int, among: Sequence[int] | None = None) -> list[User]:
        related = self._database.relations_of(user_id)
        friends = [peer for peer, relation in related if relation.state == "friends"]
        return friends if among is None else [peer for peer in friends if peer.user_id in among]

    async def mesh_secret(self) -> bytes:
        return self._database.secret

    async def ping(self) -> None:
        """Do nothing: memory always answers."""

    async def check_writable(self) -> None:
        """Do nothing: memory takes every write."""


def _before(relation: StoredRelation | None, user_id: int) -> str | None:
    """What the user sees, and `hidden` for a request of the user that the peer does not see."""
    state = None if relation is None else relation.state_for(user_id)
    return "hidden" if state == "requested" and relation is not None and relation.blocked_by else state


def _pair(user_id: int, peer_id: int) -> tuple[int, int]:
    return min(user_id, peer_id), max(user_id, peer_id)
