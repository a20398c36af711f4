"""CSV: finding the header, reading by DuckDB, and telling a file with some bad rows from a damaged file."""

import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import SourceRejected
from pipeline.ingest.plan import OFFSET, Plan, comparable, header_keys, loss, match_columns, select_sql
from pipeline.ingest.spec import Column
from pipeline.lake.connection import Lake, sql_name, sql_text

HEADER_LINES = 10  # a preamble longer than this is not searched
HEADER_BYTES = 1 << 20
LINE_BYTES = 32 << 20
BLOCK = 1 << 20
CONFLICT_MARK = re.compile(rb"^(<<<<<<<|=======|>>>>>>>)( |\r?$)", re.MULTILINE)

# One bad line can have an error for each of its columns: the first tells what is wrong. `line` counts rows, not
# lines, where a quoted value has line breaks: `csv_lines` has the true number.
_REJECTS = """
SELECT csv_lines.line AS _row, arg_min(column_name, coalesce(column_idx, 0)) AS "column",
       arg_min(error_type || ': ' || error_message, coalesce(column_idx, 0)) AS reason,
       arg_min(trim(csv_line, chr(10) || chr(13)), coalesce(column_idx, 0)) AS line
FROM csv_rejects JOIN csv_lines USING (line_byte_position) GROUP BY csv_lines.line
"""

# What a value must be for its column to become of a type, the first that fits all; `v` is the value. Nothing is lost:
# 007, 12e4 and a number of more digits than a DOUBLE holds are no numbers.
_IS_TIME = "{v} LIKE '____-__-__%' AND TRY_CAST({v} AS TIMESTAMP) IS NOT NULL"
_HAS_OFFSET = f"regexp_matches({{v}}, '{OFFSET}')"
_GUESSES = {
    "BIGINT": "TRY_CAST({v} AS BIGINT)::VARCHAR = {v}",
    "DOUBLE": "regexp_matches({v}, '^-?(0|[1-9][0-9]*)([.][0-9]+)?([eE]-[0-9]+)?$') "
    "AND (length(regexp_replace({v}, '[^0-9]', '', 'g')) <= 15 OR TRY_CAST({v} AS DOUBLE)::VARCHAR = {v})",
    "DATE": "TRY_CAST({v} AS DATE)::VARCHAR = {v}",
    "TIMESTAMPTZ": f"{_IS_TIME} AND {_HAS_OFFSET}",
    "TIMESTAMP": f"{_IS_TIME} AND NOT {_HAS_OFFSET}",
    "BOOLEAN": "lower({v}) IN ('true', 'false')",
}


def csv_plan(
    lake: Lake, path: Path, name: str, declared: tuple[Column, ...], delimiter: str, *, is_inferred: bool
) -> Plan:
    """How to read the CSV file *path*. Where *declared* was inferred from an earlier file, a value must be one that
    the type would be inferred from again.

    Raises:
        SourceRejected: if its header does not hold the declared columns, or it is not CSV in UTF-8.
    """
    headers, skip = _header(path, name, declared, delimiter)
    matched = match_columns(name, headers, declared)
    scan = (
        f"read_csv({sql_text(str(path))}, auto_detect = false, header = false, skip = {skip}, delim = {sql_text(delimiter)}, "
        f"quote = '\"', escape = '\"', max_line_size = {LINE_BYTES}"
    )
    text = scan + f", ignore_errors = true, columns = {_struct({target: 'VARCHAR' for target, _ in matched.values()})})"
    guessed = {} if declared else _guessed(lake, text, [target for target, _ in matched.values()])
    present = {target: kind or guessed.get(target, "VARCHAR") for target, kind in matched.values()}
    parsed = {target: "VARCHAR" if kind == "JSON" else kind for target, kind in present.items()}
    relation = (
        f"{scan}, columns = {_struct(parsed)}, store_rejects = true, rejects_limit = 0, "
        "rejects_table = 'csv_rejects', rejects_scan = 'csv_reject_scans')"
    )

    nested = [target for target, kind in present.items() if kind == "JSON"]
    rejects = _REJECTS
    temporary: tuple[str, ...] = ("csv_rejects", "csv_reject_scans", "csv_lines")
    if nested:
        relation += " WHERE " + " AND ".join(f"coalesce(json_valid({sql_name(column)}), true)" for column in nested)
        rejects, temporary = f"{_REJECTS} UNION ALL FROM csv_json_rejects", (*temporary, "csv_json_rejects")

    def examine() -> None:
        _refuse_losses(lake, text, name, present, is_inferred=is_inferred)
        _number_rejects(lake, path)
        if nested:
            _reject_invalid_json(lake, path, text, list(present), nested, skip=skip, delimiter=delimiter)
        _refuse_damaged(lake, path, name)

    columns = {column.name: column.type for column in declared} | present
    expressions = {target: f"{sql_name(target)}::{kind}" for target, kind in present.items()}
    return Plan(
        columns,
        select_sql(columns, expressions, "row_number() OVER ()", relation),
        rejects,
        examine,
        temporary=temporary,
    )


