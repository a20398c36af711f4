"""Whether each source can be reached, how fast, and when it last changed and was last loaded."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.errors import MillraceError
from pipeline.ingest.locations import find_files, location_of
from pipeline.ingest.raw import prepare
from pipeline.ingest.spec import AirbyteSource, FileSource, SourceFile
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

TABLE_COLUMNS = (
    "source VARCHAR, stream VARCHAR, kind VARCHAR, reachable BOOLEAN, latency_seconds DOUBLE, last_change TIMESTAMPTZ, "
    "last_load TIMESTAMPTZ, rows BIGINT, error VARCHAR, checked_at TIMESTAMPTZ"
)


@dataclass(frozen=True)
class Availability:
    """One stream's line of the catalogue. Times are UTC; `last_change` is the provider's word, None if it tells none."""

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
        (row[0], row[1]): (row[2], row[3])
        for row in lake.query(
            "SELECT source, stream, max(recorded_at), sum(rows)::BIGINT FROM ingest.loads GROUP BY ALL"
        )
    }
    found = []
    for file in files:
        source = file.source
        connector = _asked(lambda file=file: probe(file)) if isinstance(source, AirbyteSource) else None  # type: ignore[misc]
        for stream in source.streams:
            changed: datetime | None = None
            if isinstance(source, FileSource):
                listing = []
                seconds, error = _asked(
                    lambda source=source, stream=stream, file=file, listing=listing: listing.extend(  # type: ignore[misc]
                        find_files(stream, location_of(source, settings, file.project_dir), settings)
                    )
                )
                changed = max((item.modified_at for item in listing if item.modified_at), default=None)
                if error is None and not listing:
                    error = "no file matches its path"
            else:
                assert connector is not None
                seconds, error = connector
            last_load, rows = loads.get((source.name, stream.name), (None, None))
            found.append(
                Availability(
                    source.name, stream.name, source.kind, error is None, seconds, changed, last_load, rows, error
                )
            )
    return found


def _asked(question: Callable[[], object]) -> tuple[float, str | None]:
    """Seconds the answer took, and what was wrong."""
    started = time.monotonic()
    try:
        question()
    except MillraceError as error:
        return time.monotonic() - started, str(error)
    return time.monotonic() - started, None


def save(lake: Lake, found: Sequence[Availability], *, run_id: str) -> None:
    """Make ``health.sources`` say exactly this."""
    now = datetime.now(UTC)

    def work() -> None:
        lake.connection.execute("CREATE SCHEMA IF NOT EXISTS health")
        lake.connection.execute(f"CREATE TABLE IF NOT EXISTS health.sources ({TABLE_COLUMNS})")
        lake.connection.execute("DELETE FROM health.sources")
        lake.connection.executemany(
            "INSERT INTO health.sources VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                [item.source, item.stream, item.kind, item.reachable, item.latency_seconds, item.last_change, item.last_load,
                 item.rows, item.error, now]
                for item in found
            ],
        )  # fmt: skip

    lake.in_transaction(work, asset="health/sources", run_id=run_id)
