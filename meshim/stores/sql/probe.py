"""Whether the database answers: one query on a connection of its own."""

import asyncio

import sqlalchemy
import sqlalchemy.exc

from meshim.errors import BackendUnavailable, innermost


async def probe(url: str, timeout_s: float) -> None:
    """Return when the database has answered a query; raise `BackendUnavailable` with the reason when it has not."""

    def select() -> None:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=connect_args)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))

    # The thread cannot be cancelled, so the driver needs timeouts of its own.
    connect_args = {"connect_timeout": timeout_s, "read_timeout": timeout_s} if url.startswith("mysql") else {}
    try:
        await asyncio.to_thread(select)
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise BackendUnavailable(innermost(error)) from error
