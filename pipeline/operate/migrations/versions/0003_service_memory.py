"""What memory each service uses: a row that the service replaces."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table, which the exporter's role may read."""
    op.create_table(
        "service_memory",
        sa.Column("service", sa.Text, primary_key=True),
        sa.Column("instance", sa.Text, primary_key=True),
        sa.Column("working_set", sa.BigInteger, nullable=False),
        sa.Column("memory_limit", sa.BigInteger),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        schema="millrace",
    )
    op.execute("GRANT SELECT ON millrace.service_memory TO exporter")
