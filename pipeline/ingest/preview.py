"""Looking at a source without loading it: its first rows, and what it offers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, SourceRejected
from pipeline.ingest.locations import find_files, local_copy, location_of
from pipeline.ingest.readers import read_plan
from pipeline.ingest.spec import FileSource, FileStream, SourceFile
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

LISTED_FILES = 24


@dataclass(frozen=True)
class View:
    """A small table for a person."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def preview(file: SourceFile, stream: str | None, settings: Settings, *, limit: int) -> View:
    """The first rows of a stream (default: the first stream) as they would be loaded. Nothing is written.

    Raises:
        ConfigError: if there is no such stream.
        SourceError: if it cannot be read.
    """
    streams = {item.name: item for item in file.source.streams}
    if stream is not None and stream not in streams:
        raise ConfigError(f"Source {file.source.name} has no stream {stream!r}. It has: {', '.join(streams)}")
    chosen = streams[stream or file.source.streams[0].name]
    title = f"{file.source.name}/{chosen.name}"
    if isinstance(chosen, FileStream):
        return _file_preview(file, chosen, settings, limit, title)
    from pipeline.ingest.airbyte import preview as connector_preview

    records = connector_preview(file, chosen.name, settings, limit=limit)
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = [[_short(record.get(column)) for column in columns] for record in records]
    return View(title, columns, rows)


def discover(file: SourceFile, settings: Settings) -> Iterator[View]:
    """What the source offers: the newest files of each stream, or the connector's streams with their fields."""
    if isinstance(file.source, FileSource):
        location = location_of(file.source, settings, file.project_dir)
        for stream in file.source.streams:
            found = find_files(stream, location, settings)
            rows = [[item.path, item.month, item.bytes, item.modified_at] for item in found[-LISTED_FILES:]]
            title = f"{file.source.name}/{stream.name}: {len(found)} files in {location}"
            yield View(title, ["file", "month", "bytes", "modified"], rows)
        return
    from pipeline.ingest.airbyte import discover as connector_discover

    for offered in connector_discover(file, settings):
        facts = f"key {', '.join(offered.primary_key) or 'none'}, cursor {offered.cursor_field or 'none'}, {', '.join(offered.sync_modes)}"
        yield View(f"{file.source.name}/{offered.name}: {facts}", ["field", "type"], list(offered.fields.items()))


def _file_preview(file: SourceFile, stream: FileStream, settings: Settings, limit: int, title: str) -> View:
    assert isinstance(file.source, FileSource)
    found = find_files(stream, location_of(file.source, settings, file.project_dir), settings)
    if not found:
        raise SourceRejected(f"Looking at {title}: no file matches its path. Correct the location or the path.")
    with Lake.open(settings) as lake, local_copy(found[-1], settings) as (path, fetched, _):
        plan = read_plan(lake, path, fetched.path, stream, {})
        answer = lake.connection.execute(f"SELECT * EXCLUDE (_row) FROM ({plan.select}) LIMIT {limit}")
        columns = [item[0] for item in answer.description or ()]
        return View(
            f"{title}: {fetched.path}", columns, [[_short(value) for value in row] for row in answer.fetchall()]
        )


def _short(value: Any, limit: int = 60) -> Any:
    if isinstance(value, dict | list):
        value = json.dumps(value)
    return f"{value[:limit]}…" if isinstance(value, str) and len(value) > limit else value
