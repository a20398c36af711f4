"""From a stream's JSON schema and its record lines to rows of the raw table. It writes inside a caller's transaction.

Every value is read as text and cast, so that a record that breaks its schema is an error and not a rounded number:
first all casts at once, at DuckDB's speed; only if that fails, line by line, which tells which record and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import SourceRejected
from pipeline.ingest.airbyte_messages import LINE_BYTES
from pipeline.ingest.raw import RECORD_COLUMNS, check_rejects, columns_of, fit_table, fits, literal
from pipeline.ingest.spec import ConnectorStream, normalised, table_name
from pipeline.lake.connection import Lake, sql_name, sql_text

_SCALARS = {"integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN", "string": "VARCHAR"}
_WHOLE = ""  # property of a stream without declared ones: its one column is the record


@dataclass(frozen=True)
class Field:
    """A property of the records and the column it becomes; *type* is DuckDB's."""

    name: str
    column: str
    type: str


def fields_of(schema: Mapping[str, Any]) -> tuple[Field, ...]:
    """The columns of a stream, in the schema's order; one JSON column `data` if it declares no properties."""
    properties = schema.get("properties") or {}
    if not properties:
        return (Field(_WHOLE, "data", "JSON"),)
    columns: dict[str, str] = {}
    for name in sorted(properties):  # not the schema's order: the numbers must not depend on it
        column = base = normalised(name) or "column"
        number = 1
        while column in columns.values():
            number += 1
            column = f"{base}_{number}"
        columns[name] = column
    return tuple(Field(name, columns[name], sql_type(inner)) for name, inner in properties.items())


def sql_type(schema: Any) -> str:
    """DuckDB's type for values of a JSON schema; JSON for objects, arrays and whatever is not one plain type."""
    if not isinstance(schema, dict):
        return "JSON"
    choices = [item for key in ("anyOf", "oneOf") for item in schema.get(key) or () if item.get("type") != "null"]
    if len(choices) == 1 and "type" not in schema:
        return sql_type(choices[0])
    declared = schema.get("type")
    kinds = {kind for kind in (declared if isinstance(declared, list) else [declared]) if kind != "null"}
    if kinds == {"integer", "number"}:
        kinds = {"number"}
    if len(kinds) != 1 or choices:
        return "JSON"
    (kind,) = kinds
    airbyte_type, text_format = schema.get("airbyte_type"), schema.get("format")
    if kind == "number" and airbyte_type == "integer":
        return "BIGINT"
    if kind == "string" and text_format == "date-time":
        return "TIMESTAMP" if airbyte_type == "timestamp_without_timezone" else "TIMESTAMP WITH TIME ZONE"
    if kind == "string" and text_format == "date":
        return "DATE"
    return _SCALARS.get(kind, "JSON")


@dataclass(frozen=True)
class Written:
    """What a write did to one table."""

    rows: int
    rejects: int
    columns_added: tuple[str, ...] = ()


