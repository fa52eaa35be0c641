"""What a mesh never changes: its namespace, its number of partitions, and the fingerprint of its master key.

A mesh from before this step gets its number of partitions from the positions of its writers; the rest is recorded at
the next start.  MySQL commits each statement by itself, so a column that an interrupted step has added is left alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("im_mesh")}
    columns: tuple[sa.Column[object], ...] = (
        sa.Column("namespace", sa.String(32)),
        sa.Column("partitions", sa.Integer),
        sa.Column("master_fingerprint", sa.String(16)),
    )
    for column in columns:
        if column.name not in present:
            op.add_column("im_mesh", column)
    op.execute(
        "UPDATE im_mesh SET partitions = (SELECT MAX(im_position.partition) + 1 FROM im_position) "
        "WHERE partitions IS NULL"
    )
