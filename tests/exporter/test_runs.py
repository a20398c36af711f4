"""Runs of a real Dagster, as a scrape shows them afterwards."""

import datetime as dt
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData

from pipeline.exporter import runs as runs_module
from pipeline.settings import Settings
from tests.exporter.conftest import Watched

JOB = {"code_location": "unknown", "job_name": "__ephemeral_asset_job__"}


@dg.asset
def good() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"dagster/row_count": 5})


@dg.asset
def bad() -> None:
    raise ValueError("on purpose")


@dg.asset_check(asset=good)
def holds() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN)


def test_runs_are_counted_by_how_they_ended_and_why(watched: Watched, instance: dg.DagsterInstance):
    dg.materialize([good], instance=instance)
    dg.materialize([good, bad], instance=instance, raise_on_error=False)
    watched.poll()

    assert watched.value("dagster_runs_created_total", **JOB, trigger="manual") == 2
    assert watched.value("dagster_runs_completed_total", **JOB, status="success") == 1
    assert watched.value("dagster_runs_completed_total", **JOB, status="failure") == 1
    assert watched.value("dagster_runs_completed_total", **JOB, status="canceled") == 0
    assert watched.value("dagster_run_failures_total", **JOB, reason="step_failure") == 1
    assert watched.value("dagster_run_duration_seconds_count", **JOB) == 1
    assert watched.value("dagster_job_recent_failure_ratio", **JOB) == 0.5
    assert watched.value("dagster_job_recent_runs", **JOB) == 2
    ended_at = watched.value("dagster_run_last_completed_timestamp_seconds", **JOB, status="failure")
    assert ended_at == pytest.approx(time.time(), abs=60)
    assert watched.value("dagster_steps_completed_total", **JOB, status="success") == 2
    assert watched.value("dagster_steps_completed_total", **JOB, status="failure") == 1


def test_assets_and_checks_are_counted_and_what_a_failed_run_did_not_make_has_failed(
    watched: Watched, instance: dg.DagsterInstance
):
    dg.materialize([good, bad, holds], instance=instance, raise_on_error=False)
    watched.poll()

    assert watched.value("dagster_asset_materializations_total", asset_key="good") == 1
    assert watched.value("dagster_asset_failures_total", asset_key="good") == 0
    assert watched.value("dagster_asset_failures_total", asset_key="bad") == 1
    assert watched.value("dagster_asset_last_row_count", asset_key="good") == 5
    assert watched.value("dagster_asset_last_materialization_timestamp_seconds", asset_key="good")
    assert watched.value("dagster_asset_check_evaluations_total", check="holds", result="failed", severity="warn") == 1
    assert watched.value("dagster_asset_check_last_passed", check="holds") == 0
    (assets,) = (topic for topic in watched.exporter.topics if topic.name == "assets")
    assert not assets.dump()["planned"]  # nothing is kept of a run that ended
    assert not assets.dump()["compute"]


def test_a_run_under_way_is_seen_with_its_age_until_it_ends(watched: Watched, instance: dg.DagsterInstance):
    run = instance.create_run_for_job(_job())
    watched.poll()
    assert watched.value("dagster_runs_in_progress", job_name="nothing", status="not_started") == 1
    assert watched.value("dagster_run_oldest_status_timestamp_seconds", job_name="nothing", status="not_started")

    instance.report_run_canceled(run)
    watched.poll()
    assert watched.value("dagster_runs_in_progress", job_name="nothing", status="not_started") == 0
    assert watched.value("dagster_runs_completed_total", job_name="nothing", status="canceled") == 1


def test_runs_under_way_are_told_by_the_location_that_their_tags_name_even_if_these_come_late(
    watched: Watched, instance: dg.DagsterInstance
):
    run = instance.create_run_for_job(_job())
    watched.poll()
    assert watched.value("dagster_runs_in_progress", code_location="unknown", status="not_started") == 1

    instance.add_run_tags(run.run_id, {".dagster/repository": "__repository__@somewhere"})
    watched.poll()
    assert watched.value("dagster_runs_in_progress", code_location="somewhere", status="not_started") == 1
    assert watched.value("dagster_runs_in_progress", code_location="unknown", status="not_started") in (0, None)


