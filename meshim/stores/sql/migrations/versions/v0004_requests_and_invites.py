"""Requests for friendship: when one was made, or ended.  Invites.

MySQL commits each statement by itself, so a column that an interrupted step has added is left alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("im_relation")}
    if "request_changed_at" not in present:
        column = sa.Column("request_changed_at", sa.BigInteger, nullable=False, server_default=sa.text("0"))
        op.add_column("im_relation", column)
    # The oldest of those that wait goes first: those from before this step waited from their last change on.
    op.execute("UPDATE im_relation SET request_changed_at = gmt_modified WHERE state = 'requested'")
    _create_invites()


def _create_invites() -> None:
    options = {
        f"{dialect}_{option}": value
        for dialect in ("mysql", "mariadb")
        for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
    }
    hashed = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
    op.create_table(
        "im_invite",
        sa.Column("invite_hash", hashed, primary_key=True),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("gmt_create", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **options,
    )
