"""Creates the tables of a database and upgrades them, with Alembic and the steps in `migrations/versions/`.

Separate from `schema.py` because most processes need no Alembic, which takes a tenth of a second to import.
"""

from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.sql.engine import LOCK_WAIT_S, SNAPSHOT, create, driver_message, is_unavailable

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
            _known(_version(connection))
            alembic.command.upgrade(_configuration(connection), "head")
    except SQLAlchemyError as error:
        if not is_unavailable(error):
            raise
        raise BackendUnavailable(f"The database is not available: {driver_message(error)}.") from error
    finally:
        engine.dispose()  # ends the lock of MySQL too


def check(url: str) -> None:
    """Raise `UsageError` unless the database has the newest version, `BackendUnavailable` when it does not answer."""
    engine = create(url, 1)
    try:
        with engine.execution_options(**{SNAPSHOT: True}).connect() as connection:
            version = _version(connection)
    except SQLAlchemyError as error:
        if not is_unavailable(error):
            raise
        raise BackendUnavailable(f"The database is not available: {driver_message(error)}.") from error
    finally:
        engine.dispose()
    if version != _known(version):
        raise UsageError("The database has no tables, or old ones: run `meshim db upgrade`.")


def _known(version: str | None) -> str | None:
    """Return the newest version; raise `UsageError` if the database is beyond it."""
    script = ScriptDirectory(str(_MIGRATIONS))
    if version is not None and version not in {step.revision for step in script.walk_revisions()}:
        raise UsageError(f"The database has version {version}, made by a newer meshim: install that one.")
    return script.get_current_head()


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


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
