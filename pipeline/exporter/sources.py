"""Sources: rows that loads brought and refused, when one brought rows last, and up to when the data reach.

All from what a load tells with its materialisation of ``raw/<source>/<stream>`` (pipeline/ingest/assets.py).
"""

from typing import Any

from pipeline.exporter.database import Database
from pipeline.exporter.materializations import last_materializations, numbers_of
from pipeline.exporter.metrics import Registry
from pipeline.exporter.runs import ENDS as RUN_ENDS
from pipeline.exporter.tail import Event
from pipeline.exporter.topic import Batch, Topic

STREAM = ("source", "stream")
LAYER = "raw"
LOADED, REJECTED, UNTIL = "rows_loaded", "rows_rejected", "data_until"  # labels of the metadata
MAX_RUNS = 20_000


class Sources(Topic):
    """One series for each stream of each source."""

    name = "sources"
    bodies_of = frozenset({"ASSET_MATERIALIZATION"})

    def __init__(self, registry: Registry) -> None:
        self.rows = registry.counter("millrace_source_rows_total", "Rows that loads of the stream brought.", STREAM)
        self.rejected = registry.counter(
            "millrace_source_rejected_rows_total",
            "Rows that those loads put aside, as they did not fit. A load with more than its source allows fails instead.",
            STREAM,
        )
        self.last_load = registry.last_value(
            "millrace_source_last_load_timestamp_seconds", "When a load last brought rows.", STREAM
        )
        self.data = registry.last_value(
            "millrace_source_data_timestamp_seconds",
            "Up to when the data reach: the end of the newest month, or without months the newest change of a file.",
            STREAM,
        )
        self.max_age = registry.last_value(
            "millrace_source_max_age_seconds",
            "The stream is late if nothing came for longer, by its own declaration.",
            STREAM,
        )
        self._counted: dict[str, set[str]] = {}  # run → assets whose load is counted

    def start_stream(self, source: str, stream: str) -> None:
        """Have the stream's sums before its first load."""
        self.rows.start(source, stream)
        self.rejected.start(source, stream)

    def forget_streams(self, gone: set[tuple[str, str]]) -> None:
        """Remove the series of streams that are gone."""
        for metric in (self.rows, self.rejected, self.last_load, self.data, self.max_age):
            metric.forget_all(STREAM, gone)

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            if event.type == "ASSET_MATERIALIZATION":
                self._loaded(event, is_counted=True)
            elif event.type in RUN_ENDS:
                self._counted.pop(event.run_id, None)

    def _loaded(self, event: Event, *, is_counted: bool) -> None:
        stream = stream_of(event.asset or "")
        told = numbers_of(event) if stream else {}
        if stream is None or REJECTED not in told:  # by month a load of several tells a part of its rows once more
            return
        self.start_stream(*stream)
        if UNTIL in told:
            self.data.set(told[UNTIL], *stream)
        if told.get(LOADED):
            self.last_load.set(max(event.at, self.last_load.series.get(stream, 0.0)), *stream)
        assets = self._counted.setdefault(event.run_id, set())
        if is_counted and event.asset not in assets:  # a load of several partitions has an event for each, all alike
            self.rows.add(*stream, by=max(told.get(LOADED, 0.0), 0.0))
            self.rejected.add(*stream, by=max(told[REJECTED], 0.0))
        assets.add(event.asset or "")
        if len(self._counted) > MAX_RUNS:
            del self._counted[next(iter(self._counted))]

    def adopt(self, database: Database) -> None:
        for event in last_materializations(database, under=LAYER):
            self._loaded(event, is_counted=False)
        self._counted.clear()

    def dump(self) -> Any:
        return {run_id: sorted(assets) for run_id, assets in self._counted.items()}

    def load(self, dumped: Any) -> None:
        self._counted = {run_id: set(assets) for run_id, assets in dumped.items()}


def stream_of(asset: str) -> tuple[str, str] | None:
    """Source and stream of ``raw/<source>/<stream>``; None for any other asset."""
    layer, _, rest = asset.partition("/")
    source, _, stream = rest.partition("/")
    return (source, stream) if layer == LAYER and source and stream and "/" not in stream else None
