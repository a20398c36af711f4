"""What one commit of a sync holds: rows of some streams, their states, and the note of the load, or nothing of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb

from pipeline.errors import LakeError, SourceError, SourceRejected
from pipeline.ingest.airbyte_messages import Spool
from pipeline.ingest.airbyte_state import ALL_STREAMS, State, save_state
from pipeline.ingest.airbyte_tables import Field, Table, Written, fields_of
from pipeline.ingest.raw import LoadResult, record_load
from pipeline.ingest.spec import ConnectorStream
from pipeline.lake.connection import Lake


@dataclass
class StreamLoad:
    """A stream within a running sync."""

    stream: ConnectorStream
    offered: Mapping[str, Any]  # as the connector's catalogue describes it
    spool: Spool
    is_replaced: bool
    result: LoadResult
    state: State | None = None  # the newest, not committed yet
    is_complete: bool = False  # the connector said so
    error: SourceError | None = None
    committed_at: float = field(default_factory=time.monotonic)

    @property
    def connector_name(self) -> str:
        """The stream's name in messages."""
        return str(self.offered["name"])

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns its schema declares."""
        return fields_of(self.offered.get("json_schema") or {})


class Writer:
    """Commits of one sync."""

    def __init__(self, lake: Lake, source: str, run_id: str, *, full: bool) -> None:
        self.lake, self.source, self.run_id, self.full = lake, source, run_id, full

    def commit(self, loads: Sequence[StreamLoad], for_all: State | None) -> list[Written]:
        """One transaction: rows, states, and the note of the load.

        Raises:
            SourceRejected: if table and schema do not fit, or too many records break their schema. Nothing is committed.
        """
        asset = ", ".join(f"raw/{self.source}/{load.stream.name}" for load in loads)

        def run(*, checked: bool) -> list[Written]:
            work = lambda: self._write(loads, for_all, checked=checked)  # noqa: E731
            return self.lake.in_transaction(work, asset=asset, run_id=self.run_id)

        try:
            return run(checked=False)
        except LakeError as error:
            if not _is_about_records(error):
                raise
        try:
            return run(checked=True)
        except LakeError as error:
            if not _is_about_records(error):
                raise
            raise SourceRejected(f"Loading {asset}: records that cannot be read: {error.__cause__}") from error

    def _write(self, loads: Sequence[StreamLoad], for_all: State | None, *, checked: bool) -> list[Written]:
        results = []
        for load in loads:
            started = time.monotonic()
            table = Table(self.lake, self.source, load.stream, load.fields, full=self.full, run_id=self.run_id)
            spool = load.spool
            written = table.write(spool.path, rows=spool.covered_rows, rows_before=spool.rows_before, checked=checked)
            results.append(written)
            if load.state is not None and load.stream.sync != "full_refresh":
                save_state(self.lake, self.source, load.connector_name, load.state, run_id=self.run_id)
            now = added(LoadResult(self.source, load.stream.name, seconds=time.monotonic() - started), written)
            record_load(self.lake, now, month=None, run_id=self.run_id)
        if for_all is not None and any(load.stream.sync != "full_refresh" for load in loads):
            save_state(self.lake, self.source, ALL_STREAMS, for_all, run_id=self.run_id)
        return results


def _is_about_records(error: LakeError) -> bool:
    return isinstance(error.__cause__, duckdb.InvalidInputException | duckdb.ConversionException)


def added(result: LoadResult, written: Written) -> LoadResult:
    """*result* and what one more commit wrote."""
    return replace(
        result,
        rows=result.rows + written.rows,
        rejects=result.rejects + written.rejects,
        columns_added=result.columns_added + written.columns_added,
    )
