"""Assets: materialised, observed, failed; when last, and with how many rows."""

import json
import math
import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any

from pipeline.exporter.baseline import Baseline
from pipeline.exporter.compute import Compute
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import MAX_SERIES, Registry
from pipeline.exporter.runs import ENDS as RUN_ENDS
from pipeline.exporter.tail import Event
from pipeline.exporter.topic import Batch, Topic

ASSET = ("asset_key",)
ROW_COUNT = "dagster/row_count"
STATES = ("pass", "warn", "fail", "unknown", "not_applicable")  # of a freshness policy
USUAL = 30  # materialisations
LEAST = 10
LEAST_SPREAD = 0.05  # of the logarithm
MAX_PLANS = 20_000  # runs
PAGE = 500  # assets, whose last events may be long


class Materializations(Topic):
    """By asset, never by partition.

    An asset failed if a run that meant to make it failed without having made it: Dagster itself stores no such event.
    """

    name = "assets"
    bodies_of = frozenset({"ASSET_MATERIALIZATION", "FRESHNESS_STATE_CHANGE"})

    def __init__(self, registry: Registry) -> None:
        located = (*ASSET, "code_location")
        self.materializations = registry.counter(
            "dagster_asset_materializations_total", "Times the asset was made.", located
        )
        self.observations = registry.counter(
            "dagster_asset_observations_total", "Times the asset was observed.", located
        )
        self.failures = registry.counter(
            "dagster_asset_failures_total", "Failed runs that meant to make the asset and did not.", located
        )
        self.last = registry.last_value(
            "dagster_asset_last_materialization_timestamp_seconds", "When the asset was made last.", ASSET
        )
        self.rows = registry.last_value(
            "dagster_asset_last_row_count", "Rows of the asset when it was made last.", ASSET
        )
        self.usual_rows = registry.last_value(
            "dagster_asset_row_count_baseline",
            f"Median of the asset's row counts, of up to {USUAL} before the last.",
            ASSET,
        )
        self.rows_zscore = registry.last_value(
            "dagster_asset_row_count_zscore",
            "Distance of the last row count from the median before, in their spread.",
            ASSET,
        )
        self.freshness = registry.last_value(
            "dagster_asset_freshness_state",
            "1 for the state in which the asset's freshness policy found it last: pass, warn, fail.",
            (*ASSET, "state"),
        )
        self.compute = Compute(registry)
        self.duration = Baseline(registry, "dagster_asset_duration", "the asset's successful steps", ASSET)
        self._planned: dict[str, set[str]] = {}
        self._row_counts: dict[str, deque[int]] = {}

    def start_asset(self, asset: str, location: str) -> None:
        """Have the asset's series before anything happens to it."""
        for metric in (self.materializations, self.observations, self.failures, self.compute.seconds):
            metric.start(asset, location)

    def forget_assets(self, gone: set[tuple[str, str]]) -> None:
        """Remove the series of assets that their locations do not have any more."""
        for metric in (self.materializations, self.observations, self.failures, self.compute.seconds):
            metric.forget_all((*ASSET, "code_location"), gone)
        moved = {asset for asset, _ in self.materializations.series}
        self.forget_past({asset for asset, _ in gone if asset not in moved})

    def forget_past(self, assets: set[str]) -> None:
        """Remove what is known of the last time of *assets*."""
        keys = {(asset,) for asset in assets}
        for value in (self.last, self.rows, self.usual_rows, self.rows_zscore, self.freshness):
            value.forget_all(ASSET, keys)
        for asset in assets:
            self._row_counts.pop(asset, None)
            self.duration.forget((asset,))

    def only_past(self) -> set[str]:
        """Assets of which a start without a past read when they were made last, and nothing came since."""
        return {asset for (asset,) in self.last.series} - {asset for asset, _ in self.materializations.series}

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            location = batch.runs[event.run_id].location if event.run_id in batch.runs else ""
            numbers = numbers_of(event) if event.type == "ASSET_MATERIALIZATION" else {}
            for asset, seconds in self.compute.count(event, location, numbers).items():
                if asset not in self._planned.get(event.run_id, ()):  # else it was not made
                    self.duration.observe((asset,), seconds)
            if event.type == "ASSET_MATERIALIZATION_PLANNED" and event.asset:
                self._planned.setdefault(event.run_id, set()).add(event.asset)
                self.start_asset(event.asset, location)
                if len(self._planned) > MAX_PLANS:
                    del self._planned[next(iter(self._planned))]
            elif event.type == "ASSET_MATERIALIZATION" and event.asset:
                self._planned.get(event.run_id, set()).discard(event.asset)
                self._materialized(event, event.asset, location, numbers)
            elif event.type == "ASSET_OBSERVATION" and event.asset:
                self.observations.add(event.asset, location)
            elif event.type == "FRESHNESS_STATE_CHANGE" and event.asset:
                for state in STATES:
                    self.freshness.remove(event.asset, state)
                self.freshness.set(1, event.asset, _state(event))
            elif event.type in RUN_ENDS:
                missed = self._planned.pop(event.run_id, ())
                if event.type == "PIPELINE_FAILURE":
                    for asset in missed:
                        self.failures.add(asset, location)

    def _materialized(self, event: Event, asset: str, location: str, numbers: dict[str, float]) -> None:
        self.start_asset(asset, location)
        self.materializations.add(asset, location)
        self.last.set(max(event.at, self.last.series.get((asset,), 0.0)), asset)
        if numbers.get(ROW_COUNT, -1) >= 0:
            self._count_rows(asset, int(numbers[ROW_COUNT]))

    def _count_rows(self, asset: str, rows: int) -> None:
        self.rows.set(rows, asset)
        if asset not in self._row_counts and len(self._row_counts) >= MAX_SERIES:
            return
        history = self._row_counts.setdefault(asset, deque(maxlen=USUAL))
        if len(history) >= LEAST:
            usual = statistics.median(history)
            logs = [math.log1p(count) for count in history]
            centre = statistics.median(logs)
            spread = max(1.4826 * statistics.median([abs(value - centre) for value in logs]), LEAST_SPREAD)
            self.usual_rows.set(usual, asset)
            self.rows_zscore.set((math.log1p(rows) - centre) / spread, asset)
        history.append(rows)

    def adopt(self, database: Database) -> None:
        """Know of every asset when it was made last: one that is not made any more would else never be late."""
        for event in last_materializations(database):
            if event.asset:
                self.last.set(event.at, event.asset)
                if (rows := numbers_of(event).get(ROW_COUNT, -1)) >= 0:
                    self.rows.set(rows, event.asset)

    def dump(self) -> Any:
        return {
            "planned": {run_id: sorted(assets) for run_id, assets in self._planned.items()},
            "steps": {},  # which an older version asks for
            "rows": {asset: list(history) for asset, history in self._row_counts.items()},
            "duration": self.duration.dump(),
            "compute": self.compute.dump(),
        }

    def load(self, dumped: Any) -> None:
        self._planned = {run_id: set(assets) for run_id, assets in dumped["planned"].items()}
        self._row_counts = {  # an older version kept counts below zero too, on which no later one could be judged
            asset: deque([count for count in history if count >= 0], maxlen=USUAL)
            for asset, history in dumped["rows"].items()
        }
        self.duration.load(dumped["duration"])
        self.compute.load(dumped.get("compute", ()))  # what an older version saved has none


