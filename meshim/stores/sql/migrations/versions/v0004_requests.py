"""Requests for friendship: when one was made, or ended.

MySQL commits each statement by itself, so a column that an interrupted step has added is left alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("im_relation")}
    if "request_changed_at" not in present:
        column = sa.Column("request_changed_at", sa.BigInteger, nullable=False, server_default=sa.text("0"))
        op.add_column("im_relation", column)
    # The oldest of those that wait goes first: those from before this step waited from their last change on.
    op.execute("UPDATE im_relation SET request_changed_at = gmt_modified WHERE state = 'requested'")
