"""What is in a file: its columns, and the SQL that reads it into the shape of the raw table.

One reader a format. Nothing here writes; `files` runs the SQL inside the load's transaction.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceRejected
from pipeline.ingest.raw import fits, literal
from pipeline.ingest.spec import Column, FileStream
from pipeline.lake.connection import Lake, sql_name, sql_text

if TYPE_CHECKING:
    import duckdb

HEADER_LINES = 10  # a preamble longer than this is not searched
LINE_BYTES = 32 << 20
CONFLICT_MARK = re.compile(r"^(<<<<<<<|=======|>>>>>>>)( |$)")
_ENDINGS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson"}


@dataclass(frozen=True)
class Plan:
    """How to read one file. `select` gives `columns` and ``_row``; `rejects` gives row, column, reason, line."""

    columns: dict[str, str]
    select: str
    rejects: str | None = None
    is_ordered: bool = True
    temporary: tuple[str, ...] = ()


def normalised(header: str) -> str:
    """The column name a provider's *header* gets: lower case, every other run of characters an underscore."""
    return re.sub(r"[^a-z0-9]+", "_", header.strip().lower()).strip("_")


def read_plan(lake: Lake, path: Path, name: str, stream: FileStream, table: Mapping[str, str]) -> Plan:
    """How to read *path*, called *name* in messages; *table* is the raw table's present columns, if there is one.

    Raises:
        SourceRejected: if it is not a file of the stream's format, or a column is gone or changed its type.
    """
    kind = stream.format or _format_of(path, name)
    size = path.stat().st_size
    if size == 0:
        raise SourceRejected(f"Reading {name}: the file is empty. Have it sent again, or remove it.")
    declared = stream.columns or tuple(
        Column(name=column, type=type_) for column, type_ in table.items() if not column.startswith("_")
    )
    if kind == "parquet":
        return _parquet(lake, path, name, declared)
    _refuse_binary(path, name, kind)
    if kind == "csv":
        return _csv(lake, path, name, declared, stream.delimiter)
    return _json(lake, path, name, declared, None if kind == "ndjson" else stream.records)


def _format_of(path: Path, name: str) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = _ENDINGS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise SourceRejected(
            f"Reading {name}: the ending tells no format that can be read ({', '.join(_ENDINGS)}, each but Parquet also .gz). "
            "Say `format:` in the stream."
        )
    return kind


def _refuse_binary(path: Path, name: str, kind: str) -> None:
    with path.open("rb") as handle:
        head = handle.read(4096)
    is_gzip = head[:2] == b"\x1f\x8b"
    if is_gzip != (path.suffix.lower() == ".gz"):
        raise SourceRejected(
            f"Reading {name}: it is {'' if is_gzip else 'not '}compressed by gzip, its ending says otherwise. Rename it."
        )
    if not is_gzip and (head[:4] == b"PAR1" or b"\0" in head):
        what = "Parquet" if head[:4] == b"PAR1" else "binary data"
        raise SourceRejected(f"Reading {name}: expected {kind}, found {what}. Correct the file's ending or `format:`.")


def _matched(name: str, headers: list[str], declared: tuple[Column, ...]) -> dict[str, Column | None]:
    """Header → the declared column it is, None for a new one.

    Raises:
        SourceRejected: naming columns that are gone, or that two headers claim.
    """
    by_name = {alias: column for column in declared for alias in (column.name, *map(normalised, column.aliases))}
    result = {header: by_name.get(normalised(header)) for header in headers}
    found = [column.name for column in result.values() if column]
    twice = sorted({item for item in found if found.count(item) > 1})
    if twice:
        raise SourceRejected(f"Reading {name}: two headers stand for column {', '.join(twice)}. Correct its aliases.")
    gone = [column.name for column in declared if not column.optional and column.name not in found]
    if gone:
        raise SourceRejected(
            f"Reading {name}: column {', '.join(gone)} is not in the file, which has {', '.join(headers[:40])}. "
            "If it was renamed, add the new header to its `aliases`; if it may be absent, say `optional: true`."
        )
    return result


