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
its flags.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, case, delete, func, insert, or_, select, union_all, update
from sqlalchemy.engine import Connection

from meshim.errors import StoreConflict, TooManyKeys
from meshim.stores.ports import KEY_VERSIONS_MAX, Relation, RelationKey, User
from meshim.stores.sql.schema import im_relation, im_relation_key, im_user

_REQUESTED, _FRIENDS, _REMOVED, _NONE = "requested", "friends", "removed", "none"
_ASKED = "asked"  # `requested`, seen by the other user; this and those below are not in the table
_HIDDEN = "hidden"  # `requested`, and the other user does not see it
_BLOCKED = "blocked"


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


def request(connection: Connection, user_id: int, peer_id: int, now: int, relations_max: int) -> str:
    _lock_users(connection, user_id, peer_id)
    row = _locked(connection, user_id, peer_id)
    before = _state(row, user_id)
    if before in {None, _REMOVED}:
        if before is None:
            _check_limit(connection, user_id, "You have", relations_max)
            _check_limit(connection, peer_id, "That user has", relations_max)
        _put(connection, row, (user_id, peer_id), now, state=_REQUESTED, requested_by=user_id)
    return _state(_locked(connection, user_id, peer_id), user_id) or _NONE


def accept(
    connection: Connection, user_id: int, peer_id: int, key: RelationKey, now: int, needed_since: int
) -> Relation:  # fmt: skip
    row = _locked(connection, user_id, peer_id)
    state = _state(row, user_id)
    keys = [] if row is None else _keys(connection, im_relation.c.id == row.id)[row.id]
    if row is not None and state == _ASKED:
        last = keys[-1].version if keys else 0
        if key.version != last + 1:
            raise StoreConflict(f"The next version of the key is {last + 1}, not {key.version}.")
        if len(keys) >= KEY_VERSIONS_MAX:
            _delete_replaced(connection, row.id, needed_since)
        values = {"relation_id": row.id, "version": key.version, "wrapped": key.wrapped, "gmt_create": now}
        connection.execute(insert(im_relation_key).values(values))
        _change(connection, row.id, now, state=_FRIENDS)
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
    _change(connection, row.id, now, state=_ended(connection, row))
    _delete_empty(connection, row.id)
    return before


def block(connection: Connection, user_id: int, peer_id: int, now: int, relations_max: int) -> str | None:
    _lock_users(connection, user_id, peer_id)
    row = _locked(connection, user_id, peer_id)
    before = _state(row, user_id)
    if before is None:
        _check_limit(connection, user_id, "You have", relations_max)
    state = _NONE if row is None else row.state
    if row is not None and before in {_FRIENDS, _REQUESTED, _HIDDEN}:
        state = _ended(connection, row)
    requested_by = user_id if row is None else row.requested_by
    flag = _flag_of(user_id, peer_id).name
    _put(connection, row, (user_id, peer_id), now, **{"state": state, "requested_by": requested_by, flag: 1})
    return before


def unblock(connection: Connection, user_id: int, peer_id: int, now: int) -> bool:
    row = _locked(connection, user_id, peer_id)
    if row is None or _state(row, user_id) != _BLOCKED:
        return False
    _change(connection, row.id, now, **{_flag_of(user_id, peer_id).name: 0})
    _delete_empty(connection, row.id)
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
    related = case((row.state == _NONE, 0), else_=1)
    blocked = case((row.user_id1 == user_id, row.blocked_by1), else_=row.blocked_by2)
    count = select(func.coalesce(func.sum(related + blocked), 0)).where(_of(user_id))
    if connection.scalars(count).one() >= relations_max:
        raise StoreConflict(f"{who} {relations_max} relations, as many as there may be.")


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


def _delete_empty(connection: Connection, relation_id: int) -> None:
    """Delete the row when nothing is left in it: no relation, no block."""
    row = im_relation.c
    unblocked = (row.blocked_by1 == 0) & (row.blocked_by2 == 0)
    connection.execute(delete(im_relation).where(row.id == relation_id, row.state == _NONE, unblocked))


def _read(connection: Connection, user_id: int, which: ColumnElement[bool]) -> list[Relation]:
    """Return the relations that match `which`, by peer name."""
    peer = _peer_of(user_id)
    query = (
        select(im_relation, peer.label("peer"), im_user.c.name)
        .join(im_user, im_user.c.id == peer)
        .where(which)
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
