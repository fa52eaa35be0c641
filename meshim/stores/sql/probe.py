"""Whether the database answers, and whether it has users: one query each, on a connection of its own."""

import asyncio

import sqlalchemy
import sqlalchemy.exc

from meshim.errors import BackendUnavailable, innermost
from meshim.stores.sql.schema import im_user


async def probe(url: str, timeout_s: float) -> None:
    """Return when the database has answered a query; raise `BackendUnavailable` with the reason when it has not."""
    # The thread cannot be cancelled, so the driver needs timeouts of its own.
    await asyncio.to_thread(_first, url, sqlalchemy.select(sqlalchemy.literal(1)), timeout_s)


def has_users(url: str, timeout_s: float) -> bool:
    """Return whether any user is registered; raises `BackendUnavailable`."""
    return _first(url, sqlalchemy.select(im_user.c.id).limit(1), timeout_s) is not None


def _first(url: str, query: sqlalchemy.Select[int], timeout_s: float) -> int | None:
    """Return the first value of the answer to a query; None when the answer is empty."""
    connect_args = {"connect_timeout": timeout_s, "read_timeout": timeout_s} if url.startswith("mysql") else {}
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=connect_args)
        with engine.connect() as connection:
            return connection.execute(query).scalar()
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise BackendUnavailable(innermost(error)) from error
