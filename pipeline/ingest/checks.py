"""The checks that a stream's source file promises; names are claims."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from pipeline.ingest.assets import asset_key
from pipeline.ingest.spec import SourceFile, Stream, table_name
from pipeline.lake.connection import Lake, sql_name

KEY, ROWS, FRESH, SCHEMA = "primary_key_is_unique", "row_count_is_within_range", "is_fresh", "schema_is_unchanged"


def build_checks(files: Sequence[SourceFile]) -> list[dg.AssetChecksDefinition]:
    """The checks of every stream, in a step of its own: one that failed keeps no other from being checked.

    The blocking ones hold the stream's models back.
    """
    return [_stream_checks(file.source.name, stream) for file in files for stream in file.source.streams]


def _specs(source: str, stream: Stream) -> list[dg.AssetCheckSpec]:
    key = asset_key(source, stream.name)
    specs = [
        dg.AssetCheckSpec(ROWS, asset=key, blocking=True, description=f"At least {stream.rows.min:,} rows, at most {stream.rows.max or 'any'}."),
        dg.AssetCheckSpec(SCHEMA, asset=key, description="No column came or went with the last load."),
    ]  # fmt: skip
    if stream.primary_key:
        specs.append(
            dg.AssetCheckSpec(KEY, asset=key, blocking=True, description=f"Unique by {', '.join(stream.primary_key)}.")
        )
    if stream.max_age_hours:
        specs.append(dg.AssetCheckSpec(FRESH, asset=key, description=f"Loaded within {stream.max_age_hours:g} hours."))
    return specs


def _stream_checks(source: str, stream: Stream) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(name=f"check_{source}__{stream.name}", specs=_specs(source, stream), can_subset=True)
    def check(context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake]) -> Iterator[dg.AssetCheckResult]:
        for selected in sorted(context.selected_asset_check_keys):
            passed, severity, metadata = _EVALUATE[selected.name](lake, source, stream)
            yield dg.AssetCheckResult(
                passed=passed,
                asset_key=selected.asset_key,
                check_name=selected.name,
                severity=severity,
                metadata=metadata,
            )

    return check


Outcome = tuple[bool, dg.AssetCheckSeverity, dict[str, Any]]
ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def _key_is_unique(lake: Lake, source: str, stream: Stream) -> Outcome:
    columns = ", ".join(sql_name(column) for column in stream.primary_key)
    query = (
        f"SELECT count(*) FROM (SELECT 1 FROM raw.{sql_name(table_name(source, stream.name))} "
        f"GROUP BY {columns} HAVING count(*) > 1)"
    )
    found = lake.scalar(query)
    return found == 0, ERROR, {"duplicate_keys": found, "query": query}


def _rows_within_range(lake: Lake, source: str, stream: Stream) -> Outcome:
    rows = lake.scalar(f"SELECT count(*) FROM raw.{sql_name(table_name(source, stream.name))}")
    low, high = stream.rows.min, stream.rows.max
    return rows >= low and (high is None or rows <= high), ERROR, {"rows": rows, "min": low, "max": high or "any"}


def _is_fresh(lake: Lake, source: str, stream: Stream) -> Outcome:
    last = lake.scalar(
        "SELECT max(recorded_at) FROM ingest.loads WHERE source = ? AND stream = ?", [source, stream.name]
    )
    age = (datetime.now(UTC) - last).total_seconds() / 3600 if last else float("inf")
    limit = stream.max_age_hours or float("inf")
    return age <= limit, WARN, {"hours_since_load": round(age, 2) if last else "never", "max_age_hours": limit}


def _schema_unchanged(lake: Lake, source: str, stream: Stream) -> Outcome:
    """A column added by the newest load is worth a look: nothing downstream uses it yet."""
    changes = lake.query(
        "SELECT column_name, type, change FROM ingest.schema_changes WHERE source = ? AND stream = ? AND run_id = "
        "(SELECT arg_max(run_id, recorded_at) FROM ingest.loads WHERE source = ? AND stream = ?)",
        [source, stream.name, source, stream.name],
    )
    return not changes, WARN, {"changes": [f"{change} {name} {kind}" for name, kind, change in changes]}


_EVALUATE = {KEY: _key_is_unique, ROWS: _rows_within_range, FRESH: _is_fresh, SCHEMA: _schema_unchanged}
