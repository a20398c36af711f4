"""What loads tell of sources: real files, loaded by the platform's own assets, as a scrape shows them afterwards."""

import copy
import datetime as dt
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.ingest.assets import build_assets
from pipeline.ingest.spec import SourceFile
from pipeline.lake.resources import build_lake_resource
from pipeline.settings import Settings
from tests.exporter.conftest import NOTHING, Watched
from tests.ingest.file_sources import declare

TWO = [{"name": "id", "type": "BIGINT"}, {"name": "name"}]
SALES = {"source": "shop", "stream": "sales"}
Load = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder that the source reads."""
    folder = tmp_path / "project" / "files"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def load(settings: Settings, instance: dg.DagsterInstance) -> Load:
    """Materialises the stream as a run of the platform does."""

    def run(source: SourceFile, **options: Any) -> dg.ExecuteInProcessResult:
        asset, health = build_assets([source], settings)
        return dg.materialize(
            [asset, health],
            instance=instance,
            selection=[asset],
            resources={"lake": build_lake_resource(settings)},
            raise_on_error=False,
            **options,
        )

    return run


def test_rows_and_rejects_of_loads_are_summed_and_a_load_without_new_rows_leaves_its_time(
    watched: Watched, files: Path, load: Load
):
    source = declare(files.parent, path="*.csv", columns=TWO, max_reject_share=0.5, max_age_hours=24)
    (files / "a.csv").write_text("id,name\n1,a\n2,b\nthree,c\n")
    changed = dt.datetime(2026, 3, 1, tzinfo=dt.UTC).timestamp()
    os.utime(files / "a.csv", (changed, changed))
    assert load(source).success
    watched.poll()

    assert watched.value("millrace_source_rows_total", **SALES) == 2
    assert watched.value("millrace_source_rejected_rows_total", **SALES) == 1
    assert watched.value("millrace_source_data_timestamp_seconds", **SALES) == changed
    brought_at = watched.value("millrace_source_last_load_timestamp_seconds", **SALES)
    assert brought_at == pytest.approx(time.time(), abs=60)

    assert load(source).success  # nothing is new
    watched.poll()
    assert watched.value("millrace_source_rows_total", **SALES) == 2
    assert watched.value("millrace_source_last_load_timestamp_seconds", **SALES) == brought_at
    made_at = watched.value("dagster_asset_last_materialization_timestamp_seconds", asset_key="raw/shop/sales")
    assert made_at
    assert made_at > brought_at

    (files / "b.csv").write_text("id,name\n4,d\n")
    assert load(source).success
    watched.poll()
    assert watched.value("millrace_source_rows_total", **SALES) == 3


def test_a_load_of_several_months_is_counted_once_whether_asked_for_by_range_or_whole(
    watched: Watched, files: Path, load: Load
):
    source = declare(files.parent, path="{month}.csv", months={"first": "2021-01"}, columns=TWO)
    for month in ("2021-01", "2021-02", "2021-03"):
        (files / f"{month}.csv").write_text(f"id,name\n1,{month}\n2,{month}\n")
    months = {"dagster/asset_partition_range_start": "2021-01", "dagster/asset_partition_range_end": "2021-02"}
    assert load(source, tags=months).success  # two events, both with the figures of the whole load
    watched.poll()
    assert watched.value("dagster_asset_materializations_total", asset_key="raw/shop/sales") == 2
    assert watched.value("millrace_source_rows_total", **SALES) == 4
    assert (
        watched.value("millrace_source_data_timestamp_seconds", **SALES)
        == dt.datetime(2021, 3, 1, tzinfo=dt.UTC).timestamp()
    )

    assert load(source).success  # of all months: an event for the new one with its rows, and one for the load
    watched.poll()
    assert watched.value("millrace_source_rows_total", **SALES) == 6
    assert (
        watched.value("millrace_source_data_timestamp_seconds", **SALES)
        == dt.datetime(2021, 4, 1, tzinfo=dt.UTC).timestamp()
    )


def test_the_month_that_is_under_way_reaches_until_now_and_no_further(watched: Watched, files: Path, load: Load):
    now = dt.datetime.now(dt.UTC)
    source = declare(files.parent, path="{month}.csv", months={"first": "2021-01"}, columns=TWO)
    (files / f"{now:%Y-%m}.csv").write_text("id,name\n1,a\n")
    assert load(source).success
    watched.poll()

    assert watched.value("millrace_source_data_timestamp_seconds", **SALES) == pytest.approx(now.timestamp(), abs=120)


def test_a_load_that_is_refused_for_its_rejects_counts_no_rows(watched: Watched, files: Path, load: Load):
    source = declare(files.parent, path="*.csv", columns=TWO)
    (files / "a.csv").write_text("id,name\n1,a\nx,b\n")
    assert not load(source).success
    watched.poll()

    assert watched.value("millrace_source_rows_total", **SALES) is None
    assert watched.value("dagster_asset_failures_total", asset_key="raw/shop/sales") == 1


def test_the_sums_go_on_over_a_restart_within_a_run_of_several_months(watched: Watched, files: Path, load: Load):
    source = declare(files.parent, path="{month}.csv", months={"first": "2021-01"}, columns=TWO)
    for month in ("2021-01", "2021-02"):
        (files / f"{month}.csv").write_text(f"id,name\n1,{month}\n")
    months = {"dagster/asset_partition_range_start": "2021-01", "dagster/asset_partition_range_end": "2021-02"}
    assert load(source, tags=months).success
    log = watched.database.rows(
        "SELECT id FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' ORDER BY id"
    )
    assert watched.exporter._tail
    (first,), (second,) = log
    read = watched.database.rows

    def until_the_first(statement: str, *values: object) -> list[tuple[Any, ...]]:
        found = read(statement, *values)
        return [row for row in found if row[0] <= first] if "FROM event_logs WHERE id >" in statement else found

    watched.database.rows = until_the_first  # type: ignore[method-assign]
    watched.poll()
    assert watched.value("millrace_source_rows_total", **SALES) == 2
    assert watched.exporter._tail.cursor < second
    watched.exporter.save()

    assert watched.again().start().value("millrace_source_rows_total", **SALES) == 2


def test_a_first_start_knows_when_every_asset_was_made_and_every_stream_loaded_last(
    settings: Settings, files: Path, load: Load, instance: dg.DagsterInstance
):
    source = declare(files.parent, path="*.csv", columns=TWO)
    (files / "a.csv").write_text("id,name\n1,a\n")
    assert load(source).success

    @dg.asset
    def other() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"dagster/row_count": 7})

    @dg.asset
    def wiped() -> None: ...

    dg.materialize([other, wiped], instance=instance)
    instance.wipe_assets([dg.AssetKey("wiped")])
    watched = Watched(settings).start()

    for asset in ("other", "raw/shop/sales"):
        made_at = watched.value("dagster_asset_last_materialization_timestamp_seconds", asset_key=asset)
        assert made_at == pytest.approx(time.time(), abs=60), asset
    assert watched.value("dagster_asset_last_materialization_timestamp_seconds", asset_key="wiped") is None
    assert watched.value("dagster_asset_last_row_count", asset_key="other") == 7
    assert watched.value("millrace_source_last_load_timestamp_seconds", **SALES) == pytest.approx(time.time(), abs=60)
    assert watched.value("millrace_source_rows_total", **SALES) == 0  # of the past nothing is counted
    (files / "b.csv").write_text("id,name\n2,a\n")
    assert load(source).success
    watched.poll()
    assert watched.value("millrace_source_rows_total", **SALES) == 1


def test_the_past_of_an_asset_that_no_location_has_any_more_goes_with_the_first_answer(
    settings: Settings, files: Path, load: Load
):
    source = declare(files.parent, path="*.csv", columns=TWO)
    (files / "a.csv").write_text("id,name\n1,a\n")
    assert load(source).success
    now = [1e9]
    watched = Watched(settings, clock=lambda: now[0]).start()
    assert watched.value("dagster_asset_last_materialization_timestamp_seconds", asset_key="raw/shop/sales")

    watched.workspace = located([])
    now[0] += 100
    watched.poll()
    assert watched.value("dagster_asset_last_materialization_timestamp_seconds") is None
    assert watched.value("millrace_source_last_load_timestamp_seconds") is None


def located(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the webserver says of a location with these assets."""
    repository = {"jobs": [], "schedules": [], "sensors": [], "assetNodes": nodes}
    answer = copy.deepcopy(NOTHING)
    entry = answer["workspaceOrError"]["locationEntries"][0]
    entry["locationOrLoadError"] = {"__typename": "RepositoryLocation", "repositories": [repository]}
    return answer