def _struct(columns: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{sql_text(column)}: {sql_text(kind)}" for column, kind in columns.items()) + "}"


def _header(path: Path, name: str, declared: tuple[Column, ...], delimiter: str) -> tuple[list[str], int]:
    """The header's fields and the number of lines up to and including it."""
    required = [header_keys(column) for column in declared if not column.optional]
    best: tuple[int, list[str], int] = (-1, [], 0)
    try:
        for number, line in enumerate(_first_lines(path), start=1):
            if CONFLICT_MARK.match(line):
                _refuse_conflict_marks(path, name)
            (fields, *_) = csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], delimiter=delimiter)
            known = comparable(fields)
            score = sum(bool(keys & known) for keys in required)
            if not declared or score == len(required):
                return fields, number
            if score > best[0]:
                best = (score, fields, number)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceRejected(f"Reading {name}: not CSV in UTF-8: {error}. Convert it, or correct `format:`.") from error
    return best[1], best[2]


def _first_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        for _ in range(HEADER_LINES):
            line = handle.readline(HEADER_BYTES)
            if not line:
                return
            yield line


def _guessed(lake: Lake, text: str, columns: list[str]) -> dict[str, str]:
    """Column → the first type that all its values are of, looking at the whole file."""
    items = [
        f"bool_and(coalesce({guess.format(v=sql_name(column))}, false)) FILTER ({sql_name(column)} IS NOT NULL)"
        for column in columns
        for guess in _GUESSES.values()
    ]
    answers = iter(lake.connection.execute(f"SELECT {', '.join(items)} FROM {text}").fetchall()[0])
    fitting = {column: [kind for kind in _GUESSES if next(answers)] for column in columns}
    return {column: kinds[0] for column, kinds in fitting.items() if kinds}


def _refuse_losses(lake: Lake, text: str, name: str, columns: Mapping[str, str], *, is_inferred: bool) -> None:
    """Refuse values that the column's type holds only in part.

    Raises:
        SourceRejected: naming each such column and one of its values.
    """
    checked = {}
    for column, kind in columns.items():
        value = sql_name(column)
        if is_inferred and kind in _GUESSES:
            checked[column] = f"TRY_CAST({value} AS {kind}) IS NOT NULL AND NOT ({_GUESSES[kind].format(v=value)})"
        elif condition := loss(kind):
            checked[column] = condition.format(v=value)
    if not checked:
        return
    items = [f"any_value({sql_name(column)}) FILTER ({condition})" for column, condition in checked.items()]
    found = lake.connection.execute(f"SELECT {', '.join(items)} FROM {text}").fetchall()[0]
    lost = [
        f"{column} holds {value}, {'in the table it is' if is_inferred else 'declared'} {columns[column]}"
        for column, value in zip(checked, found, strict=True)
        if value is not None
    ]
    if lost:
        raise SourceRejected(
            f"Reading {name}: type changed: {'; '.join(lost)}. Nothing of the file was loaded; declare a type that "
            "holds the value."
        )


