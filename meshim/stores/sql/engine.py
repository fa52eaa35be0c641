"""SQL engines: the settings with which SQLite and MySQL/MariaDB keep the same promises.

There are two kinds of transaction:

========  ==========================================  ==========================================
          SQLite                                      MySQL, MariaDB
========  ==========================================  ==========================================
write     BEGIN IMMEDIATE: takes the lock first, so   READ COMMITTED: each statement sees committed
          that no later statement fails for want of   data, and no gap is locked that two partitions
          it                                          need; rows that must not change are read FOR
                                                      UPDATE
snapshot  BEGIN: all reads see one state (WAL)        REPEATABLE READ: all reads see one state
========  ==========================================  ==========================================

The sqlite3 module begins transactions by itself, and only before a write.  `isolation_level = None` switches that off;
a listener of SQLAlchemy's `begin` event begins them instead.
"""

import sqlite3
import time
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError, SQLAlchemyError

from meshim.errors import UsageError, one_line

SNAPSHOT = "meshim_snapshot"
"""Execution option of an engine whose transactions only read, each from one snapshot."""
LOCK_WAIT_S = "meshim_lock_wait_s"
"""Execution option of an engine on SQLite: the seconds that a transaction may wait for the lock of another."""

_CONNECT_TIMEOUT_S = 3
_ANSWER_TIMEOUT_S = 10  # also bounds how long a stopped server blocks a thread
_LOCK_TIMEOUT_S = 2
_SILENCE_TIMEOUT_S = 10  # R11: then the server ends the session of a stopped process, and with it its locks
_SQLITE_BUSY_TIMEOUT_MS = 5_000
_SQLITE_POLL_S = 0.0005
_SQLITE_POLL_MAX_S = 0.005

_SQLITE_PRAGMAS = (
    f"busy_timeout = {_SQLITE_BUSY_TIMEOUT_MS}",  # first: the other pragmas may have to wait for a lock
    "journal_mode = WAL",
    "synchronous = FULL",  # a commit is on the disk when it returns
    "foreign_keys = ON",
)

# Strict mode, whatever the default of the server: a value that does not fit is an error, never truncated.
_MYSQL_SESSION = (
    f"SET SESSION sql_mode = 'TRADITIONAL', innodb_lock_wait_timeout = {_LOCK_TIMEOUT_S}, "
    f"wait_timeout = {_SILENCE_TIMEOUT_S}"
)

# Primary result codes caused by the file, the disk or other processes, not by our statement.
_SQLITE_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
_SQLITE_NO_TABLE = "no such table"  # of the general result code
# PyMySQL raises OperationalError for every server error that it does not know.  These SQLSTATE classes mean that our
# statement is wrong (cardinality, data, constraint, syntax or access), except the numbers in _MYSQL_ACCESS: database,
# table or privilege missing, too many connections of the user.
_MYSQL_OUR_FAULT = ("21", "22", "23", "42")
_MYSQL_ACCESS = frozenset({1044, 1049, 1142, 1143, 1203, 1226, 1227})
_MYSQL_NO_TABLE = 1146
_MYSQL_NO_DEFAULT = 1364  # our fault too, although of the general class
# Lock wait timeout, deadlock, "record has changed since last read" (MariaDB, snapshot isolation).
_MYSQL_CONTENTION = frozenset({1020, 1205, 1213})
_MYSQL_DUPLICATE_KEY = 1062
_MYSQL_UNKNOWN_VARIABLE = 1193


class TransactionEnded(SQLAlchemyError):
    """SQLite has rolled back the whole transaction by itself, with its savepoints.

    SQLite does that when a statement finds the disk full or broken, or no memory
    (https://sqlite.org/lang_transaction.html).  Later statements on the connection would be stored on their own, and
    the commit of the ended transaction would succeed.
    """


