"""JSON: lines of objects, or a document with an array of them."""

import json
from pathlib import Path

from pipeline.errors import SourceRejected
from pipeline.ingest.plan import Plan, loss, match_columns, select_sql
from pipeline.ingest.raw import literal
from pipeline.ingest.spec import Column
from pipeline.lake.connection import Lake, sql_name, sql_text

LINE_BYTES = 32 << 20
DOCUMENT_BYTES = 256 << 20  # a document is read whole; lines are not


def json_plan(lake: Lake, path: Path, name: str, declared: tuple[Column, ...], records: str | None) -> Plan:
    """How to read *path*: NDJSON where *records* is None, else a document whose array is at that dotted path.

    Raises:
        SourceRejected: if it holds no such objects, or they lack declared columns.
    """
    lines = _lines(path) if records is None else _document(lake, path, name, records)
    (structure,) = lake.connection.execute(
        f"SELECT json_group_structure(line::JSON) FROM ({lines}) WHERE json_valid(line) AND json_type(line) = 'OBJECT'"
    ).fetchone() or (None,)
    kinds = json.loads(structure or "{}")
    if not kinds:
        raise SourceRejected(f"Reading {name}: no JSON object in it. Correct the file, `format:` or `records:`.")
    matched = match_columns(name, list(kinds), declared)
    present = {target: kind or _column_type(kinds[key]) for key, (target, kind) in matched.items()}
    struct = json.dumps(dict.fromkeys(kinds, "JSON"), ensure_ascii=False)
    parsed = (
        "(SELECT _row, line, CASE WHEN json_valid(line) AND json_type(line) = 'OBJECT' "
        f"THEN from_json(line, {sql_text(struct)}) END AS r FROM ({lines}))"
    )
    expressions, wrong = {}, ["WHEN r IS NULL THEN {'column': NULL, 'reason': 'not a JSON object'}"]
    for key, (target, _) in matched.items():
        kind, value = present[target], f"r.{sql_name(key)}"
        if kind == "JSON":
            expressions[target] = f"CASE WHEN json_type({value}) <> 'NULL' THEN {value} END"
            continue
        text = f"({value} ->> '$')"
        expressions[target] = f"TRY_CAST({text} AS {kind})"
        misfit = f"{text} IS NOT NULL AND TRY_CAST({text} AS {kind}) IS NULL"
        if condition := loss(kind):
            misfit = f"({misfit} OR coalesce({condition.format(v=text)}, false))"
        wrong.append(
            f"WHEN {misfit} THEN {{'column': {sql_text(target)}, 'reason': 'CAST: ' || {text}[:100] || ' is not {kind}'}}"
        )
    problem = f"CASE {' '.join(wrong)} END"
    columns = {column.name: column.type for column in declared} | present
    return Plan(
        columns,
        select_sql(columns, expressions, "_row", f"{parsed} WHERE ({problem}) IS NULL"),
        f'SELECT _row, p."column" AS "column", p.reason AS reason, line[:2000]::VARCHAR AS line FROM '
        f"(SELECT _row, line, {problem} AS p FROM {parsed}) WHERE p IS NOT NULL",
        temporary=() if records is None else ("json_document",),
    )


def _lines(path: Path) -> str:
    scan = (
        f"read_csv({sql_text(str(path))}, auto_detect = false, header = false, columns = {{'line': 'VARCHAR'}}, "
        f"delim = '\x01', quote = '', escape = '', max_line_size = {LINE_BYTES})"
    )
    return f"SELECT * FROM (SELECT row_number() OVER () AS _row, line FROM {scan}) WHERE line IS NOT NULL"


def _document(lake: Lake, path: Path, name: str, records: str) -> str:
    """Put the document into the table ``json_document``; gives the SQL of its records."""
    if path.stat().st_size > DOCUMENT_BYTES:
        raise SourceRejected(
            f"Reading {name}: a JSON document of {path.stat().st_size:,} bytes, {DOCUMENT_BYTES:,} at most. "
            "Ask the provider for one object a line (`format: ndjson`), or for smaller files."
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceRejected(f"Reading {name}: not UTF-8: {error}. Convert it.") from error
    lake.connection.execute("CREATE OR REPLACE TEMP TABLE json_document AS SELECT ?::VARCHAR AS content", [content])
    pointer = literal("$" + "".join(f".{json.dumps(part)}" for part in records.split(".") if part))
    (found,) = lake.connection.execute(
        f"SELECT CASE WHEN json_valid(content) THEN coalesce(json_type(content, {pointer}), 'nothing') END FROM json_document"
    ).fetchone() or (None,)
    if found is None:
        raise SourceRejected(f"Reading {name}: not a JSON document. Have it sent again, or say `format: ndjson`.")
    if found != "ARRAY":
        raise SourceRejected(
            f"Reading {name}: at `records: {records}` there is {found}, not an array. Correct the path."
        )
    return (
        "SELECT generate_subscripts(items, 1) AS _row, unnest(items) AS line FROM "
        f"(SELECT json_extract(content, {pointer})::JSON[] AS items FROM json_document)"
    )


def _column_type(structure: object) -> str:
    """The column type for what DuckDB found under a key; nested values stay JSON."""
    if not isinstance(structure, str):
        return "JSON"
    return {"UBIGINT": "BIGINT", "NULL": "VARCHAR"}.get(structure, structure)
