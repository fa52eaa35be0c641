"""Whom a device knows: names and content keys, from REST, kept in the state file."""

import asyncio

from meshim.client.rest import Api
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, Code, Refused
from meshim.wire.rest import Relation


class People:
    """Peers by name and by id, and the keys of our conversations with them."""

    def __init__(self, api: Api, state: StateFile, lock: asyncio.Lock, me: int, name: str) -> None:
        self.me = me
        self._api = api
        self._state = state
        self._lock = lock
        self.unanswered = ""
        """Why names or keys could not be asked for, the last time."""
        self._names: dict[int, str] = {me: name}
        self._peers: dict[str, tuple[int, str]] = {}
        self._keys: dict[int, dict[int, bytes]] = {}
        for user, peer, standing in state.peers():
            self._names[user] = peer
            self._peers[peer] = (user, standing)
        for user, version, key in state.content_keys():
            self._keys.setdefault(user, {})[version] = key

    async def key_for(self, name: str) -> tuple[int, int, bytes]:
        """(user id, key version, key) for a message to a friend.

        Raises Refused when they are not friends, BackendUnavailable when that cannot be found out now.
        """
        name = name.lower()
        known = self._peers.get(name)
        if known is None or known[1] != "friends" or not self._keys.get(known[0]):
            try:
                await self._learn([await self._api.relation(name)])
            except ApiError as error:
                if error.temporary:
                    raise BackendUnavailable(error.sentence) from error
                raise Refused(Code.NO_SUCH_RECIPIENT, error.sentence) from error
            known = self._peers[name]
        user, standing = known
        if standing != "friends":
            raise Refused(
                Code.NOT_FRIENDS, f"{name} is not a friend yet: ask with `meshim friend add` and wait for an answer"
            )
        version = max(self._keys[user])
        return user, version, self._keys[user][version]

    async def key_of(self, user: int, version: int) -> bytes | None:
        """The key a message was sealed with; asks once for one that is not known."""
        key = self._keys.get(user, {}).get(version)
        if key is None:
            await self._refresh()
            key = self._keys.get(user, {}).get(version)
        return key

    async def name_of(self, user: int) -> str:
        """The name of a user; `user-ID` if nobody can tell."""
        if user not in self._names:
            await self._refresh()
        return self._names.get(user, f"user-{user}")

    async def _refresh(self) -> None:
        try:
            await self._learn(await self._api.relations())
        except (ApiError, BackendUnavailable) as error:
            self.unanswered = error.sentence

    async def _learn(self, relations: "list[Relation] | tuple[Relation, ...]") -> None:
        for relation in relations:
            user, name = relation.peer.user_id, relation.peer.name
            self._names[user] = name
            self._peers[name] = (user, relation.state)
            self._keys.setdefault(user, {}).update({key.version: key.key for key in relation.keys})
        async with self._lock:
            self._state.put_peers(
                [(relation.peer.user_id, relation.peer.name, relation.state) for relation in relations],
                [(relation.peer.user_id, key.version, key.key) for relation in relations for key in relation.keys],
            )