def create(url: str, connections: int, answer_timeout_s: int = _ANSWER_TIMEOUT_S) -> Engine:
    """Return an engine with at most `connections`; nothing is opened yet.

    `answer_timeout_s` limits each wait for the server (MySQL).  Raises `UsageError` for an unsupported URL.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        engine = sqlalchemy.create_engine(parsed, pool_size=connections, max_overflow=0)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = sqlalchemy.create_engine(
        parsed,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,  # the server closes connections that were idle for too long
        isolation_level="READ COMMITTED",
        connect_args={
            "charset": "utf8mb4",
            "init_command": _MYSQL_SESSION,
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": answer_timeout_s,
            "write_timeout": answer_timeout_s,
        },
    )
    event.listen(engine, "begin", _begin_mysql)
    return engine


def is_sqlite(url: str) -> bool:
    """Whether the URL is of SQLite, which has one lock for all writers.  Raises `UsageError` as `create`."""
    return _parse(url).get_backend_name() == "sqlite"


def check_transaction(connection: Connection) -> None:
    """Raise `TransactionEnded` if SQLite has ended the transaction of the connection."""
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection) and not driver.in_transaction:
        raise TransactionEnded("it has ended the transaction by itself")


def is_contention(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is run again.

    A duplicate key is one of these errors: our transactions select before they insert, so another transaction has
    inserted in between, and the next run will find that row.
    """
    number = _mysql_number(error)
    return number in _MYSQL_CONTENTION or (isinstance(error, IntegrityError) and number == _MYSQL_DUPLICATE_KEY)


def is_unknown_variable(error: DBAPIError) -> bool:
    """Whether the server does not know the variable."""
    return _mysql_number(error) == _MYSQL_UNKNOWN_VARIABLE


def is_unavailable(error: SQLAlchemyError) -> bool:
    """Whether the database is down, full, locked, broken or without our tables; any other error is our bug."""
    if not isinstance(error, DBAPIError):
        # A sqlalchemy TimeoutError: no connection was free.
        return isinstance(error, TransactionEnded | sqlalchemy.exc.TimeoutError)
    if isinstance(error.orig, sqlite3.Error):
        code: int = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # the module's own have no code
        return (code & 0xFF) in _SQLITE_UNAVAILABLE or str(error.orig).startswith(_SQLITE_NO_TABLE)
    if _mysql_number(error) == _MYSQL_NO_TABLE:  # the tables were there at the start: `meshim db upgrade` makes them
        return True
    if error.connection_invalidated or not isinstance(error, OperationalError | InterfaceError | InternalError):
        return error.connection_invalidated
    number, state = _mysql_number(error), getattr(error.orig, "sqlstate", None) or ""
    return number in _MYSQL_ACCESS or not (state.startswith(_MYSQL_OUR_FAULT) or number == _MYSQL_NO_DEFAULT)


def driver_message(error: SQLAlchemyError) -> str:
    """Return the message of the driver on one line, without the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return one_line(cause.args[-1] if cause.args else cause)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except sqlalchemy.exc.ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in {"sqlite", "mysql+pymysql", "mariadb+pymysql"}:
        raise UsageError("The URL of the database must begin with mysql+pymysql:// or sqlite:///.")
    if parsed.drivername == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise UsageError("The URL of a SQLite database must name a file: sqlite:///path/to/file.")
    return parsed


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get(SNAPSHOT):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite itself would try the lock again after 25, 50 and 100 ms; usually it is free much earlier (adr/0028).
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    limit_s: float = connection.get_execution_options().get(LOCK_WAIT_S, _SQLITE_BUSY_TIMEOUT_MS / 1_000)
    began = time.monotonic()
    driver.execute("PRAGMA busy_timeout = 0").close()
    try:
        while not _is_begun(driver):
            waited_s = time.monotonic() - began
            if waited_s >= limit_s:
                break
            time.sleep(min(_SQLITE_POLL_S + waited_s / 4, _SQLITE_POLL_MAX_S))
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # the last attempt, so that SQLAlchemy raises its error
    finally:
        driver.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_TIMEOUT_MS}").close()


def _is_begun(driver: sqlite3.Connection) -> bool:
    """Try to begin; return False while the lock is taken.  Returns True also for any other failure: see the caller."""
    try:
        driver.execute("BEGIN IMMEDIATE").close()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY
    return True


def _begin_mysql(connection: Connection) -> None:
    if connection.get_execution_options().get(SNAPSHOT):
        # For the next transaction only, which begins with our first statement.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _mysql_number(error: DBAPIError) -> int | None:
    number = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return number if isinstance(number, int) else None
