"""What the values of a table look like: one statement that reads every row once, whatever the table's width."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.lake.catalogue import Column, table
from pipeline.lake.connection import Lake, sql_name

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_TEXT = 120  # characters of a shown value
SAMPLE_ROWS = 20_000  # top values are counted in about so many rows: exactly in a smaller table
SAMPLE_VALUES = 400_000  # rows x columns of the sample: counting one costs 4 microseconds
SAMPLE_SEEN = 5  # a value met fewer times in a sample says nothing about the table

_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}
_UNSIGNED = {"UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
_FLOATS = {"FLOAT", "DOUBLE"}
_TIMES = {"DATE", "TIME", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"}
_OTHERS_IN_ORDER = {"BOOLEAN", "VARCHAR", "UUID", "INTERVAL", "TIME WITH TIME ZONE"}


@dataclass(frozen=True)
class TopValue:
    """A frequent value and how many rows have it, counted in the sample and scaled to the table.

    Why a sample: approx_top_k gives no counts, and counting all values takes memory for each distinct one.
    """

    value: str
    rows: int


@dataclass(frozen=True)
class ColumnProfile:
    """One column. Values are DuckDB's text of them, cut at `MAX_TEXT` characters.

    *distinct* is approximate (HyperLogLog). *minimum* and *maximum* are None where a type has no useful order or
    there is no value; *quantiles* (at `QUANTILES`, approximate) are empty unless numeric or temporal. NaN and
    infinities count as *not_finite* and take no part in these.
    """

    name: str
    type: str
    nulls: int
    not_finite: int
    distinct: int
    minimum: str | None
    maximum: str | None
    quantiles: tuple[str, ...]
    top_values: tuple[TopValue, ...]


@dataclass(frozen=True)
class TableProfile:
    """All columns of one table. *sampled_rows* is what the top values were counted in."""

    name: str
    rows: int
    sampled_rows: int
    columns: tuple[ColumnProfile, ...]


def profile(lake: Lake, name: str, *, top: int = 10) -> TableProfile:
    """Profile the table or view *name* (``schema.table``).

    Raises:
        LakeRejected: if there is no such table.
        LakeError: as `Lake.errors` translates.
    """
    described = table(lake, name)
    source = sql_name(*described.name.split(".", 1))
    # A view's size is not in the catalogue: it is run once more, to be counted.
    rows = described.statistics.rows if described.statistics else lake.scalar(f"SELECT count(*) FROM {source}")
    columns = described.columns
    wanted = min(SAMPLE_ROWS, SAMPLE_VALUES // max(len(columns), 1))
    share = min(wanted / max(rows, 1), 1.0)
    expressions = ["count(*)", "count(*) FILTER (_sampled)"]
    for column in columns:
        expressions += _expressions(column, top)
    (figures,) = lake.query(
        f"SELECT {', '.join(expressions)} FROM (SELECT *, random() < {share} AS _sampled FROM {source})"
    )
    values = iter(figures)
    counted, sampled = next(values), next(values)
    return TableProfile(
        described.name, counted, sampled, tuple(_column_profile(column, counted, sampled, values) for column in columns)
    )


def _expressions(column: Column, top: int) -> list[str]:
    """The six aggregates of one column: present, not finite, distinct, bounds, quantiles, top values."""
    name, kind = sql_name(column.name), column.type.split("(")[0]
    text = f"left({name}::VARCHAR, {MAX_TEXT})"
    is_nested = column.type.endswith("]") or kind in {"STRUCT", "MAP", "UNION", "VARIANT", "JSON", "BLOB", "GEOMETRY"}
    finite, ordered, number = "true", "NULL", "NULL"
    if not is_nested and (kind == "DECIMAL" or kind in _INTEGERS | _UNSIGNED | _FLOATS | _TIMES | _OTHERS_IN_ORDER):
        if kind in _FLOATS or kind in {"DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"}:
            finite = f"isfinite({name})"
        bounds = f"min({name}) FILTER ({finite})", f"max({name}) FILTER ({finite})"
        ordered = "[" + ", ".join(f"left({bound}::VARCHAR, {MAX_TEXT})" for bound in bounds) + "]"
        cast = {"TIMESTAMP_S": "TIMESTAMP", "TIMESTAMP_MS": "TIMESTAMP", "TIMESTAMP_NS": "TIMESTAMP"}.get(kind, "")
        cast = "DOUBLE" if kind == "UHUGEINT" else "HUGEINT" if kind in _UNSIGNED else cast
        if kind == "DECIMAL" or kind in _INTEGERS | _UNSIGNED | _FLOATS | _TIMES:
            value = f"{name}::{cast}" if cast else name
            number = f"approx_quantile({value}, {list(QUANTILES)}) FILTER ({finite})::VARCHAR[]"
    distinct = f"approx_count_distinct({text if kind in ('VARIANT', 'GEOMETRY') else name})"
    # The CASE keeps the text of unsampled rows from being made at all.
    frequent = f"histogram(CASE WHEN _sampled THEN {text} END)"
    tops = f"list_slice(list_reverse_sort(list_transform(map_entries({frequent}), e -> {{'n': e.value, 'v': e.key}})), 1, {top})"
    return [f"count({name})", f"count({name}) FILTER (NOT {finite})", distinct, ordered, number, tops]


def _column_profile(column: Column, rows: int, sampled: int, values: Iterator[Any]) -> ColumnProfile:
    present, not_finite, distinct, bounds, quantiles, tops = (next(values) for _ in range(6))
    seen = [item for item in tops or () if sampled == rows or item["n"] >= SAMPLE_SEEN]
    return ColumnProfile(
        name=column.name,
        type=column.type,
        nulls=rows - present,
        not_finite=not_finite,
        distinct=min(distinct, present),
        minimum=bounds[0] if bounds else None,
        maximum=bounds[1] if bounds else None,
        quantiles=tuple(quantiles or ()),
        top_values=tuple(TopValue(item["v"], round(item["n"] * rows / sampled)) for item in seen),
    )
