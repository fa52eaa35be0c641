"""Relations between two users, as functions of a connection: the part of `SqlAccounts` about friends.

A pair has one row, the lower id first.  The states of the row::

    (no row) ──request──▶ requested ──accept──▶ friends ──remove──▶ removed ──request──▶ requested …
                              └─────remove, if the pair never were friends─▶ (no row)

`accept` adds a key version.  A pair has `KEY_VERSIONS_MAX` at most: one is deleted only when no message that waits can
need it.  The functions of the port have
their contract in `ports/accounts.py`.

A block is a flag beside the state, one for each of the two.  `state` is what there would be between them if nobody had
blocked, with one exception: `block` ends a friendship and a request of the blocker, as `remove` does.  So the blocked
user sees nothing else than `state`; the blocker sees `blocked`.  A row without a relation, `none`, is only there for
its flags, and for the pause of a user (`requested_by`) whose request was refused or withdrawn (`request_changed_at`).
A later request of one of the two deletes it when the pause is over.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, case, delete, func, insert, or_, select, union_all, update
from sqlalchemy.engine import Connection

from meshim.errors import AskedLately, StoreConflict, TooManyKeys, TooManyRelations, TooManyRequests
from meshim.stores.ports import KEY_VERSIONS_MAX, Relation, RelationKey, RelationLimits, Requested, User
from meshim.stores.sql.schema import im_relation, im_relation_key, im_user, to_ms, to_s

_REQUESTED, _FRIENDS, _REMOVED, _NONE = "requested", "friends", "removed", "none"
_ASKED = "asked"  # `requested`, seen by the other user; this and those below are not in the table
_HIDDEN = "hidden"  # `requested`, and the other user does not see it
_BLOCKED = "blocked"
_OVER_MAX = 100


def relation(connection: Connection, user_id: int, peer_id: int) -> Relation | None:
    found = _read(connection, user_id, _pair(user_id, peer_id))
    return found[0] if found else None


def relations(connection: Connection, user_id: int) -> list[Relation]:
    return _read(connection, user_id, _of(user_id))


def friends(connection: Connection, user_ids: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return the ids of each user's friends, ascending."""
    found: dict[int, list[int]] = {user: [] for user in user_ids}
    row = im_relation.c
    one, other = (
        select(user, peer).where(user.in_(found), row.state == _FRIENDS)
        for user, peer in ((row.user_id1, row.user_id2), (row.user_id2, row.user_id1))  # each branch has an index
    )
    for user, peer in connection.execute(union_all(one, other)):
        found[user].append(peer)
    return {user: tuple(sorted(peers)) for user, peers in found.items()}


def friends_by_name(connection: Connection, user_id: int, among: Sequence[int] | None) -> list[User]:
    peer = _peer_of(user_id)
    query = select(im_user.c.id, im_user.c.name).join(im_relation, im_user.c.id == peer).order_by(im_user.c.name)
    which = _of(user_id) if among is None else _of_pairs(user_id, among)
    return [User(*row) for row in connection.execute(query.where(which, im_relation.c.state == _FRIENDS))]


def request(connection: Connection, user_id: int, peer_id: int, now: int, limits: RelationLimits) -> Requested:
    _lock_users(connection, user_id, peer_id)
    _delete_over(connection, (user_id, peer_id), now - to_ms(limits.pause_s))
    row = _locked(connection, user_id, peer_id)
    before = _state(row, user_id)
    dropped = None
    if before in {None, _REMOVED}:
        _check_pause(row, user_id, now, to_ms(limits.pause_s))
        if before is None:
            _check_limit(connection, user_id, "You have", limits.relations)
        _check_outgoing(connection, user_id, limits.outgoing)
        dropped = _make_room(connection, peer_id, limits.incoming, now)
        values = {"state": _REQUESTED, "requested_by": user_id, "request_changed_at": now}
        _put(connection, row, (user_id, peer_id), now, **values)
    return Requested(_state(_locked(connection, user_id, peer_id), user_id) or _NONE, dropped)


