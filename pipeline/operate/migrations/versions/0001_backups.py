"""One row a backup that exists: what of the lake must not be deleted yet, and when the last one succeeded."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "backups",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),  # NULL: under way, or killed
        sa.Column("bytes", sa.BigInteger),
        schema="millrace",
    )
