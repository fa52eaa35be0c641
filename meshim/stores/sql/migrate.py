"""Creates the tables of a database and upgrades them, with Alembic and the steps in `migrations/versions/`.

Separate from `schema.py` because no role needs Alembic, which takes a tenth of a second to import.
"""

from pathlib import Path

import alembic.command
from alembic.config import Config
from sqlalchemy import func, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from meshim.errors import BackendUnavailable
from meshim.stores.sql.engine import LOCK_WAIT_S, create, driver_message, is_unavailable
from meshim.stores.sql.mesh_record import newer, read_version
from meshim.stores.sql.schema import VERSION

_MIGRATIONS = Path(__file__).parent / "migrations"
_UPGRADE_LOCK_S = 60
_UPGRADE_ANSWER_S = 3600  # a step may rewrite a large table


def upgrade(url: str) -> None:
    """Upgrade the database to the newest version; do nothing when it has that version.

    When several processes call this at once, one upgrades and the others wait.  Raises `BackendUnavailable`, and
    `UsageError` when the database has a version that this program does not know.
    """
    engine = create(url, 1, _UPGRADE_ANSWER_S).execution_options(**{LOCK_WAIT_S: _UPGRADE_LOCK_S})
    try:
        with engine.begin() as connection:  # SQLite: one transaction, which holds the lock from here
            _lock(connection)
            version = read_version(connection)
            if version is not None and version > VERSION:
                raise newer(version)
            alembic.command.upgrade(_configuration(connection), "head")
    except SQLAlchemyError as error:
        if not is_unavailable(error):
            raise
        raise BackendUnavailable(f"The database is not available: {driver_message(error)}.") from error
    finally:
        engine.dispose()  # ends the lock of MySQL too


def _configuration(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _lock(connection: Connection) -> None:
    """Take a named lock on MySQL, which commits with every change of a table: a transaction would lock nothing."""
    if connection.dialect.name == "sqlite":
        return
    name = func.concat("meshim upgrade ", func.sha1(func.database()))
    if connection.scalar(select(func.get_lock(func.left(name, 64), _UPGRADE_LOCK_S))) != 1:
        raise BackendUnavailable("Another process is upgrading the database; try again when it is done.")