def accept(
    connection: Connection,
    user_id: int,
    peer_id: int,
    key: RelationKey,
    now: int,
    relations_max: int,
    needed_since: int,
) -> Relation:
    _lock_users(connection, user_id, peer_id)
    row = _locked(connection, user_id, peer_id)
    state = _state(row, user_id)
    keys = [] if row is None else _keys(connection, im_relation.c.id == row.id)[row.id]
    if row is not None and state == _ASKED:
        last = keys[-1].version if keys else 0
        if key.version != last + 1:
            raise StoreConflict(f"The next version of the key is {last + 1}, not {key.version}.")
        if not keys:
            _check_limit(connection, user_id, "You have", relations_max)
            _check_limit(connection, peer_id, "That user has", relations_max)
        if len(keys) >= KEY_VERSIONS_MAX:
            _delete_replaced(connection, row.id, needed_since)
        values = {"relation_id": row.id, "version": key.version, "wrapped": key.wrapped, "gmt_create": now}
        connection.execute(insert(im_relation_key).values(values))
        _change(connection, row.id, now, state=_FRIENDS, request_changed_at=0)
    elif state != _FRIENDS or not keys or keys[-1] != key:  # a repeated call gets the same answer
        raise StoreConflict("That user has not asked for friendship.")
    [accepted] = _read(connection, user_id, _pair(user_id, peer_id))
    return accepted


def _delete_replaced(connection: Connection, relation_id: int, before: int) -> None:
    """Delete the versions that a later one replaced before that time.  Raises TooManyKeys when there is none."""
    key = im_relation_key.c
    made = select(key.version, key.gmt_create).where(key.relation_id == relation_id).order_by(key.version)
    versions = [row.version for row in connection.execute(made).all() if row.gmt_create < before]
    if len(versions) < 2:  # the latest of them replaced the others, and was itself replaced later
        raise TooManyKeys(f"The two have {KEY_VERSIONS_MAX} versions of their key, and all may be needed.")
    replaced = (key.relation_id == relation_id) & (key.version < versions[-1])
    connection.execute(delete(im_relation_key).where(replaced))


def remove(connection: Connection, user_id: int, peer_id: int, now: int) -> str | None:
    row = _locked(connection, user_id, peer_id)
    before = _state(row, user_id)
    if row is None or before in {None, _REMOVED, _BLOCKED}:
        return None
    changed_at = 0 if before == _FRIENDS else now
    _change(connection, row.id, now, state=_ended(connection, row), request_changed_at=changed_at)
    return before


def block(connection: Connection, user_id: int, peer_id: int, now: int, relations_max: int) -> str | None:
    _lock_users(connection, user_id, peer_id)
    row = _locked(connection, user_id, peer_id)
    before = _state(row, user_id)
    if before is None:
        _check_limit(connection, user_id, "You have", relations_max)
    values: dict[str, Any] = {_flag_of(user_id, peer_id).name: 1}
    if row is None:
        values |= {"state": _NONE, "requested_by": user_id}
    elif before in {_FRIENDS, _REQUESTED, _HIDDEN}:  # as `remove`
        values |= {"state": _ended(connection, row), "request_changed_at": 0 if before == _FRIENDS else now}
    _put(connection, row, (user_id, peer_id), now, **values)
    return before


def unblock(connection: Connection, user_id: int, peer_id: int, now: int) -> bool:
    row = _locked(connection, user_id, peer_id)
    if row is None or _state(row, user_id) != _BLOCKED:
        return False
    _change(connection, row.id, now, **{_flag_of(user_id, peer_id).name: 0})
    _delete_empty(connection, (im_relation.c.id == row.id) & (im_relation.c.request_changed_at == 0))
    return True


