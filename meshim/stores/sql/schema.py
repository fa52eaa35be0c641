"""The tables of the database.

Conventions, the same on SQLite and MySQL/MariaDB:

- Ids ascend and are never reused (AUTOINCREMENT; InnoDB keeps its counter on disk since MySQL 8.0 and MariaDB 10.2.4).
- Times are milliseconds since 1970 UTC, as integers: no time zone of a server or session can shift them.
- Text is compared byte by byte (utf8mb4_bin, BINARY).

To add a table or a column: declare it here; write a step `migrations/versions/v000N_*.py` that makes the same change
(`tests/contract/sql/test_schema.py` compares both on SQLite and MariaDB), and raise `VERSION`; use it in the adapter
beside this file and give `memory/database.py` or `memory/accounts.py` the same behaviour.  A column of `im_offline`
also needs a field of `rows.NewRow`, in the same order as the literals in `partitions.py`.  For a new method see
`stores/ports/__init__.py`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    or_,
    text,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


def to_ms(seconds: float) -> int:
    """Return milliseconds, as the tables have times, of seconds, as the ports have them."""
    return round(seconds * 1000)


def to_s(milliseconds: int) -> float:
    """Return seconds of milliseconds."""
    return milliseconds / 1000


class now_ms(FunctionElement[int]):  # noqa: N801  (an SQL function, named like one)
    """The clock of the database, in milliseconds since 1970 UTC."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _sqlite_now_ms(element: Any, compiler: Any, **options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "mysql")
@compiles(now_ms, "mariadb")
def _mysql_now_ms(element: Any, compiler: Any, **options: Any) -> str:
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000)"


