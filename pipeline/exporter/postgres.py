"""The database itself: sizes of Dagster's tables, sessions and their limit."""

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic

EVERY_SECONDS = 60.0


class Postgres(Topic):
    """Read every minute: sizes are asked of the file system."""

    name = "postgres"

    def __init__(self, registry: Registry) -> None:
        self.bytes = registry.gauge(
            "dagster_storage_relation_bytes", "Size of a table of Dagster's with its indices.", ["relation"]
        )
        self.rows = registry.gauge(
            "dagster_storage_rows_estimate", "Rows of the table, as the planner guesses.", ["relation"]
        )
        self.connections = registry.gauge(
            "millrace_postgres_connections",
            "Sessions of the server: of dagster, of lake, and of all its other databases together.",
            ["database"],
        )
        self.max_connections = registry.gauge("millrace_postgres_max_connections", "Sessions that the server admits.")
        self._read_at = 0.0

    def poll(self, database: Database, now: float) -> None:
        if 0 <= now - self._read_at < EVERY_SECONDS:
            return
        sizes = database.rows(
            """SELECT c.relname, pg_total_relation_size(c.oid), greatest(c.reltuples, 0)::float8
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'public' AND c.relkind = 'r'"""
        )
        sessions = database.rows(
            "SELECT CASE WHEN datname = ANY(%s) THEN datname ELSE 'other' END, sum(numbackends)::float8 "
            "FROM pg_stat_database WHERE datname IS NOT NULL GROUP BY 1",
            ["dagster", "lake"],
        )
        ((most,),) = database.rows("SELECT current_setting('max_connections')::int")
        self.bytes.replace({(name,): size for name, size, _ in sizes})
        self.rows.replace({(name,): rows for name, _, rows in sizes})
        self.connections.replace({(name,): count for name, count in sessions})
        self.max_connections.set(most)
        self._read_at = now