class Table:
    """The raw table of one connector stream."""

    def __init__(
        self, lake: Lake, source: str, stream: ConnectorStream, fields: Sequence[Field], *, full: bool, run_id: str
    ) -> None:
        self.lake, self.source, self.stream, self.run_id = lake, source, stream, run_id
        self.full, self.fields = full, tuple(fields)
        self.is_replaced = full or stream.sync == "full_refresh"
        self.name = table_name(source, stream.name)
        self._sql = f"raw.{sql_name(self.name)}"
        self._rejects_sql = f"raw.{sql_name(self.name + '__rejects')}"
        missing = [key for key in stream.primary_key if key not in {field.column for field in fields}]
        if missing:
            raise SourceRejected(
                f"Loading {source}/{stream.name}: primary_key {', '.join(missing)} is not among its columns "
                f"({', '.join(field.column for field in fields)}). Correct primary_key in the source file."
            )

    def write(self, path: Path, *, rows: int, rows_before: int, checked: bool) -> Written:
        """Put the *rows* record lines of *path* into the table, inside the transaction. Only if *checked*, records may
        break their schema: they go to the rejects. Else one of them is duckdb's InvalidInputException or ConversionException.

        Raises:
            SourceRejected: if the table does not fit the schema, or too many records are rejected.
        """
        added = self._fit()
        connection = self.lake.connection
        if self.is_replaced:
            connection.execute(f"DELETE FROM {self._sql}")
            connection.execute(f"DELETE FROM {self._rejects_sql}")
        if not rows:
            return Written(0, 0, added)
        types = {**{field.column: field.type for field in self.fields}, **columns_of(self.lake, self.name)}
        fields = [Field(field.name, field.column, types[field.column]) for field in self.fields]
        rejects = 0
        if checked or not _have_distinct_names(fields):
            good, bad = _checked(path, fields, rows_before)
            rejects = self._reject(bad, rows)
        else:
            good = _typed(path, fields)
        return Written(self._insert(good, expected=rows - rejects), rejects, added)

    def _fit(self) -> tuple[str, ...]:
        """Make or extend the table; a full load makes it anew if it does not fit."""
        columns = {field.column: field.type for field in self.fields}
        present = {name: kind for name, kind in columns_of(self.lake, self.name).items() if not name.startswith("_")}
        lost = [name for name in present if name not in columns]
        if self.full and (lost or any(not fits(columns[name], kind) for name, kind in present.items())):
            for table in (self._sql, self._rejects_sql):
                self.lake.connection.execute(f"DROP TABLE {table}")
        elif lost:
            raise SourceRejected(
                f"Loading {self.source}/{self.stream.name}: column {', '.join(lost)} is gone from the connector's schema. "
                "Nothing was loaded. Give the connector back what it needs to deliver it, or make the table anew with a "
                "full load (`--full`)."
            )
        return fit_table(self.lake, self.source, self.stream.name, columns, audit=RECORD_COLUMNS, run_id=self.run_id)

    def _insert(self, select: str, *, expected: int) -> int:
        if self.stream.sync == "incremental_deduped":
            return self._merge(select)
        rows = self._append(select)
        if rows != expected:
            raise SourceRejected(
                f"Loading {self.source}/{self.stream.name}: {expected:,} records arrived and {rows:,} could be read. "
                "Nothing of them was loaded; the connector sends lines that are no records."
            )
        return rows

    def _merge(self, select: str) -> int:
        """Insert the last record of each key, in place of what the table has of it."""
        connection = self.lake.connection
        keys = [sql_name(key) for key in self.stream.primary_key]
        latest = (
            f"SELECT * EXCLUDE (_n) FROM (SELECT *, row_number() OVER () AS _n FROM ({select})) "
            f"QUALIFY row_number() OVER (PARTITION BY {', '.join(keys)} ORDER BY _n DESC) = 1"
        )
        if self.is_replaced:
            return self._append(latest)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE connector_batch AS {latest}")
        same = " AND ".join(f"t.{key} IS NOT DISTINCT FROM b.{key}" for key in keys)
        connection.execute(f"DELETE FROM {self._sql} AS t USING temp.connector_batch AS b WHERE {same}")
        rows = self._append("FROM temp.connector_batch")
        connection.execute("DROP TABLE temp.connector_batch")
        return rows

    def _append(self, select: str) -> int:
        (rows,) = self.lake.connection.execute(
            f"INSERT INTO {self._sql} BY NAME SELECT *, {self._stamp()} FROM ({select})"
        ).fetchone() or (0,)
        return int(rows)

    def _reject(self, bad: str, rows: int) -> int:
        connection = self.lake.connection
        (rejects,) = connection.execute(
            f"INSERT INTO {self._rejects_sql} BY NAME SELECT *, NULL::VARCHAR AS _file, {self._stamp()} FROM ({bad})"
        ).fetchone() or (0,)
        if rejects:
            first = connection.execute(f'SELECT _row, "column", reason FROM ({bad}) ORDER BY _row LIMIT 1').fetchone()
            number, column, reason = first or (0, "", "")
            check_rejects(
                self.source,
                self.stream.name,
                rows=rows - rejects,
                rejects=rejects,
                share=self.stream.max_reject_share,
                first=f"record {number}, {column or 'data'}: {reason}",
            )
        return int(rejects)

    def _stamp(self) -> str:
        now = literal(datetime.now(UTC).isoformat())
        return f"{now}::TIMESTAMPTZ AS _loaded_at, {literal(self.run_id)} AS _run_id"