def sample(instance: dg.DagsterInstance, run: dg.DagsterRun, **figures: Any) -> None:
    """Report as the process of a run does."""
    data = EngineEventData(metadata={"millrace/resources": dg.MetadataValue.json(figures)})
    instance.report_engine_event("Resources in use.", run, data)


def test_what_a_run_reports_of_its_memory_and_cpu_is_told_while_it_runs_and_summed_when_it_ends(
    watched: Watched, instance: dg.DagsterInstance
):
    first, second = (instance.create_run_for_job(_job()) for _ in range(2))
    sample(instance, first, working_set=100, limit=1000, peak=150, cpu_seconds=2)
    sample(instance, second, working_set=850, limit=1000, peak=900, cpu_seconds=1)
    watched.poll()
    assert watched.value("dagster_run_memory_working_set_bytes", job_name="nothing") == 850  # of the hungriest
    assert watched.value("dagster_run_memory_limit_bytes", job_name="nothing") == 1000

    sample(instance, second, working_set=10, limit=1000, peak=950, cpu_seconds=4, oom_kills=1)
    instance.report_run_canceled(second)
    watched.poll()
    assert watched.value("dagster_run_memory_working_set_bytes", job_name="nothing") == 100
    assert watched.value("dagster_run_cpu_seconds_total", job_name="nothing") == 6
    assert watched.value("dagster_run_oom_kills_total", job_name="nothing") == 1
    assert watched.value("dagster_run_last_peak_memory_bytes", job_name="nothing") == 950
    assert watched.value("dagster_run_peak_memory_ratio_bucket", job_name="nothing", le="0.9") == 0
    assert watched.value("dagster_run_peak_memory_ratio_bucket", job_name="nothing", le="1.0") == 1


def test_a_run_of_which_nothing_is_heard_any_more_is_not_shown(settings: Settings, instance: dg.DagsterInstance):
    now = [time.time()]
    watched = Watched(settings, clock=lambda: now[0]).start()
    run = instance.create_run_for_job(_job())
    sample(instance, run, working_set=900, limit=1000, peak=900)
    watched.poll()
    assert watched.value("dagster_run_memory_working_set_bytes", job_name="nothing") == 900
    now[0] += 1000
    watched.poll()
    assert watched.value("dagster_run_memory_working_set_bytes", job_name="nothing") is None


def test_the_cpu_of_a_run_is_summed_once_though_it_was_silent_for_long_or_tells_after_its_end(
    settings: Settings, instance: dg.DagsterInstance
):
    now = [time.time()]
    watched = Watched(settings, clock=lambda: now[0]).start()
    silent, ended = (instance.create_run_for_job(_job()) for _ in range(2))
    sample(instance, silent, cpu_seconds=100)
    sample(instance, ended, cpu_seconds=100)
    watched.poll()
    now[0] += 1000
    watched.poll()
    sample(instance, silent, cpu_seconds=110)
    instance.report_run_canceled(ended)
    sample(instance, ended, cpu_seconds=150)
    watched.poll()
    assert watched.value("dagster_run_cpu_seconds_total", job_name="nothing") == 210

    watched.exporter.save()
    second = watched.again().start()
    sample(instance, ended, cpu_seconds=160)
    second.poll()
    assert second.value("dagster_run_cpu_seconds_total", job_name="nothing") == 210


def test_fields_that_a_newer_version_saved_are_left_out_and_the_rest_is_counted_on(
    watched: Watched, instance: dg.DagsterInstance, event: Callable[..., None]
):
    run = instance.create_run_for_job(_job())
    event("PIPELINE_ENQUEUED", run.run_id)
    sample(instance, run, cpu_seconds=5)
    watched.poll()
    kept = watched.exporter._dump()

    def newer() -> Iterator[tuple[str, str, Any]]:
        for what, name, dumped in kept:
            if name == "runs":
                dumped["lives"][run.run_id]["of_tomorrow"] = 1
            elif name == "resources":
                dumped[0][-1]["of_tomorrow"] = 1
            yield what, name, dumped

    watched.exporter._dump = newer  # type: ignore[method-assign]
    watched.exporter.save()
    second = watched.again().start()
    event("PIPELINE_START", run.run_id)
    second.poll()
    assert second.value("dagster_runs_created_total") == 1
    assert second.value("dagster_run_cpu_seconds_total") == 5


