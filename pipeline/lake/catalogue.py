"""What is in the lake: every table and view with its size, columns, last change and the run behind it.

All of it comes from the catalogue's own tables in two queries, whatever the number of tables, rows and
snapshots; values inside the tables are `profile`'s business.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pipeline.errors import LakeRejected
from pipeline.lake.connection import Lake, sql_text
from pipeline.lake.table_size import FILES_AND_DELETES

# Written by whoever changes rows or columns. Compaction (merge_adjacent, rewrite_delete) is not a
# change: after it a table still belongs to the run that loaded it.
_CHANGES = "inserted_into_table|deleted_from_table|altered_table"

_RELATIONS = f"""
WITH {FILES_AND_DELETES}, changes AS (
    SELECT m[2]::bigint AS table_id, max(snapshot_id) AS snapshot_id
    FROM ducklake_snapshot_changes, regexp_matches(changes_made, '({_CHANGES}):([0-9]+)', 'g') m
    GROUP BY 1
), relations AS (
    SELECT schema_id, table_name AS name, 'table' AS kind, table_id AS id,
           greatest(begin_snapshot, changes.snapshot_id) AS snapshot_id
    FROM ducklake_table LEFT JOIN changes USING (table_id) WHERE end_snapshot IS NULL
    UNION ALL
    SELECT schema_id, view_name, 'view', view_id, begin_snapshot FROM ducklake_view WHERE end_snapshot IS NULL
)
SELECT s.schema_name, r.name, r.kind, r.id, tag.value,
       (coalesce(f.records, 0) - coalesce(d.records, 0))::bigint AS records,
       (coalesce(f.bytes, 0) + coalesce(d.bytes, 0))::bigint AS bytes,
       coalesce(f.files, 0) + coalesce(d.files, 0) AS files, r.snapshot_id, n.snapshot_time, c.commit_extra_info
FROM relations r JOIN ducklake_schema s ON s.schema_id = r.schema_id AND s.end_snapshot IS NULL
LEFT JOIN files f ON f.table_id = r.id AND r.kind = 'table'
LEFT JOIN deletes d ON d.table_id = r.id AND r.kind = 'table'
LEFT JOIN ducklake_tag tag ON tag.object_id = r.id AND tag.key = 'comment' AND tag.end_snapshot IS NULL
LEFT JOIN ducklake_snapshot n ON n.snapshot_id = r.snapshot_id
LEFT JOIN ducklake_snapshot_changes c ON c.snapshot_id = r.snapshot_id
ORDER BY 1, 2
"""

_NAMES = """
SELECT lower(schema_name), lower(name) AS name
FROM (SELECT schema_id, table_name AS name FROM ducklake_table WHERE end_snapshot IS NULL
      UNION ALL SELECT schema_id, view_name FROM ducklake_view WHERE end_snapshot IS NULL) r
