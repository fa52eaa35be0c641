"""Relations between two users, as functions of a connection: the part of `SqlAccounts` about friends.

A pair has one row, the lower id first.  The states of the row::

    (no row) ──request──▶ requested ──accept──▶ friends ──remove──▶ removed ──request──▶ requested …
                              └─────remove, if the pair never were friends─▶ (no row)

`accept` adds a key version; no version is ever deleted, because it opens old messages.  The functions of the port have
their contract in `ports/accounts.py`.
"""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Row, case, delete, func, insert, or_, select, union_all, update
from sqlalchemy.engine import Connection

from meshim.errors import StoreConflict
from meshim.stores.ports import Relation, RelationKey, User
from meshim.stores.sql.schema import im_relation, im_relation_key, im_user

_REQUESTED, _FRIENDS, _REMOVED = "requested", "friends", "removed"
_ASKED = "asked"  # `requested`, seen by the other user; not in the table


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


def request(connection: Connection, user_id: int, peer_id: int, now: int, relations_max: int) -> str:
    if user_id == peer_id:
        raise StoreConflict("Nobody can be a friend of themselves.")
    both = select(im_user.c.id).where(im_user.c.id.in_([user_id, peer_id])).order_by(im_user.c.id)
    if len(connection.scalars(both.with_for_update()).all()) < 2:  # locked: the limit counts rows of both
        raise StoreConflict("There is no such user.")
    row = _locked(connection, user_id, peer_id)
    if row is None:
        for one, who in ((user_id, "You have"), (peer_id, "That user has")):
            count = select(func.count()).select_from(im_relation).where(_of(one))
            if connection.scalars(count).one() >= relations_max:
                raise StoreConflict(f"{who} {relations_max} relations, as many as there may be.")
        pair = {"user_id1": min(user_id, peer_id), "user_id2": max(user_id, peer_id), "gmt_create": now}
        values = pair | {"state": _REQUESTED, "requested_by": user_id, "gmt_modified": now}
        connection.execute(insert(im_relation).values(values))
        return _REQUESTED
    if row.state == _REMOVED:
        _change(connection, row.id, now, state=_REQUESTED, requested_by=user_id)
        return _REQUESTED
    return _state(row, user_id)


def accept(connection: Connection, user_id: int, peer_id: int, key: RelationKey, now: int) -> Relation:
    row = _locked(connection, user_id, peer_id)
    state = None if row is None else _state(row, user_id)
    keys = [] if row is None else _keys(connection, im_relation.c.id == row.id)[row.id]
    if row is not None and state == _ASKED:
        last = keys[-1].version if keys else 0
        if key.version != last + 1:
            raise StoreConflict(f"The next version of the key is {last + 1}, not {key.version}.")
        values = {"relation_id": row.id, "version": key.version, "wrapped": key.wrapped, "gmt_create": now}
        connection.execute(insert(im_relation_key).values(values))
        _change(connection, row.id, now, state=_FRIENDS)
    elif state != _FRIENDS or not keys or keys[-1] != key:  # a repeated call gets the same answer
        raise StoreConflict("That user has not asked for friendship.")
    [accepted] = _read(connection, user_id, _pair(user_id, peer_id))
    return accepted


def remove(connection: Connection, user_id: int, peer_id: int, now: int) -> bool:
    row = _locked(connection, user_id, peer_id)
    if row is None or row.state == _REMOVED:
        return False
    has_keys = select(im_relation_key.c.version).where(im_relation_key.c.relation_id == row.id).limit(1)
    if connection.scalar(has_keys) is None:
        connection.execute(delete(im_relation).where(im_relation.c.id == row.id))
    else:
        _change(connection, row.id, now, state=_REMOVED)
    return True


def _read(connection: Connection, user_id: int, which: ColumnElement[bool]) -> list[Relation]:
    """Return the relations that match `which`, by peer name."""
    peer = _peer_of(user_id)
    query = (
        select(im_relation.c.id, im_relation.c.state, im_relation.c.requested_by, peer.label("peer"), im_user.c.name)
        .join(im_user, im_user.c.id == peer)
        .where(which)
        .order_by(im_user.c.name)
    )
    rows = connection.execute(query).all()
    keys = _keys(connection, which)
    return [Relation(User(row.peer, row.name), _state(row, user_id), tuple(keys[row.id])) for row in rows]


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


def _state(row: Row[Any], user_id: int) -> str:
    return _ASKED if row.state == _REQUESTED and row.requested_by != user_id else str(row.state)


def _pair(user_id: int, peer_id: int) -> ColumnElement[bool]:
    low, high = min(user_id, peer_id), max(user_id, peer_id)
    return (im_relation.c.user_id1 == low) & (im_relation.c.user_id2 == high)


def _of(user_id: int) -> ColumnElement[bool]:
    return or_(im_relation.c.user_id1 == user_id, im_relation.c.user_id2 == user_id)


def _peer_of(user_id: int) -> ColumnElement[int]:
    return case((im_relation.c.user_id1 == user_id, im_relation.c.user_id2), else_=im_relation.c.user_id1)
