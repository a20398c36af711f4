"""The raw tables and their bookkeeping, alike for files and connectors.

``raw.<source>__<stream>`` holds the rows, ``raw.<source>__<stream>__rejects`` those that did not fit, and the
lake schema ``ingest`` what is known of loads. Bookkeeping is append-only: DuckLake lets inserts of several
writers commit together, while an update would make every load conflict with every other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.errors import SourceRejected
from pipeline.ingest.spec import table_name
from pipeline.lake.connection import Lake, sql_name, sql_text

# Where a row is from. A file's row has no run id: ten million of them take 0.3 of 3.1 s to write, and the run is that of
# the first line of ingest.files for its `_file` that was recorded at `_loaded_at` or later.
FILE_COLUMNS = {"_file": "VARCHAR", "_row": "BIGINT", "_month": "VARCHAR", "_loaded_at": "TIMESTAMPTZ"}
RECORD_COLUMNS = {"_loaded_at": "TIMESTAMPTZ", "_run_id": "VARCHAR"}
REJECT_COLUMNS = {
    **{"_file": "VARCHAR", "_row": "BIGINT", "column": "VARCHAR", "reason": "VARCHAR", "line": "VARCHAR"},
    **RECORD_COLUMNS,
}

BOOKKEEPING = {
    "files": "source VARCHAR, stream VARCHAR, path VARCHAR, month VARCHAR, bytes BIGINT, etag VARCHAR, "
    "modified_at TIMESTAMPTZ, checksum VARCHAR, rows BIGINT, rejects BIGINT, status VARCHAR, recorded_at TIMESTAMPTZ, run_id VARCHAR",
    "connector_state": "source VARCHAR, stream VARCHAR, sequence BIGINT, state JSON, recorded_at TIMESTAMPTZ, run_id VARCHAR",
    "schema_changes": "source VARCHAR, stream VARCHAR, column_name VARCHAR, type VARCHAR, change VARCHAR, "
    "recorded_at TIMESTAMPTZ, run_id VARCHAR",
    "loads": "source VARCHAR, stream VARCHAR, month VARCHAR, rows BIGINT, rejects BIGINT, seconds DOUBLE, "
    "recorded_at TIMESTAMPTZ, run_id VARCHAR",
}

# Widenings that lose nothing (an integer in a DOUBLE up to 2^53, which no provider's count passes); any other difference between a file and its table is a changed type.
_WIDER = {
    "TINYINT": {"SMALLINT", "INTEGER", "BIGINT", "DOUBLE"},
    "SMALLINT": {"INTEGER", "BIGINT", "DOUBLE"},
    "INTEGER": {"BIGINT", "DOUBLE"},
    "BIGINT": {"DOUBLE"},
    "UTINYINT": {"SMALLINT", "INTEGER", "BIGINT", "DOUBLE"},
    "USMALLINT": {"INTEGER", "BIGINT", "DOUBLE"},
    "UINTEGER": {"BIGINT", "DOUBLE"},
    "FLOAT": {"DOUBLE"},
    "DATE": {"TIMESTAMP", "TIMESTAMPTZ"},
    "TIMESTAMP": {"TIMESTAMPTZ"},
    "TIMESTAMP_S": {"TIMESTAMP"},
    "TIMESTAMP_MS": {"TIMESTAMP"},
    "TIMESTAMP_NS": {"TIMESTAMP"},
}


@dataclass(frozen=True)
class LoadResult:
    """What a load of one stream did. Rows are those of this load, not of the table.

    `data_until` is up to when the table's data reach, as far as the provider tells; a connector does not.
    """

    source: str
    stream: str
    rows: int = 0
    rejects: int = 0
    seconds: float = 0.0
    files_loaded: tuple[str, ...] = ()
    files_unchanged: int = 0
    files_vanished: tuple[str, ...] = ()
    rows_by_month: tuple[tuple[str, int], ...] = ()
    columns_added: tuple[str, ...] = ()
    data_until: datetime | None = None

    @property
    def table(self) -> str:
        """Name of the raw table, with its schema."""
        return f"raw.{table_name(self.source, self.stream)}"


def prepare(lake: Lake) -> None:
    """Make the schemas and bookkeeping tables that are missing."""
    present = {
        row[0]
        for row in lake.query(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' AND schema_name = 'ingest'"
        )
    }
    if present >= BOOKKEEPING.keys():
        return

    def create() -> None:
        # Files of 154 instead of 276 MB for ten million taxi trips, written in 5.9 instead of 6.2 s of processor time.
        lake.connection.execute("CALL lake.set_option('parquet_version', '2')")
        lake.connection.execute("CREATE SCHEMA IF NOT EXISTS raw")
        lake.connection.execute("CREATE SCHEMA IF NOT EXISTS ingest")
        for name, columns in BOOKKEEPING.items():
            lake.connection.execute(f"CREATE TABLE IF NOT EXISTS ingest.{name} ({columns})")

    lake.in_transaction(create, asset="ingest")


def columns_of(lake: Lake, table: str) -> dict[str, str]:
    """Column name → DuckDB type of ``raw.<table>``, in table order; empty if there is no such table."""
    rows = lake.connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = 'lake' AND schema_name = 'raw' AND table_name = ? ORDER BY column_index",
        [table],
    ).fetchall()
    return dict(rows)


def fit_table(
    lake: Lake, source: str, stream: str, columns: Mapping[str, str], *, audit: Mapping[str, str], run_id: str
) -> tuple[str, ...]:
    """Make the stream's table, or add the columns it lacks; returns the added ones. Call it inside a transaction.

    Raises:
        SourceRejected: naming each column whose type is not the table's and does not widen to it.
    """
    table = table_name(source, stream)
    present = columns_of(lake, table)
    now = datetime.now(UTC)
    if not present:
        definition = ", ".join(f"{sql_name(name)} {kind}" for name, kind in {**columns, **audit}.items())
        lake.connection.execute(f"CREATE TABLE raw.{sql_name(table)} ({definition})")
        rejects = ", ".join(f"{sql_name(name)} {kind}" for name, kind in REJECT_COLUMNS.items())
        lake.connection.execute(f"CREATE TABLE raw.{sql_name(table + '__rejects')} ({rejects})")
        return ()
    changed = [
        f"{name} is {kind}, the table has {present[name]}"
        for name, kind in columns.items()
        if name in present and not fits(kind, present[name])
    ]
    if changed:
        raise SourceRejected(
            f"Loading {source}/{stream}: type changed: {'; '.join(changed)}. Nothing was loaded. Declare the column "
            "with the old type, or give the new one another name, in the source file; or make the table anew of all its "
            "files (`millrace run --full`)."
        )
    added = tuple(name for name in columns if name not in present)
    for name in added:
        lake.connection.execute(f"ALTER TABLE raw.{sql_name(table)} ADD COLUMN {sql_name(name)} {columns[name]}")
        lake.connection.execute(
            "INSERT INTO ingest.schema_changes VALUES (?, ?, ?, ?, 'added', ?, ?)",
            [source, stream, name, columns[name], now, run_id],
        )
    return added


def fits(kind: str, into: str) -> bool:
    """True if values of type *kind* go into a column of type *into* without loss."""
    kind, into = (text.replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ").replace(" ", "") for text in (kind, into))
    return kind == into or into in _WIDER.get(kind, ()) or kind == '"NULL"' or into in ("VARCHAR", "JSON")


def record_load(lake: Lake, result: LoadResult, *, month: str | None, run_id: str) -> None:
    """Note the load in ``ingest.loads``. Call it inside the transaction that brings the rows."""
    lake.connection.execute(
        "INSERT INTO ingest.loads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [result.source, result.stream, month, result.rows, result.rejects, result.seconds, datetime.now(UTC), run_id],
    )


def check_rejects(source: str, stream: str, *, rows: int, rejects: int, share: float, first: str) -> None:
    """Refuse a load with more rejected rows than its source allows.

    Raises:
        SourceRejected: with both figures and the first rejected row; the caller's transaction must not commit.
    """
    total = rows + rejects
    if rejects and rejects > share * total:
        raise SourceRejected(
            f"Loading {source}/{stream}: {rejects:,} of {total:,} rows do not fit, more than max_reject_share "
            f"{share:g} allows. None of them was loaded. First: {first}. Correct the data or the columns in the source "
            "file, or raise max_reject_share."
        )


def literal(value: str | None) -> str:
    """*value* as an SQL literal, NULL for None."""
    return "NULL" if value is None else sql_text(value)