def _have_distinct_names(fields: Sequence[Field]) -> bool:
    """False if two properties differ in case only: a DuckDB struct cannot hold both."""
    return len({field.name.lower() for field in fields}) == len(fields)


def _typed(path: Path, fields: Sequence[Field]) -> str:
    """SELECT of all records; the first that breaks its schema is an error."""
    if fields[0].name == _WHOLE:
        data, value = "JSON", {fields[0]: "d"}
    else:
        inner = ", ".join(f"{sql_name(field.name)} {_read_type(field)}" for field in fields)
        data, value = f"STRUCT({inner})", {field: f"d.{sql_name(field.name)}" for field in fields}
    columns = ", ".join(f"{_cast(value[field], field.type)} AS {sql_name(field.column)}" for field in fields)
    record = sql_text(f"STRUCT(data {data})")
    return (
        f"SELECT {columns} FROM (SELECT record.data AS d FROM read_ndjson({sql_text(str(path))}, "
        f"columns = {{'record': {record}}}, maximum_object_size = {LINE_BYTES})) "
        "WHERE CASE WHEN d IS NULL THEN error('no data') ELSE true END"
    )


def _read_type(field: Field) -> str:
    return "JSON" if field.type == "JSON" else "VARCHAR"


def _cast(text: str, kind: str) -> str:
    if kind in ("VARCHAR", "JSON"):
        return text
    if kind == "BIGINT":  # a cast alone would round 1.5 to 2
        return f"CASE WHEN contains({text}, '.') THEN error('not an integer') ELSE {text}::BIGINT END"
    return f"{text}::{kind}"


def _checked(path: Path, fields: Sequence[Field], rows_before: int) -> tuple[str, str]:
    """SELECT of the records that keep to the schema, and SELECT of those that do not, with their reason."""
    lines = (
        f"SELECT row_number() OVER () + {rows_before} AS _row, line FROM read_csv({sql_text(str(path))}, auto_detect = false, "
        f"header = false, columns = {{'line': 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', max_line_size = {LINE_BYTES})"
    )
    data = (
        f"SELECT _row, line, CASE WHEN json_valid(line) THEN json_extract(line, '/record/data') END AS d FROM ({lines})"
    )
    pointers = "[" + ", ".join(sql_text(_pointer(field.name)) for field in fields) + "]"
    parsed = f"SELECT *, json_extract_string(d, {pointers}) AS t, json_extract(d, {pointers}) AS j FROM ({data})"
    values, reasons = (
        [],
        ["WHEN d IS NULL OR json_type(d) <> 'OBJECT' THEN {'column': NULL, 'reason': 'no JSON object as data'}"],
    )
    for number, field in enumerate(fields, start=1):
        text = f"t[{number}]"
        if field.type == "JSON":
            value = f"CASE WHEN json_type(j[{number}]) <> 'NULL' THEN j[{number}] END"
        elif field.type == "VARCHAR":
            value = text
        else:
            value = _try_cast(text, field.type)
            reasons.append(
                f"WHEN {text} IS NOT NULL AND {value} IS NULL THEN {{'column': {sql_text(field.column)}, "
                f"'reason': {text}[:100] || {sql_text(' is not ' + field.type)}}}"
            )
        values.append(f"{value} AS {sql_name(field.column)}")
    problem = f"CASE {' '.join(reasons)} END"
    good = f"SELECT {', '.join(values)} FROM ({parsed}) WHERE ({problem}) IS NULL"
    bad = (
        'SELECT _row, p."column"::VARCHAR AS "column", p.reason AS reason, line[:2000]::VARCHAR AS line '
        f"FROM (SELECT _row, line, {problem} AS p FROM ({parsed})) WHERE p IS NOT NULL"
    )
    return good, bad


def _try_cast(text: str, kind: str) -> str:
    if kind == "BIGINT":
        number = f"TRY_CAST({text} AS DOUBLE)"
        return f"CASE WHEN NOT contains({text}, '.') OR {number} = trunc({number}) THEN TRY_CAST({text} AS BIGINT) END"
    return f"TRY_CAST({text} AS {kind})"


def _pointer(name: str) -> str:
    return "" if name == _WHOLE else "/" + name.replace("~", "~0").replace("/", "~1")
