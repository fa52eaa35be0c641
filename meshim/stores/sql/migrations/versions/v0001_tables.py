"""The first tables.

Every step stands alone: it creates the tables as they were when the step was written, independently of today's
`meshim.stores.sql.schema`.  MySQL commits each statement by itself, so each statement can be repeated after a step that
was interrupted.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MYSQL: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_TABLE: dict[str, Any] = {"if_not_exists": True, **_MYSQL}
_COUNTED: dict[str, Any] = {**_TABLE, "sqlite_autoincrement": True}


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)


def _number(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, **options)


def _text(name: str, length: int, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False, **options)


def _bytes(name: str, on_mysql: Any) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary().with_variant(on_mysql, "mysql", "mariadb"), nullable=False)


def upgrade() -> None:
    _create_mesh()
    _create_accounts()
    _create_relations()
    _create_queues()
    _create_index("ix_device_last_seen", "im_device", "last_seen")
    _create_index("ix_token_user", "im_token", "user_id")
    _create_index("ix_token_device", "im_token", "device_id")
    _create_index("ix_relation_user2", "im_relation", "user_id2")
    _create_index("ix_offline_drain", "im_offline", "to_device", "has_read", "position", "index")
    _create_index("ix_offline_purge", "im_offline", "gmt_read")


def _create_index(name: str, table: str, *columns: str) -> None:
    """MySQL has no CREATE INDEX IF NOT EXISTS."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, columns)


def _create_mesh() -> None:
    op.create_table(
        "im_mesh",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        _bytes("secret", mysql.BINARY(32)),
        **_TABLE,
    )


def _create_accounts() -> None:
    op.create_table(
        "im_user",
        _id(),
        _text("name", 64),
        _text("password_hash", 255),
        _number("gmt_create"),
        sa.UniqueConstraint("name", name="uq_user_name"),
        **_COUNTED,
    )
    op.create_table(
        "im_device",
        _id(),
        _number("user_id"),
        _text("name", 64),
        _number("epoch"),
        _number("last_seen"),
        _number("gmt_create"),
        _text("queue_owner", 64, server_default=sa.text("''")),
        _number("queue_session", server_default=sa.text("0")),
        _number("queue_fence", server_default=sa.text("0")),
        _number("queue_until", server_default=sa.text("0")),
        sa.ForeignKeyConstraint(["user_id"], ["im_user.id"], name="fk_device_user"),
        sa.UniqueConstraint("user_id", "name", name="uq_device_name"),
        **_COUNTED,
    )
    op.create_table(
        "im_token",
        _id(),
        _bytes("token_hash", mysql.BINARY(32)),
        _number("user_id"),
        sa.Column("device_id", sa.BigInteger),
        _number("epoch"),
        _number("expires_at"),
        _number("gmt_create"),
        sa.ForeignKeyConstraint(["user_id"], ["im_user.id"], name="fk_token_user"),
        sa.ForeignKeyConstraint(["device_id"], ["im_device.id"], name="fk_token_device", ondelete="CASCADE"),
        sa.UniqueConstraint("token_hash", name="uq_token_hash"),
        **_COUNTED,
    )


def _create_relations() -> None:
    op.create_table(
        "im_relation",
        _id(),
        _number("user_id1"),
        _number("user_id2"),
        _text("state", 16),
        _number("requested_by"),
        _number("gmt_create"),
        _number("gmt_modified"),
        sa.ForeignKeyConstraint(["user_id1"], ["im_user.id"], name="fk_relation_user1"),
        sa.ForeignKeyConstraint(["user_id2"], ["im_user.id"], name="fk_relation_user2"),
        sa.CheckConstraint("user_id1 < user_id2", name="ck_relation_order"),
        sa.UniqueConstraint("user_id1", "user_id2", name="uq_relation_pair"),
        **_COUNTED,
    )
    op.create_table(
        "im_relation_key",
        _number("relation_id"),
        sa.Column("version", sa.Integer, nullable=False),
        _bytes("wrapped", mysql.VARBINARY(255)),
        _number("gmt_create"),
        sa.ForeignKeyConstraint(["relation_id"], ["im_relation.id"], name="fk_key_relation", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("relation_id", "version"),
        **_TABLE,
    )


def _create_queues() -> None:
    op.create_table(
        "im_offline",
        _id(),
        _bytes("msg_id", mysql.BINARY(16)),
        sa.Column("msg_type", sa.SmallInteger, nullable=False),
        _bytes("content", mysql.MEDIUMBLOB()),
        _number("to_user_id"),
        _number("to_device"),
        sa.Column("has_read", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
        _number("gmt_create"),
        sa.Column("gmt_read", sa.BigInteger),
        _number("from_user_id"),
        _number("from_device"),
        _number("epoch"),
        sa.Column("destination_type", sa.SmallInteger, nullable=False),
        _number("destination_id"),
        _number("destination_device"),
        _number("seq"),
        _number("position"),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("format", sa.SmallInteger, nullable=False),
        sa.UniqueConstraint(
            "to_device",
            "from_user_id",
            "from_device",
            "epoch",
            "destination_type",
            "destination_id",
            "destination_device",
            "seq",
            name="uq_offline_message",
        ),
        **_COUNTED,
    )
    op.create_table(
        "im_position",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        _number("position"),
        _number("fence"),
        _text("owner", 64),
        _number("lease_until"),
        **_TABLE,
    )
