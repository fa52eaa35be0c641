"""SQL engines: what SQLite and MySQL/MariaDB must be told so that both keep the same promises.

Two kinds of transaction are begun, and no other:

========  ==========================================  ==========================================
          SQLite                                      MySQL, MariaDB
========  ==========================================  ==========================================
write     BEGIN IMMEDIATE: the lock is taken first,   READ COMMITTED: each statement sees what is
          so that nothing fails half-way for want     committed, and no gap is locked that two
          of it                                       partitions might want; what must not change
                                                      is read FOR UPDATE
snapshot  BEGIN: all reads see one state (WAL)        REPEATABLE READ: all reads see one state
========  ==========================================  ==========================================

The sqlite3 module begins transactions by itself, and only before a write: that is switched
off (`isolation_level = None`), and the `begin` event says what SQLAlchemy means.
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
"""Execution option of an engine whose transactions only read, and see one state."""

_CONNECT_TIMEOUT_S = 3
_ANSWER_TIMEOUT_S = 10  # also bounds how long a stopped server holds a thread
_LOCK_TIMEOUT_S = 2
_SILENCE_TIMEOUT_S = 10  # R11: the locks of a process that was stopped within a transaction end with its session
_SQLITE_BUSY_TIMEOUT_MS = 5_000
_SQLITE_LOOK_S = 0.0005
_SQLITE_LOOK_MOST_S = 0.005

_SQLITE_PRAGMAS = (
    f"busy_timeout = {_SQLITE_BUSY_TIMEOUT_MS}",  # first: the others may have to wait
    "journal_mode = WAL",
    "synchronous = FULL",  # a commit is on the disk when it returns
    "foreign_keys = ON",
)

# Strict whatever the server's default is: a value that does not fit is an error, never cut.
_MYSQL_SESSION = (
    f"SET SESSION sql_mode = 'TRADITIONAL', innodb_lock_wait_timeout = {_LOCK_TIMEOUT_S}, "
    f"wait_timeout = {_SILENCE_TIMEOUT_S}"
)

# Primary result codes that say something of the file, the disk or other processes, not of our statement.
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
# PyMySQL calls every server error it does not know operational.  By SQLSTATE these classes say that a
# statement is wrong (cardinality, data, constraint, syntax or access), but for some numbers of the last:
# database, table or privilege missing, too many connections of the user.
_MYSQL_OUR_FAULT = ("21", "22", "23", "42")
_MYSQL_ACCESS = frozenset({1044, 1049, 1142, 1143, 1203, 1226, 1227})
_MYSQL_NO_DEFAULT = 1364  # ours too, though of the general class
# Lock wait timeout, deadlock, "record has changed since last read" (MariaDB, snapshot isolation).
_MYSQL_CONTENTION = frozenset({1020, 1205, 1213})
_MYSQL_DUPLICATE_KEY = 1062
_MYSQL_UNKNOWN_VARIABLE = 1193


class TransactionEnded(SQLAlchemyError):
    """SQLite has rolled a whole transaction back by itself, savepoints and all.

    It may when a statement finds the disk full or broken, or no memory (https://sqlite.org/lang_transaction.html).
    What is done next on that connection is stored on its own, and its commit, with nothing to do, succeeds.
    """


def create(url: str, connections: int, answer_timeout_s: int = _ANSWER_TIMEOUT_S) -> Engine:
    """Return an engine with at most that many connections; nothing is opened yet.

    Raises `UsageError` for a URL of another kind of database.
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
        pool_pre_ping=True,  # the server closes connections that were idle for long
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
    """Whether the database is a file with one lock for all who write.  Raises `UsageError` as `create`."""
    return _parse(url).get_backend_name() == "sqlite"


def check_transaction(connection: Connection) -> None:
    """Raise `TransactionEnded` if the transaction that was begun on the connection is not there any more."""
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection) and not driver.in_transaction:
        raise TransactionEnded("it has ended the transaction by itself")


def is_contention(error: DBAPIError) -> bool:
    """Whether the same transaction, begun again, may well succeed.

    A duplicate key is among the reasons: our transactions look before they insert, so it
    means that somebody inserted in between, and that a second look will find it.
    """
    number = _mysql_number(error)
    return number in _MYSQL_CONTENTION or (isinstance(error, IntegrityError) and number == _MYSQL_DUPLICATE_KEY)


def is_unknown_variable(error: DBAPIError) -> bool:
    """Whether the server has no variable of that name."""
    return _mysql_number(error) == _MYSQL_UNKNOWN_VARIABLE


def is_unavailable(error: SQLAlchemyError) -> bool:
    """Whether the database is away, full, locked or broken; otherwise the error is ours."""
    if not isinstance(error, DBAPIError):
        # The other is that no connection was free.
        return isinstance(error, TransactionEnded | sqlalchemy.exc.TimeoutError)
    if isinstance(error.orig, sqlite3.Error):
        code: int = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # the module's own errors have none
        return (code & 0xFF) in _SQLITE_UNAVAILABLE
    if error.connection_invalidated or not isinstance(error, OperationalError | InterfaceError | InternalError):
        return error.connection_invalidated
    number, state = _mysql_number(error), getattr(error.orig, "sqlstate", None) or ""
    return number in _MYSQL_ACCESS or not (state.startswith(_MYSQL_OUR_FAULT) or number == _MYSQL_NO_DEFAULT)


def driver_message(error: SQLAlchemyError) -> str:
    """What the driver said, on one line, without the statement and its values."""
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
    # SQLite itself would look at the lock again after 25, 50 and 100 ms, when it has long been free (adr/0028).
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    began = time.monotonic()
    driver.execute("PRAGMA busy_timeout = 0").close()
    try:
        while not _is_begun(driver):
            waited_s = time.monotonic() - began
            if waited_s >= _SQLITE_BUSY_TIMEOUT_MS / 1_000:
                break
            time.sleep(min(_SQLITE_LOOK_S + waited_s / 4, _SQLITE_LOOK_MOST_S))
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # once more, for an error of the usual kind
    finally:
        driver.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_TIMEOUT_MS}").close()


def _is_begun(driver: sqlite3.Connection) -> bool:
    """Begin, unless the lock is taken: False.  Any other failure is True too, and the next attempt raises it."""
    try:
        driver.execute("BEGIN IMMEDIATE").close()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY
    return True


def _begin_mysql(connection: Connection) -> None:
    if connection.get_execution_options().get(SNAPSHOT):
        # Of the next transaction alone, which begins with our first statement.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _mysql_number(error: DBAPIError) -> int | None:
    number = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return number if isinstance(number, int) else None
