"""What the exporter has counted, and how far: one row that it replaces."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table; of our schema the exporter's role may use this and read when backups were made."""
    op.create_table(
        "exporter_state",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("saved_at", sa.DateTime(timezone=True), nullable=False),
        schema="millrace",
    )
    op.execute("GRANT USAGE ON SCHEMA millrace TO exporter")
    op.execute("GRANT SELECT, INSERT, UPDATE ON millrace.exporter_state TO exporter")
    op.execute("GRANT SELECT ON millrace.backups TO exporter")
