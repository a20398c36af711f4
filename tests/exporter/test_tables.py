"""What is read from Dagster's tables and the lake's, put there by Dagster and the lake themselves."""

import time
from collections.abc import Callable
from contextlib import closing

import dagster as dg
import psycopg2
import pytest
import yaml
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.dagster_run import RunOpConcurrency
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from pipeline.cgroup import Usage
from pipeline.errors import ConfigError
from pipeline.lake.connection import Lake
from pipeline.operate.database import connect
from pipeline.operate.service_memory import tell
from pipeline.settings import Settings
from tests.conftest import administrators_url
from tests.exporter.conftest import NOTHING, Watched

EVERY_MINUTE = {"type": "schedule", "name": "every_minute", "code_location": "here"}


@pytest.fixture
def schedule(instance: dg.DagsterInstance) -> Callable[[TickStatus], Callable[[], object]]:
    """Begins a tick of a schedule; what it gives ends it."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    origin = RemoteInstigatorOrigin(repository, "every_minute")
    state = InstigatorState(
        origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, ScheduleInstigatorData("* * * * *")
    )
    instance.add_instigator_state(state)

    def begin(ends: TickStatus) -> Callable[[], object]:
        tick = instance.create_tick(
            TickData(
                origin.get_id(),
                "every_minute",
                InstigatorType.SCHEDULE,
                TickStatus.STARTED,
                time.time() - 3,
                selector_id=state.selector_id,
            )
        )
        error = SerializableErrorInfo("on purpose", [], None) if ends == TickStatus.FAILURE else None
        ended = tick.with_status(ends, error=error)
        return lambda: instance.update_tick(ended)

    return begin


def test_a_tick_is_counted_once_when_it_ends(watched: Watched, schedule: Callable[..., Callable[[], object]]):
    end = schedule(TickStatus.FAILURE)
    watched.poll()
    assert watched.value("dagster_ticks_total", **EVERY_MINUTE) is None

    end()
    watched.poll()
    watched.poll()
    assert watched.value("dagster_ticks_total", **EVERY_MINUTE, status="failure") == 1
    assert watched.value("dagster_tick_duration_seconds_sum", **EVERY_MINUTE) == pytest.approx(3, abs=2)
    assert watched.value("dagster_tick_consecutive_failures", **EVERY_MINUTE) == 1
    assert watched.value("dagster_tick_last_timestamp_seconds", **EVERY_MINUTE) == pytest.approx(time.time(), abs=60)


def test_ticks_and_backfills_of_tables_that_were_emptied_are_counted_on(
    watched: Watched, schedule: Callable[..., Callable[[], object]], sql: Callable[..., None]
):
    backfill = "INSERT INTO bulk_actions (key, status, timestamp, action_type) VALUES (md5(random()::text), 'COMPLETED_SUCCESS', now(), 'x')"
    for _ in range(3):
        schedule(TickStatus.FAILURE)()
        sql(backfill)
    watched.poll()
    sql("TRUNCATE job_ticks, bulk_actions RESTART IDENTITY")
    watched.poll()
    schedule(TickStatus.SUCCESS)()
    sql(backfill)
    watched.poll()

    assert watched.value("dagster_ticks_total", **EVERY_MINUTE, status="failure") == 3
    assert watched.value("dagster_ticks_total", **EVERY_MINUTE, status="success") == 1
    assert watched.value("dagster_backfills_completed_total", status="completed_success") == 4


def test_failures_in_a_row_end_with_a_success_and_a_restart_forgets_no_open_tick(
    watched: Watched, schedule: Callable[..., Callable[[], object]]
):
    for _ in range(2):
        schedule(TickStatus.FAILURE)()
    open_tick = schedule(TickStatus.SUCCESS)
    watched.poll()
    assert watched.value("dagster_tick_consecutive_failures", **EVERY_MINUTE) == 2
    watched.exporter.save()

    second = watched.again()
    open_tick()
    second.start()
    assert second.value("dagster_ticks_total", **EVERY_MINUTE, status="failure") == 2
    assert second.value("dagster_ticks_total", **EVERY_MINUTE, status="success") == 1
    assert second.value("dagster_tick_consecutive_failures", **EVERY_MINUTE) == 0


def test_a_tick_that_failed_and_is_tried_again_ends_as_it_does_in_the_end(
    watched: Watched, schedule: Callable[..., Callable[[], object]], sql: Callable[..., None]
):
    schedule(TickStatus.FAILURE)()
    watched.poll()
    watched.poll()
    assert watched.value("dagster_ticks_total", **EVERY_MINUTE, status="failure") == 1
    watched.exporter.save()

    second = watched.again().start()
    sql("UPDATE job_ticks SET status = 'STARTED'")
    second.poll()
    sql("UPDATE job_ticks SET status = 'SUCCESS'")
    second.poll()
    second.poll()
    assert second.value("dagster_ticks_total", **EVERY_MINUTE, status="failure") == 1
    assert second.value("dagster_ticks_total", **EVERY_MINUTE, status="success") == 1
    assert second.value("dagster_tick_consecutive_failures", **EVERY_MINUTE) == 0

    schedule(TickStatus.FAILURE)()
    schedule(TickStatus.SUCCESS)()
    second.poll()
    sql("UPDATE job_ticks SET status = 'SUCCESS' WHERE status = 'FAILURE'")  # not the newest any more
    second.poll()
    assert second.value("dagster_ticks_total", **EVERY_MINUTE, status="success") == 2


def test_daemons_tell_when_they_were_alive(watched: Watched, instance: dg.DagsterInstance):
    now = time.time()
    instance.add_daemon_heartbeat(DaemonHeartbeat(now, "SENSOR", "id", []))
    watched.poll()

    beat = watched.value("dagster_daemon_last_heartbeat_timestamp_seconds", daemon_type="SENSOR")
    assert beat == pytest.approx(now)
    assert watched.value("dagster_daemon_heartbeat_errors", daemon_type="SENSOR") == 0


def test_a_daemon_that_is_required_and_never_reported_is_as_old_as_the_requirement_even_after_a_restart(
    settings: Settings, instance: dg.DagsterInstance
):
    now = [1e9]
    instance.add_daemon_heartbeat(DaemonHeartbeat(5e8, "BACKFILL", "id", []))  # of an instance that ran one once
    watched = Watched(settings, clock=lambda: now[0])
    statuses = [{"daemonType": kind, "required": kind == "SENSOR"} for kind in ("SENSOR", "BACKFILL")]
    watched.workspace = {**NOTHING, "instance": {"daemonHealth": {"allDaemonStatuses": statuses}}}
    watched.start()
    now[0] += 600
    watched.poll()
    watched.exporter.save()
    second = watched.again().start()

    for each, required in (("SENSOR", 1e9), ("BACKFILL", None)):
        name = "dagster_daemon_last_heartbeat_timestamp_seconds"
        assert watched.value(name, daemon_type=each, required="true") == required
    assert second.value("dagster_daemon_last_heartbeat_timestamp_seconds", required="true") == 1e9


def test_pools_tell_their_slots_and_who_waits(watched: Watched, instance: dg.DagsterInstance):
    storage = instance.event_log_storage
    storage.set_concurrency_slots("api", 1)
    for step in ("first", "second"):
        storage.claim_concurrency_slot("api", "run", step)
    watched.poll()

    assert watched.value("dagster_pool_slots_limit", pool="api") == 1
    assert watched.value("dagster_pool_slots_claimed", pool="api") == 1
    assert watched.value("dagster_pool_steps_pending", pool="api") == 1
    assert watched.value("dagster_pool_oldest_pending_timestamp_seconds", pool="api") == pytest.approx(
        time.time(), abs=60
    )


@pytest.fixture
def put_run(instance: dg.DagsterInstance, sql: Callable[..., None]) -> Callable[..., None]:
    """Puts a run with these tags and pools into the database, in any status."""

    def put(status: str, *, pools: tuple[str, ...] = (), **tags: str) -> None:
        needs = (
            RunOpConcurrency(root_key_counts={}, has_unconstrained_root_nodes=False, all_pools=set(pools))
            if pools
            else None
        )
        run = instance.add_run(dg.DagsterRun("job", tags=tags, run_op_concurrency=needs))
        sql("UPDATE runs SET status = %s WHERE run_id = %s", status, run.run_id)

    return put


def test_pools_whose_slots_runs_take_tell_the_runs(
    watched: Watched, instance: dg.DagsterInstance, put_run: Callable[..., None]
):
    for pool, slots in (("api", 1), ("idle", 2)):
        instance.event_log_storage.set_concurrency_slots(pool, slots)
    watched = with_instance(watched, poolConfig={"poolGranularity": "run"})
    for status in ("STARTED", "QUEUED", "QUEUED", "SUCCESS"):
        put_run(status, pools=("api", "without a limit"))
    put_run("STARTING", pools=("idle",))
    put_run("QUEUED", pools=("idle",))
    watched.poll()

    assert [watched.value("dagster_pool_slots_claimed", pool=pool) for pool in ("api", "idle")] == [1, 1]
    assert [watched.value("dagster_pool_steps_pending", pool=pool) for pool in ("api", "idle")] == [2, 0]
    assert watched.value("dagster_pool_oldest_pending_timestamp_seconds", pool="api") == pytest.approx(
        time.time(), abs=60
    )
    assert watched.value("dagster_pool_oldest_pending_timestamp_seconds", pool="idle") is None
    assert watched.value("dagster_run_queue_blocked_runs", concurrency_key="api") == 2
    assert watched.value("dagster_run_queue_blocked_runs", concurrency_key="idle") == 0


def test_queued_runs_beyond_a_limit_of_their_tags_are_counted_by_limit(watched: Watched, put_run: Callable[..., None]):
    limits = [
        {"key": "team", "limit": 3},
        {"key": "team", "value": "a", "limit": 1},
        {"key": "customer", "value": {"applyLimitPerUniqueValue": True}, "limit": 1},
        {"key": "unused", "limit": 1},
    ]
    queue = {"maxConcurrentRuns": 10, "tagConcurrencyLimitsYaml": yaml.safe_dump(limits)}
    watched = with_instance(watched, runQueueConfig=queue)
    put_run("STARTED", team="a")
    put_run("CANCELING", team="b")
    for _ in range(3):
        put_run("QUEUED", team="a")
    for customer in ("x", "x", "y"):
        put_run("QUEUED", customer=customer)
    put_run("STARTED", customer="y")
    put_run("SUCCESS", team="a", customer="x")
    watched.poll()

    # Of the team's three one may begin; of customer x one of two, of y none.
    waiting = {"team": 2, "team=a": 3, "customer": 2, "unused": 0}
    assert {key: watched.value("dagster_run_queue_blocked_runs", concurrency_key=key) for key in waiting} == waiting
    assert watched.value("dagster_run_queue_limit_runs") == 10


def with_instance(watched: Watched, **more: object) -> Watched:
    """After a restart, at an instance of which the webserver says *more*."""
    again = watched.again()
    again.workspace = {**NOTHING, "instance": {**NOTHING["instance"], **more}}
    return again.start()


def test_a_backfill_is_counted_once_when_it_ends(watched: Watched, sql: Callable[..., None]):
    insert = (
        "INSERT INTO bulk_actions (key, status, timestamp, action_type) VALUES (%s, %s, now(), 'PARTITION_BACKFILL')"
    )
    sql(insert, "a", "REQUESTED")
    sql(insert, "b", "COMPLETED_SUCCESS")
    watched.poll()
    assert watched.value("dagster_backfills_in_progress", status="requested") == 1
    assert watched.value("dagster_backfills_completed_total", status="completed_success") == 1

    sql("UPDATE bulk_actions SET status = 'FAILED' WHERE key = 'a'")
    watched.poll()
    watched.poll()
    assert watched.value("dagster_backfills_in_progress") == 0
    assert watched.value("dagster_backfills_completed_total", status="failed") == 1
    assert watched.value("dagster_backfills_completed_total", status="completed_success") == 1


def test_the_database_tells_its_size_its_sessions_and_the_last_backup(settings: Settings, sql: Callable[..., None]):
    add = "INSERT INTO millrace.backups (name, target, started_at, finished_at, bytes) VALUES (%s, 't', now(), %s, %s)"
    sql(add, "old", "2026-01-01T00:00:00Z", 10)
    sql(add, "new", "2026-01-02T00:00:00Z", 20)
    sql(add, "under way", None, None)
    watched = Watched(settings).start()

    assert watched.value("millrace_backup_last_success_timestamp_seconds") == 1767312000
    assert watched.value("millrace_backup_last_bytes") == 20
    assert (watched.value("dagster_storage_relation_bytes", relation="event_logs") or 0) > 0
    assert (watched.value("millrace_postgres_connections", database="dagster") or 0) >= 1
    assert (watched.value("millrace_postgres_max_connections") or 0) >= 20


def test_the_last_backup_tells_what_its_volume_has_left_and_one_in_a_bucket_does_not(
    settings: Settings, sql: Callable[..., None]
):
    add = "INSERT INTO millrace.backups VALUES (%s, 't', now(), %s, 10, %s, %s)"
    sql(add, "old", "2026-01-01T00:00:00Z", 1, 2)
    sql(add, "new", "2026-01-02T00:00:00Z", 300, 400)
    watched = Watched(settings).start()
    assert watched.value("millrace_volume_free_bytes", volume="backup") == 300
    assert watched.value("millrace_volume_size_bytes", volume="backup") == 400

    watched.exporter.save()
    sql(add, "newest", "2026-01-03T00:00:00Z", None, None)
    later = Watched(settings, clock=lambda: time.time() + 2 * 86_400)
    later.start()
    assert later.value("millrace_volume_free_bytes", volume="backup") is None


def test_the_volume_of_the_bundled_database_is_as_its_pod_told_it_until_it_has_not_for_a_day(
    settings: Settings, sql: Callable[..., None]
):
    now = [time.time()]
    watched = Watched(settings, clock=lambda: now[0]).start()
    assert watched.value("millrace_volume_free_bytes", volume="postgresql") is None
    sql("INSERT INTO millrace.volumes VALUES ('postgresql', 300, 400, now())")
    watched.poll()
    assert watched.value("millrace_volume_free_bytes", volume="postgresql") == 300
    assert watched.value("millrace_volume_size_bytes", volume="postgresql") == 400

    sql("UPDATE millrace.volumes SET free_bytes = 200, told_at = now()")
    watched.poll()
    assert watched.value("millrace_volume_free_bytes", volume="postgresql") == 200

    now[0] += 87_000
    watched.poll()
    assert watched.value("millrace_volume_free_bytes", volume="postgresql") is None
    assert watched.value("millrace_volume_size_bytes", volume="postgresql") is None


def test_sessions_of_all_other_databases_of_the_server_count_towards_its_limit(settings: Settings):
    with closing(psycopg2.connect(administrators_url(settings), dbname="postgres")):
        watched = Watched(settings).start()

    assert (watched.value("millrace_postgres_connections", database="other") or 0) >= 1
    assert watched.value("millrace_postgres_connections", database="postgres") is None


def test_backups_that_are_expected_have_a_limit_and_an_age_before_the_first_which_a_restart_does_not_renew(
    settings: Settings, sql: Callable[..., None]
):
    now = [1e9]
    expecting = settings.model_copy(update={"backup_max_age_seconds": 7200})
    watched = Watched(expecting, clock=lambda: now[0]).start()
    now[0] += 100
    watched.exporter.save()
    second = watched.again().start()

    assert second.value("millrace_threshold_backup_age_seconds") == 7200
    assert second.value("millrace_backup_expected_since_timestamp_seconds") == 1e9
    assert second.value("millrace_backup_last_success_timestamp_seconds") is None
    second.exporter.save()
    third = Watched(settings).start()  # where none are expected any more
    assert third.value("millrace_backup_expected_since_timestamp_seconds") is None
    assert third.value("millrace_threshold_backup_age_seconds") is None


def test_the_lake_tells_its_tables_as_they_are_now(settings: Settings, lake: Lake):
    lake.query("CREATE SCHEMA raw")
    lake.query("CREATE TABLE raw.t AS SELECT range AS n FROM range(1000)")
    lake.query("CREATE TABLE raw.gone AS SELECT 1 AS n")
    lake.query("DROP TABLE raw.gone")
    lake.query("DELETE FROM raw.t WHERE n < 400")
    watched = Watched(settings).start()

    assert watched.value("millrace_lake_tables") == 1
    assert watched.value("millrace_lake_table_rows", schema="raw", table="t") == 600
    assert watched.value("millrace_lake_table_files", schema="raw", table="t") == 2  # with that of the deletes
    assert (watched.value("millrace_lake_table_bytes", schema="raw", table="t") or 0) > 100
    assert (watched.value("millrace_lake_snapshots") or 0) >= 4
    assert watched.value("millrace_lake_last_snapshot_timestamp_seconds") == pytest.approx(time.time(), abs=60)


def test_thresholds_are_what_the_settings_say(settings: Settings):
    changed = settings.model_copy(
        update={"alert_failure_ratio": 0.25, "alert_memory_ratio": 0.5, "slo_success_ratio": 0.999}
    )
    watched = Watched(changed).start()

    assert watched.value("millrace_threshold_failure_ratio") == 0.25
    assert watched.value("millrace_threshold_memory_ratio") == 0.5
    assert watched.value("millrace_threshold_slow_run_seconds") == 300
    assert watched.value("millrace_threshold_unavailable_seconds") == 120
    assert watched.value("millrace_threshold_daemon_silent_seconds") == 180
    assert watched.value("millrace_slo_success_ratio") == 0.999
    assert watched.value("dagster_exporter_build_info", version="test") == 1


@pytest.mark.parametrize(("ratio", "is_taken"), [("0.93", False), ("0.9306", True)])
def test_a_promise_that_could_be_broken_without_an_alert_is_refused(
    monkeypatch: pytest.MonkeyPatch, ratio: str, is_taken: bool
):
    monkeypatch.setenv("MILLRACE_SLO_SUCCESS_RATIO", ratio)
    if is_taken:
        assert Settings.load().slo_success_ratio == float(ratio)
    else:
        with pytest.raises(ConfigError, match=r"MILLRACE_SLO_SUCCESS_RATIO.* at least 0\.9306 is wanted"):
            Settings.load()


def test_memory_of_services_is_that_of_the_copy_that_is_closest_to_its_limit_and_ends_with_it(
    watched: Watched, settings: Settings, sql: Callable[..., None]
):
    with closing(connect(settings)) as connection:
        tell(connection, "webserver", "pod-a", Usage(working_set=100, limit=1000))
        tell(connection, "webserver", "pod-b", Usage(working_set=700, limit=1000))
        tell(connection, "webserver", "pod-b", Usage(working_set=800, limit=1000))
        tell(connection, "daemon", "pod-c", Usage(working_set=5, limit=None))
    watched.poll()
    assert watched.value("millrace_service_memory_working_set_bytes", service="webserver") == 800
    assert watched.value("millrace_service_memory_limit_bytes", service="webserver") == 1000
    assert watched.value("millrace_service_memory_working_set_bytes", service="daemon") == 5
    assert watched.value("millrace_service_memory_limit_bytes", service="daemon") is None

    sql("UPDATE millrace.service_memory SET told_at = now() - interval '5 minutes' WHERE service = 'webserver'")
    watched.poll()
    assert watched.value("millrace_service_memory_working_set_bytes", service="webserver") is None

    sql("UPDATE millrace.service_memory SET told_at = now() - interval '2 hours' WHERE service = 'webserver'")
    with closing(connect(settings)) as connection:
        tell(connection, "daemon", "pod-c", Usage(working_set=5, limit=None))
        with connection.cursor() as cursor:
            cursor.execute("SELECT instance FROM millrace.service_memory")
            assert cursor.fetchall() == [("pod-c",)]
