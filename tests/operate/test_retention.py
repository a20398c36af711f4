"""Removing old history from a real instance: what assets are keeps, how they came to be so goes."""

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.test_utils import create_run_for_test

from pipeline.errors import ConfigError
from pipeline.operate.database import connect
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.operate.retention import Purged, purge, rotate_log
from pipeline.operate.store import open_store
from pipeline.settings import Settings

MONTHS = dg.StaticPartitionsDefinition(["2021-01", "2021-02", "2021-03", "2021-04"])
NOW = datetime.now(UTC)
IN_40_DAYS = NOW + timedelta(days=40)


class Threshold(dg.Config):
    """Rows, and whether March fails."""

    rows: int = 1


@dg.asset(partitions_def=MONTHS)
def trips(context: dg.AssetExecutionContext, config: Threshold) -> dg.MaterializeResult[None]:
    if context.partition_key == "2021-03":
        raise dg.Failure("no file", allow_retries=False)
    return dg.MaterializeResult(metadata={"rows": config.rows}, tags={"source": "file"})


@dg.asset
def zones() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 265}, data_version=dg.DataVersion("1"))


@dg.asset_check(asset=zones)
def zones_are_unique(config: Threshold) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=config.rows < 3, metadata={"duplicates": config.rows})


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    ensure_instance(settings)
    with open_instance(settings) as opened:
        yield opened


def load(instance: dg.DagsterInstance, *, month: str | None = None, rows: int = 1) -> str:
    """A run of one month of trips, or of zones and their check; its id."""
    config: dict[str, Any] = {"config": {"rows": rows}}
    chosen: list[Any] = [trips] if month else [zones, zones_are_unique]
    result = dg.materialize(
        chosen,
        partition_key=month,
        instance=instance,
        raise_on_error=False,
        run_config={"ops": {"trips" if month else "zones_zones_are_unique": config}},
    )
    return result.run_id


def present_state(instance: dg.DagsterInstance) -> dict[str, Any]:
    """All that the UI shows about the assets now."""
    store = instance.event_log_storage
    latest = {key: instance.get_latest_materialization_event(key) for key in (trips.key, zones.key)}
    check = store.get_latest_asset_check_execution_by_key([zones_are_unique.check_key])[zones_are_unique.check_key]
    failed = store.get_latest_asset_partition_materialization_attempts_without_materializations(trips.key)
    status = get_and_update_asset_status_cache_value(instance, trips.key, MONTHS)
    return {
        "materialized": instance.get_materialized_partitions(trips.key),
        "by partition": store.get_latest_storage_id_by_partition(trips.key, dg.DagsterEventType.ASSET_MATERIALIZATION),
        "latest": {key: event and (event.run_id, event.asset_materialization) for key, event in latest.items()},
        "failed": {month: instance.get_run_by_id(run_id).status for month, (run_id, _) in failed.items()},
        "shown as failed": status.deserialize_failed_partition_subsets(MONTHS).get_partition_keys(),
        "check": (check.run_id, check.status, check.event.dagster_event.event_specific_data.metadata),
    }


