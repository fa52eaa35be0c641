"""The contacts of a device: their names and content keys, fetched from REST and kept in the state file."""

from collections.abc import Callable, Sequence

from meshim.client.application.public_events import Event, KeyChanged, RelationChanged, RelationState, relation_state
from meshim.client.session import Session
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, Code, Refused
from meshim.protocol.names import fold_name
from meshim.wire.rest import Relation, User


class Contacts:
    """Users by name and by id, the relation to each, and the content keys shared with each."""

    def __init__(self, session: Session, state: StateFile, publish: Callable[[Event], None]) -> None:
        """`publish` gets an event for everything that turns out to be other than this device knew."""
        self.me = session.user_id
        """The user id of this device's owner."""
        self._session = session
        self._publish = publish
        self._names: dict[int, str] = {self.me: session.name}
        self._relations: dict[str, tuple[int, RelationState]] = {}
        """Name to (user id, state of the relation)."""
        self._stale: set[str] = set()
        """Names of those whose relation is fetched from REST before the next message."""
        self._keys: dict[int, dict[int, bytes]] = {}
        """User id to key by version."""
        for user, name, relation in state.peers():
            self._names[user] = name
            self._relations[name] = (user, relation_state(relation))
        for user, version, key in state.content_keys():
            self._keys.setdefault(user, {})[version] = key
        self.on_new_keys: Callable[[int], None] = lambda user: None
        """Called with the id of a user with whom there is a new key."""
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
                Code.NO_SUCH_RECIPIENT, "Nobody writes to oneself: your other devices see what you send anyway."
            )
        known = self._relations.get(folded)
        if known is None or known[1] != "friends" or folded in self._stale or not self._keys.get(known[0]):
            known = await self._fetch(folded)
        user, relation = known
        if relation != "friends":
            me = self._names[self.me]
            sentence = {
                "asked": f"{folded} has asked for your friendship: answer with `meshim friend accept {me} {folded}`.",
                "requested": f"{folded} has not accepted your friendship yet.",
                "blocked": f"{folded} is blocked: end that with `meshim friend unblock {me} {folded}`.",
            }.get(relation, f"{folded} is not your friend: ask with `meshim friend add {me} {folded}`.")
            raise Refused(Code.NOT_FRIENDS, sentence)
        version = max(self._keys[user])
        return user, version, self._keys[user][version]

    async def _fetch(self, name: str) -> tuple[int, RelationState]:
        try:
            await self.save([await self._session.relation(name)])
        except ApiError as error:
            if error.temporary:
                raise BackendUnavailable(error.sentence) from error
            raise Refused(Code.NO_SUCH_RECIPIENT, error.sentence) from error
        return self._relations[name]

    def key(self, user: int, version: int) -> bytes | None:
        """Return the key that a message was sealed with; None when this device does not know it."""
        return self._keys.get(user, {}).get(version)

    async def fetch_keys(self, user: int) -> None:
        """Ask REST for the relation to a user, with all its keys.  Raises ApiError and BackendUnavailable."""
        await self.save(await self._session.relations(user))

    def name_of(self, user: int) -> str:
        """Return the name of a user; `user-ID` while it is unknown."""
        return self._names.get(user, f"user-{user}")

    def invalidate(self, user: int) -> None:
        """The mesh answered "not friends": fetch the relation before the next message to this user."""
        if (name := self._names.get(user)) in self._relations:
            self._stale.add(name)

    def user_of(self, name: str) -> int | None:
        """Return the id of the contact with this name, in lower case; None while it is unknown."""
        known = self._relations.get(name)
        return None if known is None else known[0]

    def friend_id(self, name: str) -> int | None:
        """Return the id of the friend with this name, in lower case; None when this device knows of no friendship."""
        known = self._relations.get(name)
        return known[0] if known is not None and known[1] == "friends" else None

    async def save(self, relations: Sequence[Relation]) -> None:
        """Take in relations as REST has them, and write them into the state file."""
        self._cache(relations)
        await self._session.persist_relations(relations)

    async def save_all(self, relations: Sequence[Relation]) -> None:
        """Take in all relations of this user as REST has them.

        One that is missing has ended: REST keeps `removed` only of two users who ever were friends.
        """
        found = {relation.peer.name for relation in relations}
        missing = [
            Relation(User(user, name), "removed")
            for name, (user, state) in self._relations.items()
            if name not in found and state not in ("none", "removed")
        ]
        await self.save([*relations, *missing])

    def _cache(self, relations: Sequence[Relation]) -> None:
        for relation in relations:
            user, name = relation.peer.user_id, relation.peer.name
            self._names[user] = name
            self._stale.discard(name)
            old, new = self._relations.get(name, (user, "none"))[1], relation_state(relation.state)
            self._relations[name] = (user, new)
            if old != new:
                self._publish(RelationChanged(user_id=user, name=name, old=old, new=new))
            self._cache_keys(relation)

    def _cache_keys(self, relation: Relation) -> None:
        user, keys = relation.peer.user_id, self._keys.setdefault(relation.peer.user_id, {})
        before = max(keys, default=0)
        new = {key.version: key.key for key in relation.keys}
        added = not new.keys() <= keys.keys()
        keys.update(new)
        if added:
            self.on_new_keys(user)
        if 0 < before < (newest := max(keys)):
            self._publish(KeyChanged(user_id=user, name=relation.peer.name, version=newest))