def _select(columns: dict[str, str], present: Mapping[str, str], row: str, relation: str) -> str:
    """SELECT of all *columns*, null where the file lacks one; *present* maps a column to its expression."""
    items = [f"{present.get(column, f'NULL::{kind}')} AS {sql_name(column)}" for column, kind in columns.items()]
    return f"SELECT {', '.join(items)}, {row} AS _row FROM {relation}"


# Parquet


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
    import duckdb

    try:
        described = lake.connection.execute(f"DESCRIBE SELECT * FROM read_parquet({sql_text(str(path))})").fetchall()
    except duckdb.Error as error:
        raise SourceRejected(
            f"Reading {name}: damaged Parquet: {str(error).splitlines()[0]}. Have it sent again."
        ) from error
    types = {row[0]: row[1] for row in described}
    matched = _matched(name, list(types), declared)
    columns = {column.name: column.type for column in declared}
    present, changed = {}, []
    for header, column in matched.items():
        kind = types[header]
        if column is None:
            columns[normalised(header)] = "VARCHAR" if kind == '"NULL"' else kind
            present[normalised(header)] = sql_name(header)
        elif fits(kind, column.type) or _is_all_null(lake, path, header):
            present[column.name] = f"{sql_name(header)}::{column.type}"
        else:
            changed.append(f"{column.name} is {kind}, declared {column.type}")
    if changed:
        raise SourceRejected(
            f"Reading {name}: type changed: {'; '.join(changed)}. Declare the new type if the table may take it, or "
            "the file is not what it was."
        )
    relation = f"read_parquet({sql_text(str(path))}, file_row_number = true)"
    return Plan(columns, _select(columns, present, "file_row_number + 1", relation), is_ordered=False)


def _is_all_null(lake: Lake, path: Path, header: str) -> bool:
    """True if the footer says that the column holds nothing (the writer then had no type to give)."""
    row = lake.connection.execute(
        "SELECT coalesce(sum(num_values - stats_null_count), 1) FROM parquet_metadata(?) WHERE path_in_schema = ?",
        [str(path), header],
    ).fetchone()
    return row is not None and row[0] == 0


# CSV


def _csv(lake: Lake, path: Path, name: str, declared: tuple[Column, ...], delimiter: str) -> Plan:
    headers, skip = _header(path, name, declared, delimiter)
    matched = _matched(name, headers, declared)
    columns = {column.name: column.type for column in declared}
    sniffed = {} if declared else _sniffed(lake, path, skip, delimiter, headers)
    file_columns: dict[str, str] = {}
    for header, column in matched.items():
        target = column.name if column else normalised(header) or "column"
        columns.setdefault(target, sniffed.get(header, "VARCHAR"))
        if target in file_columns:
            raise SourceRejected(
                f"Reading {name}: two headers become column {target}: {', '.join(headers)}. Rename one."
            )
        file_columns[target] = columns[target]
    types = ", ".join(f"{sql_text(column)}: {sql_text(_parsed_type(kind))}" for column, kind in file_columns.items())
    relation = (
        f"read_csv({sql_text(str(path))}, auto_detect = false, header = false, skip = {skip}, columns = {{{types}}}, "
        f"delim = {sql_text(delimiter)}, quote = '\"', escape = '\"', max_line_size = {LINE_BYTES}, "
        "store_rejects = true, rejects_limit = 0, rejects_table = 'csv_rejects', rejects_scan = 'csv_reject_scans')"
    )
    present = {column: f"{sql_name(column)}::{kind}" for column, kind in file_columns.items()}
    # One bad line can have an error for each of its columns: the first tells what is wrong.
    rejects = (
        'SELECT line AS _row, arg_min(column_name, column_idx) AS "column", '
        "arg_min(error_type || ': ' || error_message, column_idx) AS reason, "
        "arg_min(trim(csv_line, chr(10) || chr(13)), column_idx) AS line FROM csv_rejects GROUP BY line"
    )
    return Plan(
        columns,
        _select(columns, present, "row_number() OVER ()", relation),
        rejects,
        temporary=("csv_rejects", "csv_reject_scans"),
    )


