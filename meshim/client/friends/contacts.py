"""The contacts of a device: their names and content keys, fetched from REST and kept in the state file."""

from collections.abc import Sequence

from meshim.client.session import Session
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, Code, Refused
from meshim.protocol.names import fold_name
from meshim.wire.rest import Relation

_UNKNOWN = ""
"""The relation to a contact that has to be fetched from REST before the next message."""


class Contacts:
    """Users by name and by id, the relation to each, and the content keys shared with each."""

    def __init__(self, session: Session, state: StateFile) -> None:
        self.me = session.user_id
        """The user id of this device's owner."""
        self._session = session
        self._names: dict[int, str] = {self.me: session.name}
        self._relations: dict[str, tuple[int, str]] = {}
        """Name to (user id, state of the relation)."""
        self._keys: dict[int, dict[int, bytes]] = {}
        """User id to key by version."""
        for user, name, relation in state.peers():
            self._names[user] = name
            self._relations[name] = (user, relation)
        for user, version, key in state.content_keys():
            self._keys.setdefault(user, {})[version] = key
        session.on_relations = self._cache

    async def key_for(self, name: str) -> tuple[int, int, bytes]:
        """Return (user id, key version, key) for a message to a friend.

        Raises Refused when the user is not a friend, BackendUnavailable when that must be fetched and REST is
        unavailable.
        """
        folded = fold_name(name)
        if folded is None:
            raise Refused(Code.NO_SUCH_RECIPIENT, f"{name!r} cannot be the name of a user")
        if folded == self._names[self.me]:
            raise Refused(
                Code.NO_SUCH_RECIPIENT, "nobody writes to oneself: your other devices see what you send anyway"
            )
        known = self._relations.get(folded)
        if known is None or known[1] != "friends" or not self._keys.get(known[0]):
            known = await self._fetch(folded)
        user, relation = known
        if relation != "friends":
            me = self._names[self.me]
            sentence = {
                "asked": f"{folded} has asked for your friendship: answer with `meshim friend accept {me} {folded}`.",
                "requested": f"{folded} has not accepted your friendship yet.",
            }.get(relation, f"{folded} is not your friend: ask with `meshim friend add {me} {folded}`.")
            raise Refused(Code.NOT_FRIENDS, sentence)
        version = max(self._keys[user])
        return user, version, self._keys[user][version]

    async def _fetch(self, name: str) -> tuple[int, str]:
        try:
            await self._save([await self._session.relation(name)])
        except ApiError as error:
            if error.temporary:
                raise BackendUnavailable(error.sentence) from error
            raise Refused(Code.NO_SUCH_RECIPIENT, error.sentence) from error
        return self._relations[name]

    async def key_of(self, user: int, version: int) -> bytes | None:
        """Return the key that a message was sealed with; None when REST does not know it.

        Raises BackendUnavailable when the key must be fetched and REST is unavailable, ApiError when REST refuses.
        """
        if version not in self._keys.get(user, {}):
            try:
                await self._save(await self._session.relations(user))
            except ApiError as error:
                if error.temporary:
                    raise BackendUnavailable(error.sentence) from error
                raise
        return self._keys.get(user, {}).get(version)

    def name_of(self, user: int) -> str:
        """Return the name of a user; `user-ID` while it is unknown."""
        return self._names.get(user, f"user-{user}")

    def invalidate(self, user: int) -> None:
        """The mesh answered "not friends": fetch the relation before the next message to this user."""
        if (name := self._names.get(user)) in self._relations:
            self._relations[name] = (user, _UNKNOWN)

    async def _save(self, relations: Sequence[Relation]) -> None:
        self._cache(relations)
        await self._session.persist_relations(relations)

    def _cache(self, relations: Sequence[Relation]) -> None:
        for relation in relations:
            user, name = relation.peer.user_id, relation.peer.name
            self._names[user] = name
            self._relations[name] = (user, relation.state)
            self._keys.setdefault(user, {}).update({key.version: key.key for key in relation.keys})