def test_more_runs_under_way_than_are_remembered_are_created_once(
    watched: Watched, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs_module, "MAX_REMEMBERED", 10)
    for kind in ("PIPELINE_ENQUEUED", "PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_SUCCESS"):
        for number in range(30):
            event(kind, f"r{number}")
        watched.poll()
        watched.exporter.save()
        watched = watched.again().start()

    event("PIPELINE_START", "without a queue")
    watched.poll()
    assert watched.value("dagster_runs_created_total") == 31
    assert watched.value("dagster_runs_completed_total", status="success") == 30


def test_room_on_volumes_is_as_the_last_run_saw_it_and_stays_over_a_restart(
    watched: Watched, instance: dg.DagsterInstance
):
    run = instance.create_run_for_job(_job())
    sample(instance, run, working_set=1, volumes={"lake": [900, 1000], "logs": [1, 2]})
    sample(instance, run, working_set=1, volumes={"lake": [50, 1000]})
    watched.poll()
    assert watched.value("millrace_volume_free_bytes", volume="lake") == 50
    assert watched.value("millrace_volume_size_bytes", volume="lake") == 1000
    watched.exporter.save()
    assert watched.again().start().value("millrace_volume_free_bytes", volume="logs") == 1


def test_a_volume_of_which_no_run_has_told_for_a_day_is_gone(settings: Settings, instance: dg.DagsterInstance):
    now = [time.time()]
    watched = Watched(settings, clock=lambda: now[0]).start()
    run = instance.create_run_for_job(_job())
    sample(instance, run, working_set=1, volumes={"old": [1, 1000]})
    watched.poll()
    now[0] += 80_000
    watched.poll()
    assert watched.value("millrace_volume_free_bytes", volume="old") == 1
    watched.exporter.save()

    now[0] += 10_000
    watched.database.close()
    second = Watched(settings, clock=lambda: now[0]).start()
    assert second.value("millrace_volume_free_bytes", volume="old") is None
    assert second.value("millrace_volume_size_bytes", volume="old") is None


def test_a_run_that_ran_out_of_memory_has_that_reason_whoever_noticed(watched: Watched, instance: dg.DagsterInstance):
    by_launcher, by_worker, other = (instance.create_run_for_job(_job()) for _ in range(3))
    for run in (by_worker, other):
        instance.report_engine_event("Started.", run)
        instance.handle_new_event(_started(run))
    instance.report_engine_event("It ran out of memory: the kernel killed one of the run's child processes.", by_worker)
    instance.report_run_failed(by_launcher, "Its container dagster ran out of memory.")
    instance.report_run_failed(by_worker, "Steps failed.")
    instance.report_run_failed(other, "Steps failed.")
    watched.poll()

    assert watched.value("dagster_run_failures_total", job_name="nothing", reason="out_of_memory") == 2
    assert watched.value("dagster_run_failures_total", job_name="nothing") == 3


def _started(run: dg.DagsterRun) -> dg.EventLogEntry:
    event = DagsterEvent(DagsterEventType.PIPELINE_START.value, run.job_name, message="started")
    return dg.EventLogEntry(None, 20, "", run.run_id, time.time(), job_name=run.job_name, dagster_event=event)


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing_at_all() -> None: ...

    @dg.job(name="nothing")
    def nothing() -> None:
        nothing_at_all()

    return nothing


