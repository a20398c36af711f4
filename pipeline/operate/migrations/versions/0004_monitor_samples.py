"""What the monitor saw, a row each half minute, for a week: the exporter writes and removes them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table. Rows are found by time and removed by time, so that its key is the only index."""
    op.create_table(
        "monitor_samples",
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("sample", sa.Text, nullable=False),
        schema="millrace",
    )
    op.execute("GRANT SELECT, INSERT, DELETE ON millrace.monitor_samples TO exporter")
