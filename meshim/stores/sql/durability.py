"""Whether the database takes commits and fsyncs them: its settings, and the gate before each commit.

`stores/durability.py` holds the rules.  The settings are read in the transaction that depends on them, because an
operator can change them while the database runs, and because those of SQLite belong to one connection.
"""

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores import durability
from meshim.stores.durability import DurabilityPolicy, Setting, Verdict
from meshim.stores.sql.database import Database
from meshim.stores.sql.engine import SNAPSHOT, create, driver_message, is_unknown_variable
from meshim.topology import Durability

_VARIABLES = ("innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog", "innodb_doublewrite", "read_only")


def read_settings(connection: Connection) -> list[Setting]:
    """Return the settings of a connection made by `engine.create`; takes one round trip."""
    if connection.dialect.name == "sqlite":
        journal_mode: Any = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        synchronous: Any = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        return durability.sqlite(str(journal_mode), int(synchronous))
    try:  # SHOW VARIABLES would take ten times as long
        values = connection.exec_driver_sql(f"SELECT {', '.join(f'@@global.{name}' for name in _VARIABLES)}").one()
    except DBAPIError as error:
        if not is_unknown_variable(error):
            raise
        return durability.innodb({})
    return durability.innodb(dict(zip(_VARIABLES, map(str, values), strict=True)))


def read_settings_at(url: str) -> list[Setting]:
    """As `read_settings`, over a new connection; one unknown setting when the database cannot be read."""
    database = create(url, 1)
    try:
        with database.execution_options(**{SNAPSHOT: True}).begin() as connection:
            return read_settings(connection)
    except SQLAlchemyError as error:
        why = f"It is not known how the database syncs: {driver_message(error)}."
        return [Setting("sql", "", "", Verdict.UNKNOWN, why)]
    finally:
        database.dispose()


class DatabaseDurabilityGate:
    """Blocks commits on connections with unsafe settings.  Thread-safe."""

    def __init__(self, policy: Durability, log: Log) -> None:
        self._policy = DurabilityPolicy(policy, log)

    async def start(self, database: Database) -> None:
        """Raise `UsageError` when the topology refuses the settings, `BackendUnavailable` when SQL is down."""
        violation = self._policy.violation(await database.read(read_settings))
        if violation is not None:
            raise UsageError(violation)

    def __call__(self, connection: Connection) -> None:
        """Raise `BackendUnavailable` when the topology refuses the settings of this connection."""
        violation = self._policy.violation(read_settings(connection))
        if violation is not None:
            raise BackendUnavailable(violation)