JOIN ducklake_schema s USING (schema_id) WHERE s.end_snapshot IS NULL
"""


# DuckLake's names of types where DuckDB has another.
_TYPES = {
    "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "uint8": "UTINYINT", "uint16": "USMALLINT",
    "uint32": "UINTEGER", "uint64": "UBIGINT", "float32": "FLOAT", "float64": "DOUBLE", "timestamptz": "TIMESTAMP WITH TIME ZONE",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column; *type* as DuckDB writes it."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Statistics:
    """How big a table is now. *bytes* and *files* count its live Parquet files, those of deletions too."""

    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class Table:
    """A table or view. `run_id` and `asset` are of the last commit that changed it.

    They are empty when that commit was made by another tool, and, like `changed_at`, unknown once maintenance has
    expired its snapshot. A view has no size; a view whose tables are gone has no columns.
    """

    name: str
    kind: Literal["table", "view"]
    comment: str
    statistics: Statistics | None
    columns: tuple[Column, ...]
    snapshot_id: int
    changed_at: datetime | None
    run_id: str
    asset: str


def tables(lake: Lake) -> list[Table]:
    """Every table and view, by name (``schema.table``).

    Raises:
        LakeError: as `Lake.errors` translates.
    """
    columns: dict[str, list[Column]] = {}
    for schema, table, *column in lake.query(
        "SELECT schema_name, table_name, column_name, data_type, coalesce(comment, '') FROM duckdb_columns() "
        "WHERE database_name = 'lake' ORDER BY schema_name, table_name, column_index"
    ):
        columns.setdefault(f"{schema}.{table}", []).append(Column(*column))
    found = []
    for schema, name, kind, _, comment, rows, size, files, snapshot, changed_at, info in catalogue_query(
        lake, _RELATIONS
    ):
        full_name = f"{schema}.{name}"
        owner = _owner(info)
        found.append(
            Table(
                name=full_name,
                kind=kind,
                comment=comment or "",
                statistics=Statistics(rows, size, files) if kind == "table" else None,
                columns=tuple(columns.get(full_name, ())),
                snapshot_id=snapshot,
                changed_at=changed_at,
                run_id=owner.get("run_id", ""),
                asset=owner.get("asset", ""),
            )
        )
    return found


def table(lake: Lake, name: str) -> Table:
    """The table or view *name* (``schema.table``; ``main`` if it has no schema).

    Raises:
        LakeRejected: if there is none; names what there is.
    """
    wanted = (name if "." in name else f"main.{name}").lower()
    present = tables(lake)
    for candidate in present:
        if candidate.name.lower() == wanted:
            return candidate
    names = ", ".join(candidate.name for candidate in present[:50]) or "nothing yet"
    raise LakeRejected(f"Looking up {name}: there is no such table in the lake. There is: {names}.")


def table_statistics(lake: Lake) -> dict[str, Statistics]:
    """Size of every table (not view), by name: what to show after a run.

    Raises:
        LakeError: as `Lake.errors` translates.
    """
    return {
        f"{schema}.{name}": Statistics(rows, size, files)
        for schema, name, kind, _, _, rows, size, files, *_ in catalogue_query(lake, _RELATIONS)
        if kind == "table"
    }


def relation_names(lake: Lake) -> set[tuple[str, str]]:
    """Schema and name of every table and view, in lower case: SQL compares them so."""
    return set(catalogue_query(lake, _NAMES))


def relation_columns(lake: Lake) -> dict[tuple[str, str], tuple[str, ...]]:
    """Schema and name of every table and view → its columns, in order."""
    rows = lake.query(
        "SELECT schema_name, table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE database_name = 'lake' GROUP BY ALL"
    )
    return {(schema, name): tuple(columns) for schema, name, columns in rows}


@dataclass(frozen=True)
class Sketch:
    """A table's rows and columns and no more."""

    rows: int
    columns: tuple[Column, ...]


def sketch(lake: Lake, schema: str, name: str) -> Sketch | None:
    """Rows and columns of one table, None if there is no such table (a view is none).

    One query to PostgreSQL, a few milliseconds. DuckDB's own functions load the whole catalogue for each new
    snapshot, 90 ms, which a build of many models would pay for every one.
    """
    found = catalogue_query(
        lake,
        f"""
        SELECT c.column_name, c.column_type, tag.value,
               coalesce((SELECT sum(record_count) FROM ducklake_data_file f
                         WHERE f.table_id = t.table_id AND f.end_snapshot IS NULL), 0)
               - coalesce((SELECT sum(d.delete_count) FROM ducklake_delete_file d JOIN ducklake_data_file f USING (data_file_id)
                           WHERE d.table_id = t.table_id AND d.end_snapshot IS NULL AND f.end_snapshot IS NULL), 0)
        FROM ducklake_table t JOIN ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
        JOIN ducklake_column c ON c.table_id = t.table_id AND c.end_snapshot IS NULL AND c.parent_column IS NULL
        LEFT JOIN ducklake_column_tag tag ON tag.table_id = t.table_id AND tag.column_id = c.column_id
             AND tag.key = 'comment' AND tag.end_snapshot IS NULL
        WHERE t.end_snapshot IS NULL AND s.schema_name = {sql_text(schema)} AND t.table_name = {sql_text(name)}
        ORDER BY c.column_order""",
    )
    if not found:
        return None
    columns = tuple(Column(name_, _TYPES.get(kind, kind.upper()), comment or "") for name_, kind, comment, _ in found)
    return Sketch(int(found[0][3]), columns)


def catalogue_query(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    """Rows of *sql*, run by PostgreSQL in the catalogue's database. The text must be ours."""
    return lake.query("FROM postgres_query('__ducklake_metadata_lake', ?)", [sql])


def _owner(info: str | None) -> dict[str, str]:
    """Run and asset that `Lake.in_transaction` noted; other tools may write anything there."""
    try:
        value = json.loads(info or "{}")
    except ValueError:
        return {}
    return {key: str(item) for key, item in value.items()} if isinstance(value, dict) else {}
