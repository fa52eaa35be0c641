"""Blocks: a flag for each of the two users of a relation.

MySQL commits each statement by itself, so a column that an interrupted step has added is left alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("im_relation")}
    for name in ("blocked_by1", "blocked_by2"):
        if name not in present:
            op.add_column("im_relation", sa.Column(name, sa.SmallInteger, nullable=False, server_default=sa.text("0")))