def _parsed_type(kind: str) -> str:
    return "VARCHAR" if kind == "JSON" else kind


def _header(path: Path, name: str, declared: tuple[Column, ...], delimiter: str) -> tuple[list[str], int]:
    """The header's fields and the number of lines up to and including it."""
    required = [{column.name, *map(normalised, column.aliases)} for column in declared if not column.optional]
    best: tuple[int, list[str], int] = (-1, [], 0)
    try:
        with _text(path) as lines:
            for number, line in enumerate(islice(lines, HEADER_LINES), start=1):
                if CONFLICT_MARK.match(line):
                    refuse_conflict_marks(path, name)
                (fields, *_) = csv.reader([line.rstrip("\r\n")], delimiter=delimiter)
                known = {normalised(field) for field in fields}
                score = sum(bool(names & known) for names in required)
                if not declared or score == len(required):
                    return fields, number
                if score > best[0]:
                    best = (score, fields, number)
    except (UnicodeDecodeError, csv.Error, EOFError, ValueError, gzip.BadGzipFile) as error:
        raise SourceRejected(f"Reading {name}: not CSV in UTF-8: {error}. Convert it, or correct `format:`.") from error
    return best[1], best[2]


def _text(path: Path) -> io.TextIOWrapper:
    opened = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")
    return io.TextIOWrapper(opened, encoding="utf-8-sig", newline="")


def _sniffed(lake: Lake, path: Path, skip: int, delimiter: str, headers: list[str]) -> dict[str, str]:
    described = lake.connection.execute(
        f"DESCRIBE SELECT * FROM read_csv({sql_text(str(path))}, header = false, skip = {skip}, "
        f"delim = {sql_text(delimiter)}, quote = '\"', ignore_errors = true, sample_size = -1)"
    ).fetchall()
    return dict(zip(headers, (row[1] for row in described), strict=False))


def refuse_conflict_marks(path: Path, name: str) -> None:
    """Look through the whole file for version-control conflict marks.

    Raises:
        SourceRejected: naming their lines, if there are any.
    """
    with _text(path) as lines:
        marks = [number for number, line in enumerate(lines, start=1) if CONFLICT_MARK.match(line.rstrip("\r\n"))]
    if marks:
        shown = ", ".join(map(str, marks[:20])) + (" …" if len(marks) > 20 else "")
        raise SourceRejected(
            f"Reading {name}: merge-conflict marks on line {shown}. Nothing was loaded; resolve the conflict."
        )


def refuse_damaged(connection: "duckdb.DuckDBPyConnection", path: Path, name: str, rejects: str) -> None:
    """After a CSV was read: tell a damaged file from a file with some bad rows.

    Raises:
        SourceRejected: if its last line is cut off, or it holds conflict marks.
    """
    last = connection.execute(f"SELECT _row, reason, line FROM ({rejects}) ORDER BY _row DESC LIMIT 1").fetchone()
    if last is None:
        return
    if connection.execute(
        f"SELECT count(*) FROM ({rejects}) WHERE line LIKE '=======%' OR line LIKE '<<<<<<<%'"
    ).fetchone() != (0,):
        refuse_conflict_marks(path, name)
    if not last[1].startswith(("MISSING COLUMNS", "UNQUOTED VALUE", "CAST")):
        return
    with _text(path) as lines:
        number, line = 0, ""
        for number, line in enumerate(lines, start=1):  # noqa: B007  (the last one is wanted)
            pass
    if number == last[0] and not line.endswith(("\n", "\r")):
        raise SourceRejected(
            f"Reading {name}: the file is cut off in its last line ({number}: {line[:80]!r}). Nothing of it was loaded; "
            "have it sent again."
        )


# JSON


