"""Relations between users: their state, the content keys that two friends share, and who of them is connected."""

import math
from collections.abc import Sequence

from meshim.errors import SealBroken, StoreConflict, TooManyKeys
from meshim.protocol.rate_limit import RateLimit
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.core import (
    PRESENCE_IDS_MAX,
    FriendAction,
    Transition,
    checked_name,
    online_friends,
    refusal,
    transition,
)
from meshim.runtime.crypto import MasterKey, new_content_key, relation_context
from meshim.runtime.log import Log
from meshim.stores.ports import Relation, RelationKey, User
from meshim.topology import Topology
from meshim.wire import rest
from meshim.wire.bounds import INTEGER_MAX

_TRIES = 3
"""When the peer changes the relation in the same moment, it is read and decided again, so many times."""


class Friends:
    """The relations of one user; `me` is that user's id."""

    def __init__(
        self,
        *,
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
        """The id of this mesh: content keys of another mesh do not open its messages."""
        limits = topology.limits
        self._relations_max = limits.relations_per_user
        self._keys_needed_s = topology.timers.device_idle_s
        """A message waits for a device no longer than that: then the device is dropped."""
        self._presence_rate: RateLimit[int] = RateLimit(limits.presence_lookups_per_s, limits.presence_limited_users)
        self._clock = clock
        self._log = log

    async def user(self, name: str) -> User:
        """Return a user by name.  Raises ApiError when there is none."""
        folded = checked_name(name)
        found = await self._accounts.user(folded)
        if found is None:
            raise refusal("no_such_user", f"There is no user {folded}.")
        return found[0]

    async def relations(self, me: int, peer: int | None = None) -> tuple[rest.Relation, ...]:
        """Return all relations, sorted by the name of the peer, or only the one to the user with the id `peer`.

        Those that ended are included: their keys open old messages.  An id without a relation gives an empty result,
        whether a user has it or not; raises ApiError for a number that no user can have.
        """
        if peer is None:
            found = await self._accounts.relations(me)
        elif not 1 <= peer <= INTEGER_MAX:  # the framework checks the bounds of lists alone
            raise refusal("malformed", f"A user_id is a number from 1 to {INTEGER_MAX}.")
        else:
            relation = await self._accounts.relation(me, peer)
            found = [] if relation is None else [relation]
        return tuple(self._to_wire(me, relation) for relation in found)

    async def relation(self, me: int, name: str) -> rest.Relation:
        """Return the relation to one user.  Raises ApiError when there is no such user or no relation."""
        peer = await self.user(name)
        relation = await self._accounts.relation(me, peer.user_id)
        if relation is None:
            raise refusal("no_such_relation", f"You and {peer.name} are not friends, and neither has asked.")
        return self._to_wire(me, relation)

    async def apply(self, me: int, name: str, action: FriendAction) -> rest.Relation:
        """Follow the table of `core`; return the relation after it.  Raises ApiError for a missing cell."""
        peer = await self.user(name)
        if peer.user_id == me:
            raise refusal("yourself", "Nobody is their own friend here: name somebody else.")
        for _ in range(_TRIES):
            relation = await self._accounts.relation(me, peer.user_id)
            chosen = transition(relation.state if relation else None, action, peer.name)
            if await self._store(me, peer.user_id, chosen, relation):
                after = await self._accounts.relation(me, peer.user_id)
                return self._to_wire(me, after or Relation(peer, "removed", ()))
        raise refusal("changed_meanwhile", f"{peer.name} changed this in the same moment: look again.")

    async def _store(self, me: int, peer: int, chosen: Transition, before: Relation | None) -> bool:
        """Store the transition; False when the relation is no longer as in `before`."""
        now = self._clock()
        if chosen is Transition.ASK:
            try:
                state = await self._accounts.request(me, peer, now, self._relations_max)
            except StoreConflict:
                raise refusal("too_many_relations", "One of you knows too many people already.") from None
            if state not in {"requested", "hidden"}:
                return False
            await self._tell(me, peer, state)
        if chosen is Transition.ACCEPT:
            return await self._accept(me, peer, before, now)
        if chosen is Transition.END:
            ended = await self._accounts.remove(me, peer, now)
            if ended is None:
                return False
            await self._tell(me, peer, ended)
        if chosen is Transition.BLOCK:
            try:
                ended = await self._accounts.block(me, peer, now, self._relations_max)
            except StoreConflict:
                raise refusal("too_many_relations", "You know too many people already.") from None
            # A request of the peer stays as it is, and the peer must not learn of the block.
            await self._tell(me, peer, ended if ended in {"friends", "requested"} else "hidden")
        if chosen is Transition.UNBLOCK:
            if not await self._accounts.unblock(me, peer, now):
                return False
            await self._tell(me, peer, "hidden")
        return True

    async def _accept(self, me: int, peer: int, before: Relation | None, now: float) -> bool:
        version = before.keys[-1].version + 1 if before and before.keys else 1
        wrapped = self._master.wrap(new_content_key(), relation_context(me, peer, version))
        try:
            await self._accounts.accept(me, peer, RelationKey(version, wrapped), now, now - self._keys_needed_s)
        except TooManyKeys:
            sentence = "This friendship was ended and made anew too often: try again in some weeks."
            raise refusal("too_many_friendships", sentence) from None
        except StoreConflict:
            return False
        await self._notifier.friends_changed((me, peer))
        return True

    async def _tell(self, me: int, peer: int, changed: str) -> None:
        """Notify of a state that began or ended: `hidden` is what the peer does not see."""
        if changed == "friends":
            await self._notifier.friends_changed((me, peer))
        else:
            await self._notifier.request_changed((me,) if changed == "hidden" else (me, peer))

    async def presence(self, me: int, among: Sequence[int] | None = None) -> tuple[rest.PeerPresence, ...]:
        """Return which friends are connected, with `among` only of these ids.

        A binding counts while the lease of its connector lives.  Costs a token for each id, without `among` for each
        friend; raises ApiError while the user has none left, and when `among` is too long.
        """
        if among is not None and len(among) > PRESENCE_IDS_MAX:
            raise refusal("malformed", f"Ask for {PRESENCE_IDS_MAX} users at most in one request.")
        now = self._clock()
        wait_s = self._presence_rate.wait_s(me, now)
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise refusal("slow_down", f"Too many questions about presence: try again in {seconds} s.", seconds)
        # Before the first await, so that requests at once are not all let through.  Ids of strangers cost as much.
        self._presence_rate.charge(me, 1 if among is None else len(among), now)
        friends = await self._accounts.friends(me, among)
        if among is None:
            self._presence_rate.charge(me, max(0, len(friends) - 1), now)
        entries = await self._presence.lookup([friend.user_id for friend in friends])
        living = {lease.incarnation for lease in await self._leases.living("connector")}
        bound = [
            (
                rest.User(friend.user_id, friend.name),
                [binding.incarnation for binding in entries[friend.user_id].bindings]
                if friend.user_id in entries
                else [],
            )
            for friend in friends
        ]
        return online_friends(bound, living)

    def _to_wire(self, me: int, relation: Relation) -> rest.Relation:
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
