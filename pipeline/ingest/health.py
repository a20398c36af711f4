"""Whether each source can be reached, how fast, and when it last changed and was last loaded."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from pipeline.errors import MillraceError
from pipeline.ingest.locations import FoundFile, find_files, location_of
from pipeline.ingest.raw import prepare
from pipeline.ingest.spec import AirbyteSource, FileSource, FileStream, SourceFile, table_name
from pipeline.lake.catalogue import tables
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

T = TypeVar("T")

TABLE_COLUMNS = (
    "source VARCHAR, stream VARCHAR, kind VARCHAR, reachable BOOLEAN, latency_seconds DOUBLE, last_change TIMESTAMPTZ, "
    "last_load TIMESTAMPTZ, rows BIGINT, error VARCHAR, checked_at TIMESTAMPTZ"
)


@dataclass(frozen=True)
class Availability:
    """One stream's line of the catalogue.

    Times are UTC; `last_change` is the provider's word, None if it tells none. `rows` are those of the table now.
    """

    source: str
    stream: str
    kind: str
    reachable: bool
    latency_seconds: float
    last_change: datetime | None
    last_load: datetime | None
    rows: int | None
    error: str | None


def check_sources(
    lake: Lake, files: Sequence[SourceFile], settings: Settings, *, probe: Callable[[SourceFile], None]
) -> list[Availability]:
    """Look at every source. *probe* asks a connector to check its connection and raises if it cannot."""
    prepare(lake)
    loads = {
        (source, stream): last
        for source, stream, last in lake.query("SELECT source, stream, max(recorded_at) FROM ingest.loads GROUP BY ALL")
    }
    rows = {table.name: table.statistics.rows for table in tables(lake) if table.statistics}
    found = []
    for file in files:
        source = file.source
        connector = _asked(partial(probe, file)) if isinstance(source, AirbyteSource) else None
        for stream in source.streams:
            changed: datetime | None = None
            if isinstance(stream, FileStream):
                seconds, error, listing = _asked(partial(_listing, file, stream, settings))
                changed = max((item.modified_at for item in listing or () if item.modified_at), default=None)
                if error is None and not listing:
                    error = "no file matches its path"
            else:
                assert connector is not None
                seconds, error, _ = connector
            last_load = loads.get((source.name, stream.name))
            held = rows.get(f"raw.{table_name(source.name, stream.name)}")
            found.append(
                Availability(
                    source.name, stream.name, source.kind, error is None, seconds, changed, last_load, held, error
                )
            )
    return found


def _listing(file: SourceFile, stream: FileStream, settings: Settings) -> list[FoundFile]:
    assert isinstance(file.source, FileSource)
    return find_files(stream, location_of(file.source, settings, file.project_dir), settings)


def _asked(question: Callable[[], T]) -> tuple[float, str | None, T | None]:
    """Seconds the answer took, what was wrong, and the answer."""
    started = time.monotonic()
    try:
        answer = question()
    except MillraceError as error:
        return time.monotonic() - started, str(error), None
    return time.monotonic() - started, None, answer


def save(lake: Lake, found: Sequence[Availability], *, run_id: str) -> None:
    """Make ``health.sources`` say exactly this."""
    now = datetime.now(UTC)

    def work() -> None:
        lake.connection.execute("CREATE SCHEMA IF NOT EXISTS health")
        lake.connection.execute(f"CREATE TABLE IF NOT EXISTS health.sources ({TABLE_COLUMNS})")
        lake.connection.execute("DELETE FROM health.sources")
        if not found:  # a project without sources
            return
        lake.connection.executemany(
            "INSERT INTO health.sources VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                [item.source, item.stream, item.kind, item.reachable, item.latency_seconds, item.last_change, item.last_load,
                 item.rows, item.error, now]
                for item in found
            ],
        )  # fmt: skip

    lake.in_transaction(work, asset="health/sources", run_id=run_id)