@pytest.mark.parametrize(
    ("tags", "trigger"),
    [
        ({"dagster/schedule_name": "s"}, "schedule"),
        ({"dagster/sensor_name": "s"}, "sensor"),
        ({"dagster/backfill": "b", "dagster/sensor_name": "s"}, "backfill"),
        ({"dagster/auto_materialize": "true", "dagster/sensor_name": "s"}, "automation"),
        ({"dagster/retry_number": "1", "dagster/schedule_name": "s"}, "retry"),
    ],
)
def test_what_started_a_run_is_told_by_its_tags(
    watched: Watched, instance: dg.DagsterInstance, tags: dict[str, str], trigger: str
):
    dg.materialize([good], instance=instance, tags={**tags, ".dagster/repository": "__repository__@somewhere"})
    watched.poll()

    assert watched.value("dagster_runs_created_total", code_location="somewhere", trigger=trigger) == 1
    assert watched.value("dagster_run_retries_total", code_location="somewhere") == (1 if trigger == "retry" else 0)


@dg.multi_asset(specs=[dg.AssetSpec("slow"), dg.AssetSpec("swift")])
def together() -> Iterator[dg.MaterializeResult[None]]:
    time.sleep(0.2)
    yield dg.MaterializeResult("slow", metadata={"Execution Duration": 3.0})
    yield dg.MaterializeResult("swift", metadata={"Execution Duration": 1.0})


@dg.asset
def lost() -> None:
    time.sleep(0.1)
    raise ValueError("on purpose")


def test_the_time_of_a_step_is_its_assets_by_what_they_tell_and_a_failed_one_has_cost_it_too(
    watched: Watched, instance: dg.DagsterInstance
):
    def seconds(asset: str) -> float:
        return watched.value("dagster_asset_compute_seconds_total", asset_key=asset) or 0.0

    dg.materialize([together], instance=instance)
    dg.materialize([lost], instance=instance, raise_on_error=False)
    watched.poll()

    assert 0.2 <= seconds("slow") + seconds("swift") < 5
    assert seconds("slow") == pytest.approx(3 * seconds("swift"))
    assert 0.1 <= seconds("lost") < 5
    assert watched.value("millrace_price_cpu_hour") == watched.settings.price_cpu_hour
    assert watched.value("millrace_price_gib_hour") == watched.settings.price_gib_hour


def test_a_step_that_is_under_way_at_a_restart_is_counted_once_when_its_run_is_killed(
    watched: Watched, event: Callable[..., None]
):
    planned = json.dumps(["a"])
    event("ASSET_MATERIALIZATION_PLANNED", at=100, step="make", asset=planned)
    event("STEP_START", at=110, step="make")
    watched.poll()
    watched.exporter.save()
    second = watched.again().start()
    event("PIPELINE_FAILURE", at=140)
    event("PIPELINE_FAILURE", at=150)
    second.poll()

    assert second.value("dagster_asset_compute_seconds_total", asset_key="a") == 30


def test_a_run_tells_how_long_after_its_schedule_it_began_and_its_repetition_does_not(
    watched: Watched, instance: dg.DagsterInstance
):
    planned = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=7)
    tags = {
        "dagster/schedule_name": "s",
        ".dagster/scheduled_execution_time": planned.isoformat(),
        ".dagster/repository": "__repository__@somewhere",
    }
    dg.materialize([good], instance=instance, tags=tags)
    dg.materialize([good], instance=instance, tags={**tags, "dagster/retry_number": "1"})
    dg.materialize([good], instance=instance, tags={".dagster/repository": "__repository__@somewhere"})
    watched.poll()

    assert watched.value("dagster_schedule_run_delay_seconds_count", code_location="somewhere") == 1
    assert watched.value("dagster_schedule_run_delay_seconds_sum") == pytest.approx(420, abs=60)
    assert watched.value("dagster_schedule_run_delay_seconds_bucket", le="300.0") == 0


def test_a_freshness_policy_tells_the_state_that_it_found_last(watched: Watched, instance: dg.DagsterInstance):
    for before, after in ((FreshnessState.UNKNOWN, FreshnessState.PASS), (FreshnessState.PASS, FreshnessState.FAIL)):
        change = FreshnessStateChange(
            key=good.key, new_state=after, previous_state=before, state_change_timestamp=time.time()
        )
        instance._report_runless_asset_event(change)
    watched.poll()

    assert watched.value("dagster_asset_freshness_state", asset_key="good", state="fail") == 1
    assert watched.value("dagster_asset_freshness_state", asset_key="good") == 1  # and no other


