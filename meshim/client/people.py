"""Whom a device knows: names and content keys, from REST, kept in the state file."""

from collections.abc import Sequence

from meshim.client.session import Session
from meshim.client.state import StateFile
from meshim.errors import ApiError, BackendUnavailable, Code, Refused
from meshim.protocol.names import fold_name
from meshim.wire.rest import Relation

_UNSURE = ""
"""The standing of somebody of whom REST has to be asked again."""


class People:
    """Peers by name and by id, and the keys of our conversations with them."""

    def __init__(self, session: Session, state: StateFile) -> None:
        self.me = session.user_id
        self._session = session
        self._names: dict[int, str] = {self.me: session.name}
        self._peers: dict[str, tuple[int, str]] = {}
        self._keys: dict[int, dict[int, bytes]] = {}
        for user, peer, unrevoked in state.peers():
            self._names[user] = peer
            self._peers[peer] = (user, unrevoked)
        for user, version, key in state.content_keys():
            self._keys.setdefault(user, {})[version] = key
        session.on_relations = self._note

    async def key_for(self, name: str) -> tuple[int, int, bytes]:
        """(user id, key version, key) for a message to a friend.

        Raises Refused when they are not friends, BackendUnavailable when that cannot be found out now.
        """
        folded = fold_name(name)
        if folded is None:
            raise Refused(Code.NO_SUCH_RECIPIENT, f"{name!r} cannot be the name of a user")
        if folded == self._names[self.me]:
            raise Refused(
                Code.NO_SUCH_RECIPIENT, "nobody writes to oneself: your other devices see what you send anyway"
            )
        known = self._peers.get(folded)
        if known is None or known[1] != "friends" or not self._keys.get(known[0]):
            known = await self._ask(folded)
        user, unrevoked = known
        if unrevoked != "friends":
            me = self._names[self.me]
            how = {
                "asked": f"{folded} has asked for your friendship: answer with `meshim friend accept {me} {folded}`.",
                "requested": f"{folded} has not accepted your friendship yet.",
            }.get(unrevoked, f"{folded} is not your friend: ask with `meshim friend add {me} {folded}`.")
            raise Refused(Code.NOT_FRIENDS, how)
        version = max(self._keys[user])
        return user, version, self._keys[user][version]

    async def _ask(self, name: str) -> tuple[int, str]:
        try:
            await self._learn([await self._session.relation(name)])
        except ApiError as error:
            if error.temporary:
                raise BackendUnavailable(error.sentence) from error
            raise Refused(Code.NO_SUCH_RECIPIENT, error.sentence) from error
        return self._peers[name]

    async def key_of(self, user: int, version: int) -> bytes | None:
        """The key a message was sealed with; None when the service does not know it either.

        Raises BackendUnavailable when it has to be asked for and that is not possible now, ApiError when we may not.
        """
        if version not in self._keys.get(user, {}):
            try:
                await self._learn(await self._session.relations())
            except ApiError as error:
                if error.temporary:
                    raise BackendUnavailable(error.sentence) from error
                raise
        return self._keys.get(user, {}).get(version)

    def name_of(self, user: int) -> str:
        """The name of a user; `user-ID` if nobody could tell when a key was asked for."""
        return self._names.get(user, f"user-{user}")

    def invalidate(self, user: int) -> None:
        """The mesh says that we are no friends (any more): ask before the next message."""
        if (name := self._names.get(user)) in self._peers:
            self._peers[name] = (user, _UNSURE)

    async def _learn(self, relations: Sequence[Relation]) -> None:
        self._note(relations)
        await self._session.keep_relations(relations)

    def _note(self, relations: Sequence[Relation]) -> None:
        for relation in relations:
            user, name = relation.peer.user_id, relation.peer.name
            self._names[user] = name
            self._peers[name] = (user, relation.state)
            self._keys.setdefault(user, {}).update({key.version: key.key for key in relation.keys})
