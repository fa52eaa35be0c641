"""Whether the database answers, takes writes, and has users: one statement each, on a connection of its own."""

import asyncio

import sqlalchemy
import sqlalchemy.exc

from meshim.errors import BackendUnavailable, innermost
from meshim.stores.sql.schema import WRITE_NOTHING, im_user


async def probe(url: str, timeout_s: float) -> None:
    """Return when the database has answered a query; raise `BackendUnavailable` with the reason when it has not."""
    # The thread cannot be cancelled, so the driver needs timeouts of its own.
    await asyncio.to_thread(_first, url, sqlalchemy.select(sqlalchemy.literal(1)), timeout_s)


async def check_writable(url: str, timeout_s: float) -> None:
    """Return when the database has committed a write, which changes nothing; raise `BackendUnavailable` otherwise."""
    await asyncio.to_thread(_write_nothing, url, timeout_s)


def has_users(url: str, timeout_s: float) -> bool:
    """Return whether any user is registered; raises `BackendUnavailable`."""
    return _first(url, sqlalchemy.select(im_user.c.id).limit(1), timeout_s) is not None


def _first(url: str, query: sqlalchemy.Select[int], timeout_s: float) -> int | None:
    """Return the first value of the answer to a query; None when the answer is empty."""
    try:
        with _engine(url, timeout_s).connect() as connection:
            return connection.execute(query).scalar()
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise BackendUnavailable(innermost(error)) from error


def _write_nothing(url: str, timeout_s: float) -> None:
    try:
        with _engine(url, timeout_s).begin() as connection:
            connection.execute(WRITE_NOTHING)
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise BackendUnavailable(
            f"The database takes no writes ({innermost(error)}): make room on its disk, or let it write."
        ) from error


def _engine(url: str, timeout_s: float) -> sqlalchemy.Engine:
    connect_args = {"connect_timeout": timeout_s, "read_timeout": timeout_s} if url.startswith("mysql") else {}
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=connect_args)
