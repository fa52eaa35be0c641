"""Friends: how two users stand, the keys they share, and which of them are connected."""

from meshim.errors import SealBroken, StoreConflict
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.core import FriendAction, Transition, checked_name, online_friends, refusal, transition
from meshim.runtime.crypto import MasterKey, new_content_key, relation_context
from meshim.runtime.log import Log
from meshim.stores.ports import Relation, RelationKey, User
from meshim.topology import Topology
from meshim.wire import rest

_TRIES = 3
"""How often to decide anew when the other side acts in the same moment."""


class Friends:
    """Relations as one user (`me`, a user id) sees and changes them."""

    def __init__(
        self,
        backends: Backends,
        notifier: ChangeNotifier,
        master: MasterKey,
        topology: Topology,
        clock: Clock,
        log: Log,
    ) -> None:
        self._accounts = backends.accounts
        self._presence = backends.presence
        self._leases = backends.leases
        self._notifier = notifier
        self._master = master
        self.mesh = master.fingerprint
        """Names the mesh: content keys of another one are of no use here."""
        self._most_relations = topology.limits.relations_per_user
        self._clock = clock
        self._log = log

    async def user(self, name: str) -> User:
        """Raises ApiError when there is no such user."""
        folded = checked_name(name)
        found = await self._accounts.user(folded)
        if found is None:
            raise refusal("no_such_user", f"There is no user {folded}.")
        return found[0]

    async def relations(self, me: int) -> tuple[rest.Relation, ...]:
        return tuple(self._shown(me, relation) for relation in await self._accounts.relations(me))

    async def relation(self, me: int, name: str) -> rest.Relation:
        peer = await self.user(name)
        relation = await self._accounts.relation(me, peer.user_id)
        if relation is None:
            raise refusal("no_such_relation", f"You and {peer.name} are not friends, and neither has asked.")
        return self._shown(me, relation)

    async def apply(self, me: int, name: str, action: FriendAction) -> rest.Relation:
        """Do what the table of `core` says; how the two stand after it.  Raises ApiError where it cannot be."""
        peer = await self.user(name)
        if peer.user_id == me:
            raise refusal("yourself", "Nobody is their own friend here: name somebody else.")
        for _ in range(_TRIES):
            relation = await self._accounts.relation(me, peer.user_id)
            step = transition(relation.state if relation else None, action, peer.name)
            if await self._take(me, peer.user_id, step, relation):
                after = await self._accounts.relation(me, peer.user_id)
                return self._shown(me, after or Relation(peer, "removed", ()))
        raise refusal("changed_meanwhile", f"{peer.name} changed this in the same moment: look again.")

    async def _take(self, me: int, peer: int, step: Transition, before: Relation | None) -> bool:
        """Take the step; False when the two no longer stand as `before` says."""
        now = self._clock()
        if step is Transition.ASK:
            try:
                return await self._accounts.request(me, peer, now, self._most_relations) == "requested"
            except StoreConflict:
                raise refusal("too_many_relations", "One of you knows too many people already.") from None
        if step is Transition.ACCEPT:
            version = before.keys[-1].version + 1 if before and before.keys else 1
            wrapped = self._master.wrap(new_content_key(), relation_context(me, peer, version))
            try:
                await self._accounts.accept(me, peer, RelationKey(version, wrapped), now)
            except StoreConflict:
                return False
            await self._notifier.friends_changed((me, peer))
        if step is Transition.END:
            if not await self._accounts.remove(me, peer, now):
                return False
            if before is not None and before.state == "friends":
                await self._notifier.friends_changed((me, peer))
        return True

    async def presence(self, me: int) -> tuple[rest.PeerPresence, ...]:
        """Of friends only.  A binding counts while the connector it is on lives."""
        friends = [relation.peer for relation in await self._accounts.relations(me) if relation.state == "friends"]
        entries = await self._presence.lookup([friend.user_id for friend in friends])
        living = {lease.incarnation for lease in await self._leases.living("connector")}
        return online_friends(
            (
                (
                    rest.User(friend.user_id, friend.name),
                    [binding.incarnation for binding in entries[friend.user_id].bindings]
                    if friend.user_id in entries
                    else [],
                )
                for friend in friends
            ),
            living,
        )

    def _shown(self, me: int, relation: Relation) -> rest.Relation:
        peer = relation.peer
        try:
            keys = tuple(
                rest.ContentKey(version, self._master.unwrap(wrapped, relation_context(me, peer.user_id, version)))
                for version, wrapped in relation.keys
            )
        except SealBroken as error:
            self._log.error("wrong master key", user=me, peer=peer.user_id)
            raise refusal(
                "wrong_master_key", "The service runs with another master key than its data: restore master.key."
            ) from error
        return rest.Relation(rest.User(peer.user_id, peer.name), relation.state, keys)