def _lock_users(connection: Connection, user_id: int, peer_id: int) -> None:
    """Lock both, as the limit counts the rows of each."""
    if user_id == peer_id:
        raise StoreConflict("Nobody can be a friend of themselves.")
    both = select(im_user.c.id).where(im_user.c.id.in_([user_id, peer_id])).order_by(im_user.c.id)
    if len(connection.scalars(both.with_for_update()).all()) < 2:
        raise StoreConflict("There is no such user.")


def _check_limit(connection: Connection, user_id: int, who: str, relations_max: int) -> None:
    row = im_relation.c
    first_key = select(im_relation_key.c.version).where(im_relation_key.c.relation_id == row.id)
    related = case((first_key.exists(), 1), else_=0)
    blocked = case((row.user_id1 == user_id, row.blocked_by1), else_=row.blocked_by2)
    count = select(func.coalesce(func.sum(related + blocked), 0)).where(_of(user_id))
    if connection.scalars(count).one() >= relations_max:
        raise TooManyRelations(f"{who} {relations_max} relations, as many as there may be.")


def _check_pause(row: Row[Any] | None, user_id: int, now: int, pause_ms: int) -> None:
    """A time in the future was written before the clock stepped back, and counts as over (adr/0016)."""
    if row is None or row.requested_by != user_id or not row.request_changed_at <= now:
        return
    over_at = row.request_changed_at + pause_ms
    if now < over_at:
        raise AskedLately("The last request to this user has just ended.", to_s(over_at - now))


def _check_outgoing(connection: Connection, user_id: int, requests_max: int) -> None:
    row = im_relation.c
    waiting = select(func.count()).where(_of(user_id), row.state == _REQUESTED, row.requested_by == user_id)
    if connection.scalars(waiting).one() >= requests_max:
        raise TooManyRequests(f"{requests_max} requests wait for an answer, as many as may.")


def _make_room(connection: Connection, user_id: int, requests_max: int, now: int) -> int | None:
    """End the oldest request to this user, unless there is room for one more; return the user who had made it.

    One that a block hides counts and goes as any other, so that no request tells its user of the block.
    """
    row = im_relation.c
    waiting = (
        select(im_relation)
        .where(_of(user_id), row.state == _REQUESTED, row.requested_by != user_id)
        .order_by(row.request_changed_at.desc(), row.id.desc())
        .offset(requests_max - 1)
        .limit(1)
    )
    oldest = connection.execute(waiting).first()
    if oldest is None:
        return None
    _change(connection, oldest.id, now, state=_ended(connection, oldest), request_changed_at=0)
    _delete_empty(connection, im_relation.c.id == oldest.id)
    return int(oldest.requested_by)


def _delete_over(connection: Connection, users: tuple[int, int], before: int) -> None:
    """Delete what pauses of these users have left that were over before this time, some at a time."""
    row = im_relation.c
    empty = (row.state == _NONE) & (row.blocked_by1 == 0) & (row.blocked_by2 == 0)
    over = select(row.id).where(or_(*map(_of, users)), empty, row.request_changed_at <= before).limit(_OVER_MAX)
    ids = connection.scalars(over).all()  # by id: a range in a DELETE would lock rows of other users on MySQL
    if ids:
        _delete_empty(connection, row.id.in_(ids))


def _put(connection: Connection, row: Row[Any] | None, users: tuple[int, int], now: int, **values: object) -> None:
    """Update the row of the two, or insert it."""
    if row is not None:
        _change(connection, row.id, now, **values)
        return
    pair = {"user_id1": min(users), "user_id2": max(users), "gmt_create": now, "gmt_modified": now}
    connection.execute(insert(im_relation).values(pair | values))


def _ended(connection: Connection, row: Row[Any]) -> str:
    """The state when friendship or request are over: a pair that ever was friends keeps its keys."""
    has_keys = select(im_relation_key.c.version).where(im_relation_key.c.relation_id == row.id).limit(1)
    return _NONE if connection.scalar(has_keys) is None else _REMOVED


