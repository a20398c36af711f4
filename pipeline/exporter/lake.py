"""The lake, from its catalogue: snapshots, tables, their files, rows and bytes."""

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic
from pipeline.lake.table_size import FILES_AND_DELETES

EVERY_SECONDS = 60.0


class LakeTables(Topic):
    """Read every minute, with a session of its own on the catalogue's database."""

    name = "lake"

    def __init__(self, registry: Registry, catalogue: Database) -> None:
        table = ("schema", "table")
        self.tables = registry.gauge("millrace_lake_tables", "Tables of the lake.")
        self.rows = registry.gauge("millrace_lake_table_rows", "Rows of the table.", table)
        self.bytes = registry.gauge("millrace_lake_table_bytes", "Size of the table's files.", table)
        self.files = registry.gauge(
            "millrace_lake_table_files", "Files of the table: many small ones want `millrace lake maintain`.", table
        )
        self.snapshots = registry.gauge("millrace_lake_snapshots", "Snapshots that are kept.")
        self.last = registry.gauge("millrace_lake_last_snapshot_timestamp_seconds", "When the lake changed last.")
        self.doomed = registry.gauge("millrace_lake_files_scheduled_for_deletion", "Files that nothing needs any more.")
        self._catalogue, self._read_at = catalogue, 0.0

    def poll(self, database: Database, now: float) -> None:
        if 0 <= now - self._read_at < EVERY_SECONDS:
            return
        ((there,),) = self._catalogue.rows("SELECT to_regclass('public.ducklake_snapshot') IS NOT NULL")
        if there:
            self._read()
        self._read_at = now

    def _read(self) -> None:
        rows = self._catalogue.rows(
            f"""WITH {FILES_AND_DELETES}
                SELECT s.schema_name, t.table_name, (coalesce(f.records, 0) - coalesce(d.records, 0))::float8,
                       (coalesce(f.bytes, 0) + coalesce(d.bytes, 0))::float8, coalesce(f.files, 0) + coalesce(d.files, 0)
                FROM ducklake_table t JOIN ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
                LEFT JOIN files f ON f.table_id = t.table_id LEFT JOIN deletes d ON d.table_id = t.table_id
                WHERE t.end_snapshot IS NULL"""
        )
        snapshots = self._catalogue.rows(
            "SELECT count(*), extract(epoch FROM max(snapshot_time))::float8 FROM ducklake_snapshot"
        )
        ((doomed,),) = self._catalogue.rows("SELECT count(*) FROM ducklake_files_scheduled_for_deletion")
        self.tables.set(len(rows))
        self.rows.replace({(schema, table): count for schema, table, count, *_ in rows})
        self.bytes.replace({(schema, table): size for schema, table, _, size, _ in rows})
        self.files.replace({(schema, table): files for schema, table, *_, files in rows})
        self.snapshots.set(snapshots[0][0])
        if snapshots[0][1] is not None:
            self.last.set(snapshots[0][1])
        self.doomed.set(doomed)