def _number_rejects(lake: Lake, path: Path) -> None:
    """Make ``csv_lines``: for each rejected row's place in the file, the number of its line."""
    places = [
        row[0]
        for row in lake.connection.execute(
            "SELECT DISTINCT line_byte_position FROM csv_rejects ORDER BY line_byte_position"
        ).fetchall()
    ]
    numbers: list[int] = []
    position, number = 0, 1
    with path.open("rb") as handle:
        for place in places:
            while position < place and (block := handle.read(min(BLOCK, place - position))):
                number += block.count(b"\n")
                position += len(block)
            numbers.append(number)
    lake.connection.execute(
        "CREATE OR REPLACE TEMP TABLE csv_lines AS "
        "SELECT unnest(?::BIGINT[]) AS line_byte_position, unnest(?::BIGINT[]) AS line",
        [places, numbers],
    )


def _reject_invalid_json(
    lake: Lake, path: Path, text: str, columns: list[str], nested: list[str], *, skip: int, delimiter: str
) -> None:
    """Make ``csv_json_rejects``: the rows whose value for a JSON column is none, which DuckDB reads as text."""
    wrong = " OR ".join(f"NOT json_valid({sql_name(column)})" for column in nested)
    first = " ".join(f"WHEN NOT json_valid({sql_name(column)}) THEN {sql_text(column)}" for column in nested)
    found = dict(
        lake.connection.execute(
            f"SELECT n, CASE {first} END FROM (SELECT row_number() OVER () AS n, * FROM {text}) WHERE {wrong}"
        ).fetchall()
    )
    rejects: list[tuple[int, str, str, str]] = []
    number = 0  # of the rows with as many values as there are columns: the others DuckDB has rejected
    with _long_fields(), path.open(encoding="utf-8-sig", newline="") as handle:
        for _ in range(skip):
            handle.readline()
        reader = csv.reader(handle, delimiter=delimiter)
        begins = skip + 1
        for row in reader if found else ():
            number += len(row) == len(columns)
            column = found.get(number) if len(row) == len(columns) else None
            if column is not None:
                value = row[columns.index(column)]
                rejects.append((begins, column, f"CAST: {value[:100]} is not JSON", delimiter.join(row)[:2000]))
            begins = skip + reader.line_num + 1
    lake.connection.execute(
        'CREATE OR REPLACE TEMP TABLE csv_json_rejects AS SELECT unnest(?::BIGINT[]) AS _row, unnest(?::VARCHAR[]) AS "column", '
        "unnest(?::VARCHAR[]) AS reason, unnest(?::VARCHAR[]) AS line",
        [[reject[part] for reject in rejects] for part in range(4)],
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let Python's reader take values as long as DuckDB does."""
    before = csv.field_size_limit(LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _refuse_damaged(lake: Lake, path: Path, name: str) -> None:
    """Refuse a file with conflict marks, or one that is cut off in its last line.

    Raises:
        SourceRejected: naming the lines.
    """
    rows = lake.connection.execute(f"SELECT _row, reason, line FROM ({_REJECTS}) ORDER BY _row DESC LIMIT 1").fetchall()
    if not rows:
        return
    marks = (
        "SELECT count(*) FROM csv_rejects WHERE regexp_matches(trim(csv_line, chr(10)), '^(<<<<<<<|=======|>>>>>>>)')"
    )
    if lake.scalar(marks):
        _refuse_conflict_marks(path, name)
    number, reason, line = rows[0]
    tail = line.encode()[-BLOCK:]
    with path.open("rb") as handle:
        handle.seek(max(path.stat().st_size - len(tail) - 1, 0))
        is_last = handle.read() == b"\n" + tail
    if is_last and reason.startswith(("MISSING COLUMNS", "UNQUOTED VALUE", "CAST")):
        raise SourceRejected(
            f"Reading {name}: the file is cut off in its last line ({number}: {line[:80]!r}). Nothing of it was loaded; "
            "have it sent again."
        )


def _refuse_conflict_marks(path: Path, name: str) -> None:
    """Refuse the file if lines of it are version-control conflict marks.

    Raises:
        SourceRejected: naming the lines.
    """
    marks: list[int] = []
    with path.open("rb") as handle:
        number = 1
        while line := handle.readline(BLOCK):
            if CONFLICT_MARK.match(line.rstrip(b"\n")):
                marks.append(number)
            number += line.endswith(b"\n")
    if marks:
        shown = ", ".join(map(str, marks[:20])) + (" …" if len(marks) > 20 else "")
        raise SourceRejected(
            f"Reading {name}: merge-conflict marks on line {shown}. Nothing was loaded; resolve the conflict."
        )