def count(settings: Settings, table: str) -> int:
    with closing(connect(settings)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        ((rows,),) = cursor.fetchall()
    return int(rows)


def test_old_runs_go_and_the_state_of_every_asset_stays(settings: Settings, instance: dg.DagsterInstance) -> None:
    superseded = [load(instance, month="2021-01"), load(instance), load(instance, month="2021-03")]
    current = [
        load(instance, month="2021-01", rows=2),
        load(instance, month="2021-02"),
        load(instance, month="2021-03"),
    ]
    current.append(load(instance, rows=3))
    before, events = present_state(instance), count(settings, "event_logs")

    purged = purge(settings, older_than_days=30, now=IN_40_DAYS)

    assert present_state(instance) == before
    assert before["materialized"] == {"2021-01", "2021-02"}
    assert before["failed"] == {"2021-03": dg.DagsterRunStatus.FAILURE}
    assert {run.run_id for run in instance.get_runs()} == set(current)
    assert [instance.all_logs(run_id) for run_id in superseded] == [[], [], []]
    assert purged.runs == 3
    assert count(settings, "event_logs") == events - purged.events < events / 3
    assert count(settings, "run_tags WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.run_id = run_tags.run_id)") == 0
    assert count(settings, "asset_check_executions") == 1
    tagless = "asset_event_tags WHERE NOT EXISTS (SELECT 1 FROM event_logs e WHERE e.id = event_id)"
    assert count(settings, tagless) == 0


def test_a_run_that_is_new_or_still_going_keeps_everything(settings: Settings, instance: dg.DagsterInstance) -> None:
    for _ in range(2):
        load(instance)
    going = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
    events = count(settings, "event_logs")

    new = purge(settings, older_than_days=30, now=NOW + timedelta(days=29))
    load(instance)
    purge(settings, older_than_days=30, now=IN_40_DAYS)

    assert new == Purged()
    assert count(settings, "event_logs") < events
    assert instance.get_run_by_id(going.run_id)


def test_purging_again_or_twice_at_once_finds_nothing_more(settings: Settings, instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        load(instance)

    assert purge(settings, older_than_days=30, now=IN_40_DAYS).runs == 2
    assert purge(settings, older_than_days=30, now=IN_40_DAYS) == Purged()


def test_an_exhausted_budget_leaves_the_rest_to_the_next_call(settings: Settings, instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        load(instance)

    assert purge(settings, older_than_days=30, now=IN_40_DAYS, budget_seconds=0).runs == 0
    assert purge(settings, older_than_days=30, now=IN_40_DAYS).runs == 2


def test_the_newest_tick_of_a_schedule_stays_and_older_ones_go(settings: Settings) -> None:
    ensure_instance(settings)
    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        for selector, days in (("monthly", 90), ("monthly", 60), ("daily", 40), ("daily", 1)):
            cursor.execute(
                "INSERT INTO job_ticks (selector_id, status, timestamp) VALUES (%s, 'SUCCESS', %s)",
                [selector, NOW.replace(tzinfo=None) - timedelta(days=days)],
            )
        cursor.execute(
            "INSERT INTO bulk_actions (key, status, timestamp) VALUES ('old', 'COMPLETED_SUCCESS', %(at)s), ('going', 'REQUESTED', %(at)s)",
            {"at": NOW.replace(tzinfo=None) - timedelta(days=90)},
        )

    purged = purge(settings, older_than_days=30, now=NOW)

    assert (purged.ticks, purged.backfills) == (2, 1)
    assert count(settings, "job_ticks WHERE selector_id = 'monthly'") == 1
    assert count(settings, "bulk_actions WHERE key = 'going'") == 1


def test_old_compute_and_rotated_logs_go_and_present_ones_stay(settings: Settings) -> None:
    ensure_instance(settings)
    old, new = settings.log_path / "compute" / "run1" / "a.err", settings.log_path / "compute" / "run2" / "a.err"
    rotated, present = settings.log_path / "old" / "daemon-20200101T000000Z.log", settings.log_path / "daemon.log"
    for file in (old, new, rotated, present):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("line")
    long_ago = (NOW - timedelta(days=31)).timestamp()
    for path in (old, old.parent, rotated, present):
        os.utime(path, (long_ago, long_ago))

    assert purge(settings, older_than_days=30, now=NOW).files == 2
    assert not old.exists()
    assert new.exists()
    assert not rotated.exists()
    assert present.exists()


def test_a_long_log_is_moved_away_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    with log.open("a") as writer:
        print("before", file=writer, flush=True)

        assert not rotate_log(log, now=NOW)
        assert rotate_log(log, now=NOW, over_bytes=3)

        print("after", file=writer, flush=True)
    assert log.read_text() == "after\n"
    (moved,) = (tmp_path / "old").iterdir()
    assert moved.read_text() == "before\n"


def test_old_output_of_runs_goes_where_it_lies_in_a_bucket_or_a_folder_of_its_own(
    settings: Settings, tmp_path: Path, bucket: str
) -> None:
    ensure_instance(settings)
    folder = settings.model_copy(update={"compute_logs": str(tmp_path / "logs")})
    old = tmp_path / "logs" / "run1" / "a.err"
    old.parent.mkdir(parents=True)
    old.write_text("line")
    os.utime(old, (0, 0))
    in_bucket = settings.model_copy(update={"compute_logs": "s3://company/logs", "s3_endpoint": bucket})
    store = open_store("s3://company/logs", in_bucket)
    store.write("run1/a.err", [b"line"])

    assert purge(folder, older_than_days=30, now=NOW).files == 1
    assert not old.exists()
    assert purge(in_bucket, older_than_days=30, now=datetime.now(UTC)).files == 0
    assert purge(in_bucket, older_than_days=30, now=datetime.now(UTC) + timedelta(days=31)).files == 1
    assert store.sizes() == {}


def test_a_place_that_is_not_of_logs_alone_is_refused_and_nothing_is_deleted(settings: Settings, bucket: str) -> None:
    ensure_instance(settings)
    later = datetime.now(UTC) + timedelta(days=31)
    store = open_store("s3://company/lake", settings.model_copy(update={"s3_endpoint": bucket}))
    store.write("t/a.parquet", [b"rows"])
    for logs in ("s3://company", "s3://company/", "s3://company/lake", "s3://company/lake/"):
        wrong = settings.model_copy(
            update={"compute_logs": logs, "lake_data": "s3://company/lake/of/all", "s3_endpoint": bucket}
        )
        with pytest.raises(ConfigError, match="a place of its own"):
            purge(wrong, older_than_days=30, now=later)
    assert len(store.sizes()) == 1