def test_a_job_and_an_asset_that_take_twice_as_long_as_usual_are_told_by_how_much(
    watched: Watched, sql: Callable[..., None]
):
    sql(
        """INSERT INTO event_logs (run_id, event, dagster_event_type, step_key, asset_key, timestamp)
           SELECT 'run-' || n, '{}', kind, CASE WHEN kind NOT LIKE 'PIPELINE%' THEN 'make' END,
                  CASE kind WHEN 'ASSET_MATERIALIZATION' THEN '["made"]' END,
                  to_timestamp(1700000000 + 1000 * n + CASE WHEN ends THEN CASE WHEN n > 40 THEN 200 ELSE 100 END ELSE 0 END)
                    AT TIME ZONE 'UTC'
           FROM generate_series(1, 50) n, (VALUES (1, 'PIPELINE_START', false), (2, 'STEP_START', false),
                  (3, 'ASSET_MATERIALIZATION', true), (4, 'STEP_SUCCESS', true), (5, 'PIPELINE_SUCCESS', true)) AS line (place, kind, ends)
           ORDER BY n, place"""
    )
    watched.poll()

    for what, labels in (("job", {"job_name": "unknown"}), ("asset", {"asset_key": "made"})):
        assert watched.value(f"dagster_{what}_duration_baseline_runs", **labels) == 30
        assert watched.value(f"dagster_{what}_duration_baseline_seconds", **labels) == pytest.approx(100)
        ratio = watched.value(f"dagster_{what}_duration_regression_ratio", **labels)
        zscore = watched.value(f"dagster_{what}_duration_regression_zscore", **labels)
        assert ratio is not None
        assert 1.15 < ratio < 2, what
        assert zscore is not None
        assert zscore > 4, what


def test_assets_of_one_step_each_take_as_long_as_they_tell(watched: Watched, event: Callable[..., None]):
    def made(number: int, asset: str, seconds: float) -> None:
        entries = [{"label": "Execution Duration", "entry_data": {"value": seconds}}]
        body = {"dagster_event": {"event_specific_data": {"materialization": {"metadata_entries": entries}}}}
        event(
            "ASSET_MATERIALIZATION", f"r{number}", at=10, step="dbt", asset=json.dumps([asset]), body=json.dumps(body)
        )

    for number in range(30):
        event("ASSET_MATERIALIZATION_PLANNED", f"r{number}", at=0, step="dbt", asset='["skipped"]')
        event("STEP_START", f"r{number}", at=0, step="dbt")
        made(number, "slow", 7.0)
        made(number, "swift", 2.0)
        event("STEP_SUCCESS", f"r{number}", at=100, step="dbt")
    watched.poll()

    assert watched.value("dagster_asset_duration_baseline_seconds", asset_key="slow") == pytest.approx(7)
    assert watched.value("dagster_asset_duration_baseline_seconds", asset_key="swift") == pytest.approx(2)
    assert watched.value("dagster_asset_duration_baseline_runs", asset_key="skipped") is None


def test_an_asset_with_half_its_usual_rows_is_far_from_them_and_what_is_no_count_is_left_out(
    watched: Watched, instance: dg.DagsterInstance
):
    for rows in (-5, float("nan"), *(1000 + number % 3 for number in range(12)), float("inf"), 500, -1):
        instance.report_runless_asset_event(dg.AssetMaterialization("made", metadata={"dagster/row_count": rows}))
    watched.poll()

    assert watched.value("dagster_asset_last_row_count", asset_key="made") == 500
    assert watched.value("dagster_asset_row_count_baseline", asset_key="made") == pytest.approx(1001, abs=1)
    zscore = watched.value("dagster_asset_row_count_zscore", asset_key="made")
    assert zscore is not None
    assert zscore < -6
