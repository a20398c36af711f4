"""How to read one file, whatever its format: the SQL, and which of its headers are which columns."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.errors import SourceRejected
from pipeline.ingest.spec import Column, normalised
from pipeline.lake.connection import sql_name

OFFSET = ":[0-9]{{2}}([.][0-9]+)? ?(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)$"  # at the end of a time, within a format string


@dataclass(frozen=True)
class Plan:
    """`select` gives `columns` and ``_row``; `rejects`, read after it, gives row, column, reason, line.

    `examine`, called after `select` has been read, refuses what only then can be told to be damaged. The names in
    `temporary` are tables made on the way.
    """

    columns: dict[str, str]
    select: str
    rejects: str | None = None
    examine: Callable[[], None] | None = None
    is_ordered: bool = True
    temporary: tuple[str, ...] = ()


def match_columns(name: str, headers: list[str], declared: tuple[Column, ...]) -> dict[str, tuple[str, str | None]]:
    """Header → the column it fills, and that column's type; None for the type of one that is not declared.

    Raises:
        SourceRejected: naming columns that are gone, or that two headers claim.
    """
    known = {_key(header): column for column in declared for header in (column.name, *column.aliases)}
    matched: dict[str, tuple[str, str | None]] = {}
    for header in headers:
        column = known.get(_key(header))
        matched[header] = (column.name, column.type) if column else (normalised(header) or "column", None)
    found = [target for target, _ in matched.values()]
    twice = {target for target in found if found.count(target) > 1} | {
        matched[header][0] for header in headers if headers.count(header) > 1
    }
    if twice:
        raise SourceRejected(
            f"Reading {name}: two headers stand for column {', '.join(sorted(twice))}: {_shown(headers)}. Rename one, or "
            "correct the `aliases`."
        )
    gone = [column.name for column in declared if not column.optional and column.name not in found]
    if gone:
        raise SourceRejected(
            f"Reading {name}: column {', '.join(gone)} is not in the file, which has {_shown(headers)}. "
            "If it was renamed, add the new header to its `aliases`; if it may be absent, say `optional: true`."
        )
    return matched


def header_keys(column: Column) -> set[str]:
    """What the headers that stand for *column* have in common, comparable with that of `comparable`."""
    return {_key(header) for header in (column.name, *column.aliases)}


def comparable(headers: list[str]) -> set[str]:
    """The headers without what does not matter: case, blanks, punctuation."""
    return set(map(_key, headers))


def _key(header: str) -> str:
    return normalised(header) or header.strip().casefold()  # a header in another script has no ASCII left


def _shown(headers: list[str]) -> str:
    return ", ".join(header[:60] for header in headers[:40])


def select_sql(columns: Mapping[str, str], present: Mapping[str, str], row: str, relation: str) -> str:
    """SELECT of all *columns*, null where the file lacks one; *present* maps a column to its expression."""
    items = [f"{present.get(column, f'NULL::{kind}')} AS {sql_name(column)}" for column, kind in columns.items()]
    return f"SELECT {', '.join(items)}, {row} AS _row FROM {relation}"


def loss(kind: str) -> str | None:
    """SQL condition on ``{v}``: true of text that DuckDB casts to *kind*, but not whole; None if there is no such text."""
    if kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"):  # 1.5 becomes 2
        return "TRY_CAST({v} AS DOUBLE) <> trunc(TRY_CAST({v} AS DOUBLE))"
    if kind.startswith("DECIMAL"):  # with two places, 1.239 becomes 1.24
        return f"TRY_CAST({{v}} AS DOUBLE) <> TRY_CAST({{v}} AS {kind})::DOUBLE"
    if kind == "DATE":
        return "TRY_CAST({v} AS TIMESTAMP) <> TRY_CAST({v} AS DATE)"
    if kind == "TIMESTAMP":  # 12:00+02:00 becomes 12:00; without an offset, and in UTC, it is the same time
        return f"regexp_matches({{v}}, '{OFFSET}') AND NOT regexp_matches({{v}}, '(Z|[+-]00(:?00)?)$')"
    return None


@contextmanager
def reading(path: Path, name: str) -> Iterator[None]:
    """Translate what DuckDB finds wrong with the file itself; what is wrong with the lake passes through.

    Raises:
        SourceRejected: naming the file.
    """
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        # A damaged Parquet file can end in a bare duckdb.Error ("Out of buffer").
        is_about_file = isinstance(
            error, duckdb.InvalidInputException | duckdb.ConversionException | duckdb.OutOfRangeException
        )
        if not (is_about_file or type(error) is duckdb.Error or str(path) in text):
            raise
        if "state machine reached an invalid state" in text:
            found = "its line ends are mixed, or a quote stands where none may be"
        else:
            found = " ".join(re.split(r"\n\n|Possible |LINE 1", text)[0].replace(str(path), name).split())[:300]
        raise SourceRejected(f"Reading {name}: {found}. Correct the file or the source's description of it.") from error
