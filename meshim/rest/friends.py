"""Relations between users: their state, the content keys that two friends share, and who of them is connected."""

import math
from collections.abc import Sequence

from meshim.errors import AskedLately, SealBroken, StoreConflict, TooManyKeys, TooManyRelations, TooManyRequests
from meshim.protocol.rate_limit import RateLimit
from meshim.rest.backends import Backends, Clock
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.core import (
    PRESENCE_IDS_MAX,
    FriendAction,
    Transition,
    checked_name,
    in_words,
    online_friends,
    refusal,
    transition,
)
from meshim.runtime.crypto import MasterKey, new_content_key, relation_context
from meshim.runtime.log import Log
from meshim.stores.ports import Relation, RelationKey, RelationLimits, User
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
        self._limits = RelationLimits(
            relations=limits.relations_per_user,
            incoming=limits.friend_requests_incoming,
            outgoing=limits.friend_requests_outgoing,
            pause_s=topology.timers.friend_request_pause_s,
        )
        lookups = limits.name_lookups_per_minute
        self._lookup_rate: RateLimit[int] = RateLimit(lookups / 60, limits.rate_limited_users, 60.0)
        requests = limits.friend_requests_per_hour
        self._request_rate: RateLimit[int] = RateLimit(requests / 3600, limits.rate_limited_users, 3600.0)
        self._presence_rate: RateLimit[int] = RateLimit(limits.presence_lookups_per_s, limits.rate_limited_users)
        self._keys_needed_s = topology.timers.device_idle_s
        """A message waits for a device no longer than that: then the device is dropped."""
        self._clock = clock
        self._log = log

    async def user(self, me: int, name: str) -> User:
        """Return a user by name.  Raises ApiError as `_named`."""
        peer, _ = await self._named(me, name)
        return peer

    async def _named(self, me: int, name: str) -> tuple[User, Relation | None]:
        """Return a user by name, and the relation to that user.

        Raises ApiError when there is none.  Each name that is not of a relation costs a token, or all names could be
        found out by trying; without one it is refused, whether a user has it or not.
        """
        folded = checked_name(name)
        now = self._clock()
        wait_s = self._lookup_rate.wait_s(me, now)
        if not wait_s:
            self._lookup_rate.charge(me, 1, now)  # before the first await, so that of many at once some are refused
        found = await self._accounts.user(folded)
        # Also for a name that nobody has, so that the time of a refusal does not tell.
        relation = await self._accounts.relation(me, found[0].user_id if found else me)
        if relation is not None and not wait_s:
            self._lookup_rate.charge(me, -1, now)
        if relation is None and wait_s:
            sentence = f"You have looked up many names: try again in {in_words(wait_s)}."
            raise refusal("slow_down", sentence, wait_s)
        if found is None:
            raise refusal("no_such_user", f"There is no user {folded}.")
        return found[0], relation

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
        peer, relation = await self._named(me, name)
        if relation is None:
            raise refusal("no_such_relation", f"You and {peer.name} are not friends, and neither has asked.")
        return self._to_wire(me, relation)

    async def apply(self, me: int, name: str, action: FriendAction) -> rest.Relation:
        """Follow the table of `core`; return the relation after it.  Raises ApiError for a missing cell."""
        peer, relation = await self._named(me, name)
        if peer.user_id == me:
            raise refusal("yourself", "Nobody is their own friend here: name somebody else.")
        for attempt in range(_TRIES):
            if attempt:
                relation = await self._accounts.relation(me, peer.user_id)
            chosen = transition(relation.state if relation else None, action, peer.name)
            if await self._store(me, peer, chosen, relation):
                after = await self._accounts.relation(me, peer.user_id)
                return self._to_wire(me, after or Relation(peer, "removed", ()))
        raise refusal("changed_meanwhile", f"{peer.name} changed this in the same moment: look again.")

    async def _store(self, me: int, user: User, chosen: Transition, before: Relation | None) -> bool:
        """Store the transition; False when the relation is no longer as in `before`."""
        now, peer = self._clock(), user.user_id
        if chosen is Transition.ASK:
            return await self._ask(me, user, now)
        if chosen is Transition.ACCEPT:
            return await self._accept(me, peer, before, now)
        if chosen is Transition.END:
            ended = await self._accounts.remove(me, peer, now)
            if ended is None:
                return False
            await self._tell(me, peer, ended)
        if chosen is Transition.BLOCK:
            try:
                ended = await self._accounts.block(me, peer, now, self._limits.relations)
            except StoreConflict:
                raise refusal("too_many_relations", "You know too many people already.") from None
            # A request of the peer stays as it is, and the peer must not learn of the block.
            await self._tell(me, peer, ended if ended in {"friends", "requested"} else "hidden")
        if chosen is Transition.UNBLOCK:
            if not await self._accounts.unblock(me, peer, now):
                return False
            await self._tell(me, peer, "hidden")
        return True

    async def _ask(self, me: int, peer: User, now: float) -> bool:
        """Make a request, and tell both; False when the relation has changed meanwhile."""
        wait_s = self._request_rate.wait_s(me, now)
        if wait_s > 0:
            sentence = f"You have asked many people for friendship: ask the next one in {in_words(wait_s)}."
            raise refusal("slow_down", sentence, wait_s)
        # Before the first await, so that requests at once are not all let through, and also when it is refused.
        self._request_rate.charge(me, 1, now)
        try:
            made = await self._accounts.request(me, peer.user_id, now, self._limits)
        except AskedLately as error:
            # The same whether the peer refused, the user withdrew, or the peer blocks the user meanwhile.
            sentence = f"Your last request to {peer.name} has ended: ask again in {in_words(error.wait_s)}."
            raise refusal("asked_lately", sentence, error.wait_s) from None
        except TooManyRequests:
            sentence = f"{self._limits.outgoing} people have not answered you yet: withdraw a request first."
            raise refusal("too_many_requests", sentence) from None
        except TooManyRelations:
            raise refusal("too_many_relations", "You know too many people already.") from None
        if made.state not in {"requested", "hidden"}:
            return False
        await self._tell(me, peer.user_id, made.state)
        if made.dropped is not None:
            self._notifier.statistics.friend_requests_dropped += 1
            await self._notifier.request_changed((made.dropped,))
        return True

    async def _accept(self, me: int, peer: int, before: Relation | None, now: float) -> bool:
        version = before.keys[-1].version + 1 if before and before.keys else 1
        wrapped = self._master.wrap(new_content_key(), relation_context(me, peer, version))
        try:
            await self._accounts.accept(
                me, peer, RelationKey(version, wrapped), now, self._limits.relations, now - self._keys_needed_s
            )
        except TooManyRelations:
            raise refusal("too_many_relations", "One of you knows too many people already.") from None
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