def numbers_of(event: Event) -> dict[str, float]:
    """The metadata of a materialisation that are finite numbers or times, by label; times as epoch seconds."""
    entries = (event.data.get("materialization") or {}).get("metadata_entries") or ()
    values = {entry["label"]: (entry.get("entry_data") or {}).get("value") for entry in entries}
    return {
        label: float(value)
        for label, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _state(event: Event) -> str:
    """As Dagster tells it: ``FreshnessState.FAIL``."""
    found = event.data.get("new_state") or {}
    state = str(found.get("__enum__", "")).rpartition(".")[2].lower()
    return state if state in STATES else "unknown"


def last_materializations(database: Database, *, under: str = "") -> Iterator[Event]:
    """The newest materialisation of every asset whose key begins with *under*, as Dagster keeps it beside the log."""
    after = ""
    while True:
        rows = database.rows(
            """SELECT asset_key, last_materialization FROM asset_keys
               WHERE asset_key > %s AND asset_key LIKE %s AND last_materialization IS NOT NULL
                 AND (wipe_timestamp IS NULL OR wipe_timestamp < last_materialization_timestamp)
               ORDER BY asset_key LIMIT %s""",
            after,
            f'["{under}",%' if under else "%",
            PAGE,
        )
        for key, body in rows:
            try:
                entry = json.loads(body)["event_log_entry"]
                at = float(entry["timestamp"])
            except (ValueError, KeyError, TypeError):
                continue  # a version of long ago kept less of it
            asset = "/".join(json.loads(key))
            yield Event(0, entry.get("run_id", ""), "ASSET_MATERIALIZATION", at, asset=asset, body=json.dumps(entry))
        if len(rows) < PAGE:
            return
        after = rows[-1][0]