def _not_empty() -> ColumnElement[bool]:
    row = im_relation.c
    return or_(row.state != _NONE, row.blocked_by1 != 0, row.blocked_by2 != 0)


def _delete_empty(connection: Connection, which: ColumnElement[bool]) -> None:
    """Delete those of the rows in which nothing is left: no relation, no block."""
    row = im_relation.c
    unblocked = (row.blocked_by1 == 0) & (row.blocked_by2 == 0)
    connection.execute(delete(im_relation).where(which, row.state == _NONE, unblocked))


def _read(connection: Connection, user_id: int, which: ColumnElement[bool]) -> list[Relation]:
    """Return the relations that match `which`, by peer name."""
    peer = _peer_of(user_id)
    query = (
        select(im_relation, peer.label("peer"), im_user.c.name)
        .join(im_user, im_user.c.id == peer)
        .where(which, _not_empty())
        .order_by(im_user.c.name)
    )
    rows = connection.execute(query).all()
    keys = _keys(connection, which)
    seen = [(row, _seen(_state(row, user_id))) for row in rows]
    return [Relation(User(row.peer, row.name), state, tuple(keys[row.id])) for row, state in seen if state is not None]


def _keys(connection: Connection, which: ColumnElement[bool]) -> dict[int, list[RelationKey]]:
    """Return key versions by relation id, oldest first."""
    key = im_relation_key.c
    query = select(key.relation_id, key.version, key.wrapped).join(im_relation, im_relation.c.id == key.relation_id)
    keys = defaultdict[int, list[RelationKey]](list)
    for relation_id, version, wrapped in connection.execute(query.where(which).order_by(key.version)):
        keys[relation_id].append(RelationKey(version, wrapped))
    return keys


def _locked(connection: Connection, user_id: int, peer_id: int) -> Row[Any] | None:
    return connection.execute(select(im_relation).where(_pair(user_id, peer_id)).with_for_update()).first()


def _change(connection: Connection, relation_id: int, now: int, **values: object) -> None:
    connection.execute(update(im_relation).where(im_relation.c.id == relation_id).values(gmt_modified=now, **values))


def _state(row: Row[Any] | None, user_id: int) -> str | None:
    """What the user sees, with `hidden` for a request of the user that the other does not see; None: no relation."""
    if row is None:
        return None
    mine, others = row.blocked_by1, row.blocked_by2
    if user_id == row.user_id2:
        mine, others = others, mine
    if mine:
        return _BLOCKED
    if row.state == _REQUESTED:
        return _ASKED if row.requested_by != user_id else _HIDDEN if others else _REQUESTED
    return None if row.state == _NONE else str(row.state)


def _seen(state: str | None) -> str | None:
    return _REQUESTED if state == _HIDDEN else state


def _flag_of(user_id: int, peer_id: int) -> Column[Any]:
    """The flag of the user who blocks."""
    return im_relation.c.blocked_by1 if user_id < peer_id else im_relation.c.blocked_by2


def _pair(user_id: int, peer_id: int) -> ColumnElement[bool]:
    low, high = min(user_id, peer_id), max(user_id, peer_id)
    return (im_relation.c.user_id1 == low) & (im_relation.c.user_id2 == high)


def _of_pairs(user_id: int, peer_ids: Sequence[int]) -> ColumnElement[bool]:
    row = im_relation.c
    higher = (row.user_id1 == user_id) & row.user_id2.in_(peer_ids)
    return or_(higher, (row.user_id2 == user_id) & row.user_id1.in_(peer_ids))


def _of(user_id: int) -> ColumnElement[bool]:
    return or_(im_relation.c.user_id1 == user_id, im_relation.c.user_id2 == user_id)


def _peer_of(user_id: int) -> ColumnElement[int]:
    return case((im_relation.c.user_id1 == user_id, im_relation.c.user_id2), else_=im_relation.c.user_id1)
