"""Invites, as functions of a connection: the part of `SqlAccounts` about who may register.

The functions of the port have their contract in `ports/accounts.py`.
"""

from collections.abc import Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from meshim.errors import NoSuchInvite
from meshim.stores.sql.schema import im_invite


def add_invites(connection: Connection, invites: Sequence[bytes], expires_at: int, now: int) -> None:
    connection.execute(delete(im_invite).where(im_invite.c.expires_at <= now))
    values = {"expires_at": expires_at, "gmt_create": now}
    connection.execute(insert(im_invite), [{"invite_hash": invite, **values} for invite in invites])


def is_valid_invite(connection: Connection, invite: bytes, now: int) -> bool:
    valid = select(im_invite.c.expires_at).where(im_invite.c.invite_hash == invite, im_invite.c.expires_at > now)
    return connection.scalar(valid) is not None


def use_invite(connection: Connection, invite: bytes, now: int) -> None:
    """Delete the invite.  Raises `NoSuchInvite` when there is none: of two users at once only one gets it."""
    valid = (im_invite.c.invite_hash == invite) & (im_invite.c.expires_at > now)
    if connection.execute(delete(im_invite).where(valid)).rowcount != 1:
        raise NoSuchInvite("There is no such invite.")
