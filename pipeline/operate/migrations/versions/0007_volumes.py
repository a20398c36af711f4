"""Room on the bundled PostgreSQL's own volume: a container beside the server replaces the row each minute."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table, which the exporter's role may read."""
    op.create_table(
        "volumes",
        sa.Column("volume", sa.Text, primary_key=True),
        sa.Column("free_bytes", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        schema="millrace",
    )
    op.execute("GRANT SELECT ON millrace.volumes TO exporter")
