"""What Alembic runs: the changes, in one transaction of the connection that `schema` gives it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="millrace")
with context.begin_transaction():
    context.run_migrations()