def _json(lake: Lake, path: Path, name: str, declared: tuple[Column, ...], records: str | None) -> Plan:
    """NDJSON where *records* is None, else one document whose array of records is at that dotted path."""
    if records is None:
        lines = (
            f"SELECT row_number() OVER () AS _row, line FROM read_csv({sql_text(str(path))}, auto_detect = false, "
            f"header = false, columns = {{'line': 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', "
            f"max_line_size = {LINE_BYTES})"
        )
    else:
        pointer = literal("$" + "".join(f'."{part}"' for part in records.split(".") if part))
        _refuse_malformed(lake, path, name, pointer)
        lines = (
            "SELECT generate_subscripts(items, 1) AS _row, unnest(items) AS line FROM "
            f"(SELECT json_extract(content, {pointer})::JSON[] AS items FROM read_text({sql_text(str(path))}))"
        )
    row = lake.connection.execute(
        f"SELECT json_group_structure(line::JSON) FROM ({lines}) WHERE json_valid(line) AND json_type(line) = 'OBJECT'"
    ).fetchone()
    structure = json.loads(row[0]) if row and row[0] else {}
    keys = list(structure)
    if not keys:
        raise SourceRejected(f"Reading {name}: no JSON object in it. Correct the file, `format:` or `records:`.")
    matched = _matched(name, keys, declared)
    columns = {column.name: column.type for column in declared}
    for key, column in matched.items():
        if column is None:
            columns.setdefault(normalised(key), _json_type(structure[key]))
    struct = "{" + ", ".join(f'"{key}": "JSON"' for key in keys) + "}"
    parsed = (
        f"(SELECT _row, line, CASE WHEN json_valid(line) AND json_type(line) = 'OBJECT' "
        f"THEN from_json(line, {sql_text(struct)}) END AS r FROM ({lines}))"
    )
    present, bad = {}, ["WHEN r IS NULL THEN {'column': NULL, 'reason': 'not a JSON object'}"]
    for key, column in matched.items():
        target = column.name if column else normalised(key)
        kind = columns[target]
        value = f"r.{sql_name(key)}"
        if kind == "JSON":
            present[target] = f"CASE WHEN json_type({value}) <> 'NULL' THEN {value} END"
            continue
        text = f"({value} ->> '$')"
        present[target] = f"TRY_CAST({text} AS {kind})"
        bad.append(
            f"WHEN {text} IS NOT NULL AND TRY_CAST({text} AS {kind}) IS NULL "
            f"THEN {{'column': {sql_text(target)}, 'reason': 'CAST: ' || {text}[:100] || ' is not {kind}'}}"
        )
    problem = f"CASE {' '.join(bad)} END"
    return Plan(
        columns,
        _select(columns, present, "_row", f"{parsed} WHERE ({problem}) IS NULL"),
        f'SELECT _row, p."column" AS "column", p.reason AS reason, line[:2000]::VARCHAR AS line FROM '
        f"(SELECT _row, line, {problem} AS p FROM {parsed}) WHERE p IS NOT NULL",
    )


def _json_type(structure: object) -> str:
    """The column type for what DuckDB found under a key; nested values stay JSON."""
    if not isinstance(structure, str):
        return "JSON"
    return {"UBIGINT": "BIGINT", "NULL": "VARCHAR"}.get(structure, structure)


def _refuse_malformed(lake: Lake, path: Path, name: str, pointer: str) -> None:
    row = lake.connection.execute(
        f"SELECT json_valid(content), CASE WHEN json_valid(content) THEN json_type(content, {pointer}) END "
        f"FROM read_text({sql_text(str(path))})"
    ).fetchone()
    if row is None or not row[0]:
        raise SourceRejected(f"Reading {name}: not a JSON document. Have it sent again, or say `format: ndjson`.")
    if row[1] != "ARRAY":
        raise SourceRejected(
            f"Reading {name}: at `records:` there is {row[1] or 'nothing'}, not an array. Correct the path."
        )