def lease_ended(until: ColumnElement[int], lease_ms: int | ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a lease that lasts until `until` has ended, by the clock of the database.

    A lease that would last more than twice `lease_ms` was taken before that clock stepped back, and counts as ended
    (adr/0016).  Its holder may be alive: the fencing token stops its writes.
    """
    now = now_ms()
    return or_(until <= now, until > now + 2 * lease_ms)


VERSION = "0003"
"""The newest step in `migrations/versions/`: a process runs on a database of this version alone."""

metadata = MetaData()

_MYSQL = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_TABLE: dict[str, Any] = _MYSQL | {option.replace("mysql", "mariadb"): value for option, value in _MYSQL.items()}
_COUNTED: dict[str, Any] = _TABLE | {"sqlite_autoincrement": True}

_Id = BigInteger().with_variant(Integer(), "sqlite")  # SQLite makes ids only for INTEGER PRIMARY KEY
_Hash = LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
_MessageId = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
_Wrapped = LargeBinary(255).with_variant(mysql.VARBINARY(255), "mysql", "mariadb")
_Content = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_Owner = String(64)


def _number(name: str, default: int | None = None) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=None if default is None else text(str(default)))


# One row: what is the same in every process for as long as the database lives (mesh_record.py).  The first start makes
# it.  Connectors keep the secret that they read at their start.  NULL: no start has known the value yet.
im_mesh = Table(
    "im_mesh",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("secret", _Hash, nullable=False),
    Column("namespace", String(32)),
    Column("partitions", Integer),
    Column("master_fingerprint", String(16)),
    **_TABLE,
)

WRITE_NOTHING = update(im_mesh).values(secret=im_mesh.c.secret)
"""Changes nothing, and is refused by a database that takes no writes.  SQLite writes the page all the same, so that a
full disk is noticed; InnoDB writes nothing."""

im_user = Table(
    "im_user",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("password_hash", String(255), nullable=False),
    _number("gmt_create"),
    UniqueConstraint("name", name="uq_user_name"),
    **_COUNTED,
)

im_device = Table(
    "im_device",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("user_id", BigInteger, ForeignKey("im_user.id", name="fk_device_user"), nullable=False),
    Column("name", String(64), nullable=False),
    _number("epoch"),
    _number("last_seen"),
    _number("gmt_create"),
    # The lease of the queue.  An empty owner means free.  The fencing token only rises.
    Column("queue_owner", _Owner, nullable=False, server_default=text("''")),
    _number("queue_session", 0),
    _number("queue_fence", 0),
    _number("queue_until", 0),
    UniqueConstraint("user_id", "name", name="uq_device_name"),
    Index("ix_device_last_seen", "last_seen"),
    **_COUNTED,
)

im_token = Table(
    "im_token",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("token_hash", _Hash, nullable=False),
    Column("user_id", BigInteger, ForeignKey("im_user.id", name="fk_token_user"), nullable=False),
    # NULL: valid for REST only.
    Column("device_id", BigInteger, ForeignKey("im_device.id", name="fk_token_device", ondelete="CASCADE")),
    _number("epoch"),
    _number("expires_at"),
    _number("gmt_create"),
    UniqueConstraint("token_hash", name="uq_token_hash"),
    Index("ix_token_user", "user_id"),
    Index("ix_token_device", "device_id"),
    **_COUNTED,
)

im_relation = Table(
    "im_relation",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("user_id1", BigInteger, ForeignKey("im_user.id", name="fk_relation_user1"), nullable=False),
    Column("user_id2", BigInteger, ForeignKey("im_user.id", name="fk_relation_user2"), nullable=False),
    Column("state", String(16), nullable=False),  # requested, friends, removed; none: only a block is left
    _number("requested_by"),
    _number("gmt_create"),
    _number("gmt_modified"),
    # 1: user 1 (or 2) has blocked the other.  A block changes `state` as the other may see it, and hides nothing there.
    Column("blocked_by1", SmallInteger, nullable=False, server_default=text("0")),
    Column("blocked_by2", SmallInteger, nullable=False, server_default=text("0")),
    CheckConstraint("user_id1 < user_id2", name="ck_relation_order"),
    UniqueConstraint("user_id1", "user_id2", name="uq_relation_pair"),
    Index("ix_relation_user2", "user_id2"),
    **_COUNTED,
)

im_relation_key = Table(
    "im_relation_key",
    metadata,
    Column(
        "relation_id",
        BigInteger,
        ForeignKey("im_relation.id", name="fk_key_relation", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("wrapped", _Wrapped, nullable=False),
    _number("gmt_create"),
    **_TABLE,
)

OFFLINE_KEY = (
    "to_device",
    "from_user_id",
    "from_device",
    "epoch",
    "destination_type",
    "destination_id",
    "destination_device",
    "seq",
)
"""Identifies a message for one device: rows with the same key are the same message, stored again."""

im_offline = Table(
    "im_offline",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("msg_id", _MessageId, nullable=False),
    Column("msg_type", SmallInteger, nullable=False),  # the kind of the envelope
    Column("content", _Content, nullable=False),  # the envelope, byte for byte; other columns are copied from it
    _number("to_user_id"),
    # No foreign key: with one, InnoDB would lock the row of the device for each insert, and block logins and syncs.
    # Instead, a transaction that deletes a device locks im_position first, which blocks every writer.
    # Negative: kept for the first device of the user (rows.first_device).
    _number("to_device"),
    Column("has_read", SmallInteger, nullable=False, server_default=text("0")),
    _number("gmt_create"),
    Column("gmt_read", BigInteger),
    _number("from_user_id"),
    _number("from_device"),
    _number("epoch"),
    Column("destination_type", SmallInteger, nullable=False),
    _number("destination_id"),
    _number("destination_device"),
    _number("seq"),
    _number("position"),
    Column("index", Integer, nullable=False),
    Column("format", SmallInteger, nullable=False),
    UniqueConstraint(*OFFLINE_KEY, name="uq_offline_message"),
    Index("ix_offline_drain", "to_device", "has_read", "position", "index"),
    Index("ix_offline_purge", "gmt_read"),
    **_COUNTED,
)

im_position = Table(
    "im_position",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    _number("position"),
    _number("fence"),
    Column("owner", _Owner, nullable=False),  # empty means free
    _number("lease_until"),
    **_TABLE,
)
