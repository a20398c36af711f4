"""What is in a file: its columns, and the SQL that reads it into the shape of the raw table.

Here is what all formats share, and Parquet; `csv_reader` and `json_reader` have the others. Nothing here writes to
the lake; `files` runs the SQL inside the load's transaction.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.errors import SourceRejected
from pipeline.ingest.csv_reader import csv_plan
from pipeline.ingest.json_reader import json_plan
from pipeline.ingest.plan import Plan, match_columns, reading, select_sql
from pipeline.ingest.raw import fits
from pipeline.ingest.spec import Column, FileStream
from pipeline.lake.connection import Lake, sql_name, sql_text

_ENDINGS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson"}


def read_plan(
    lake: Lake, path: Path, name: str, stream: FileStream, table: Mapping[str, str], *, added: Collection[str] = ()
) -> Plan:
    """How to read *path*, called *name* in messages; *table* is the raw table's present columns, if there is one.
    Those that were *added* later may be absent.

    Raises:
        SourceRejected: if it is not a file of the stream's format, or a column is gone or changed its type.
    """
    kind = stream.format or _format_of(path, name)
    if path.stat().st_size == 0:
        raise SourceRejected(f"Reading {name}: the file is empty. Have it sent again, or remove it.")
    declared = stream.columns or tuple(
        # Made by us from a file's headers: types and names beyond those a source file may declare are right here.
        Column.model_construct(name=column, type=kind, aliases=(), optional=column in added)
        for column, kind in table.items()
        if not column.startswith("_")
    )
    with reading(path, name):
        if kind == "parquet":
            return _parquet(lake, path, name, declared)
        _refuse_binary(path, name, kind)
        if kind == "csv":
            inferred = not stream.columns and bool(table)
            return csv_plan(lake, path, name, declared, stream.delimiter, is_inferred=inferred)
        return json_plan(lake, path, name, declared, None if kind == "ndjson" else stream.records)


def _format_of(path: Path, name: str) -> str:
    kind = _ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise SourceRejected(
            f"Reading {name}: the ending tells no format that can be read ({', '.join(_ENDINGS)}, each also .gz or .zip). "
            "Say `format:` in the stream."
        )
    return kind


def _refuse_binary(path: Path, name: str, kind: str) -> None:
    with path.open("rb") as handle:
        head = handle.read(4096)
    marks = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip"}
    found = [what for mark, what in marks.items() if head.startswith(mark)] or ["binary data"] * (b"\0" in head)
    if found:
        raise SourceRejected(f"Reading {name}: expected {kind}, found {found[0]}. Correct its ending or `format:`.")


def _parquet(lake: Lake, path: Path, name: str, declared: tuple[Column, ...]) -> Plan:
    with path.open("rb") as handle:
        head = handle.read(4)
        handle.seek(-min(4, path.stat().st_size), 2)
        tail = handle.read(4)
    if head != b"PAR1":
        raise SourceRejected(
            f"Reading {name}: not a Parquet file (it starts with {head!r}). Correct its ending or `format:`."
        )
    if tail != b"PAR1":
        raise SourceRejected(f"Reading {name}: the Parquet file has no footer: it was cut off. Have it sent again.")
    described = lake.connection.execute(f"DESCRIBE SELECT * FROM read_parquet({sql_text(str(path))})").fetchall()
    types = {row[0]: row[1] for row in described}
    columns = {column.name: column.type for column in declared}
    present, changed = {}, []
    for header, (target, kind) in match_columns(name, list(types), declared).items():
        found = types[header]
        if kind is None:
            columns[target] = "VARCHAR" if found == '"NULL"' else found
            present[target] = sql_name(header)
        elif fits(found, kind) or _is_all_null(lake, path, header):
            present[target] = f"{sql_name(header)}::{kind}"
        else:
            changed.append(f"{target} is {found}, declared {kind}")
    if changed:
        raise SourceRejected(
            f"Reading {name}: type changed: {'; '.join(changed)}. Declare the new type if the table may take it, or "
            "the file is not what it was."
        )
    relation = f"read_parquet({sql_text(str(path))}, file_row_number = true)"
    return Plan(columns, select_sql(columns, present, "file_row_number + 1", relation), is_ordered=False)


def _is_all_null(lake: Lake, path: Path, header: str) -> bool:
    """True if the footer says that the column holds nothing (the writer then had no type to give)."""
    row = lake.connection.execute(
        "SELECT coalesce(sum(num_values - stats_null_count), 1) FROM parquet_metadata(?) WHERE path_in_schema = ?",
        [str(path), header],
    ).fetchone()
    return row is not None and row[0] == 0