def test_a_stream_has_its_sums_and_its_limit_before_its_first_load_and_loses_them_with_it(settings: Settings):
    def node(*path: str, **metadata: float) -> dict[str, Any]:
        entries = [{"label": label, "floatValue": value} for label, value in metadata.items()]
        return {"assetKey": {"path": list(path)}, "groupName": "raw", "kinds": [], "owners": [],
                "isMaterializable": True, "metadataEntries": entries, "assetChecksOrError": {"checks": []}}  # fmt: skip

    nodes = [
        node("raw", "shop", "sales", max_age_hours=26.0),
        node("raw", "shop", "prices"),
        node("marts", "sales", max_age_hours=1.0),
    ]
    now = [1e9]
    watched = Watched(settings, clock=lambda: now[0])
    watched.workspace = located(nodes)
    watched.start()

    for metric in ("millrace_source_rows_total", "millrace_source_rejected_rows_total"):
        assert watched.value(metric, **SALES) == 0
        assert watched.value(metric, source="shop", stream="prices") == 0
        assert watched.value(metric, source="sales") is None
    assert watched.value("millrace_source_max_age_seconds", **SALES) == 26 * 3600
    assert watched.value("millrace_source_max_age_seconds") == 26 * 3600

    watched.workspace = located(nodes[1:])
    now[0] += 100
    watched.poll()
    assert watched.value("millrace_source_rows_total", **SALES) is None
    assert watched.value("millrace_source_max_age_seconds") is None
    assert watched.value("millrace_source_rows_total", source="shop", stream="prices") == 0
