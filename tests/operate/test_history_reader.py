"""What is read of real runs and ticks in a real PostgreSQL, and by which plans."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg2
import psycopg2.extensions
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)

from pipeline.errors import ConfigError, ServiceError
from pipeline.operate import history_reader
from pipeline.operate.database import connect
from pipeline.operate.history import History, Made, ResourceUse
from pipeline.operate.history_reader import Pods, quantity, read_history, run_pods
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.settings import Settings
from tests.conftest import administrators_url, recreate

HERE = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
REPOSITORY = {".dagster/repository": "__repository__@here"}
GIB = 1 << 30
CLUSTER = """\
run_launcher:
  module: pipeline.launch.launcher
  class: RunLauncher
  config: {resources: {requests: {cpu: 250m, memory: 512Mi}, limits: {memory: 2Gi}}}
"""
MONTHS = dg.StaticPartitionsDefinition(["2026-01", "2026-02", "2026-03"])


@dg.asset
def raw() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows_loaded": 7, "seconds": 0.5})


@dg.asset_check(asset=raw)
def holds() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(deps=[raw])
def mart() -> None:
    time.sleep(0.05)


@dg.asset(partitions_def=MONTHS, backfill_policy=dg.BackfillPolicy.single_run())
def monthly() -> None: ...


@dg.asset
def broken() -> None:
    raise dg.Failure("on purpose", allow_retries=False)


DEFINITIONS = dg.Definitions(
    assets=[raw, mart, monthly, broken],
    asset_checks=[holds],
    jobs=[
        dg.define_asset_job("daily", [raw, mart]),
        dg.define_asset_job("by_month", [monthly]),
        dg.define_asset_job("bad", [broken]),
    ],
    executor=dg.in_process_executor,
)


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    ensure_instance(settings)
    with open_instance(settings) as opened:
        yield opened


@pytest.fixture
def sql(settings: Settings) -> Iterator[Callable[..., list[Any]]]:
    with closing(connect(settings)) as connection:
        connection.autocommit = True

        def ask(statement: str, *values: Any) -> list[Any]:
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []

        yield ask


def cluster(settings: Settings) -> Settings:
    """*settings* of an installation whose runs are pods."""
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    (settings.dagster_home / "dagster.yaml").write_text(CLUSTER)
    return settings


def launched(
    instance: dg.DagsterInstance,
    name: str,
    *samples: dict[str, float],
    tags: dict[str, str] | None = None,
    waited: float = 0.0,
    starting: float = 0.0,
    definitions: dg.Definitions = DEFINITIONS,
) -> str:
    """A run as the queue, the launcher and its own process write it; its id."""
    job = definitions.resolve_job_def(name)
    origin = RemoteJobOrigin(HERE, name)  # without which a run cannot be queued
    run = instance.create_run_for_job(job, tags={**REPOSITORY, **(tags or {})}, remote_job_origin=origin)
    now = time.time()
    for kind, at in (("PIPELINE_ENQUEUED", now - waited - starting), ("PIPELINE_STARTING", now - starting)):
        event = DagsterEvent(DagsterEventType(kind).value, name, message=kind)
        instance.handle_new_event(dg.EventLogEntry(None, 20, "", run.run_id, at, job_name=name, dagster_event=event))
    for sample in samples:
        data = EngineEventData(metadata={"millrace/resources": dg.MetadataValue.json(sample)})
        instance.report_engine_event("Resources in use.", run, data)
    execute_run(InMemoryJob(job), instance.get_run_by_id(run.run_id), instance)
    return run.run_id


def read(settings: Settings, **more: Any) -> History:
    return read_history(settings, **{"days": 14, "now": time.time(), **more})


def test_a_run_is_read_with_its_times_steps_samples_and_tags(settings: Settings, instance: dg.DagsterInstance):
    samples = ({"peak": 100, "limit": 2 * GIB, "cpu_seconds": 3, "working_set": 90},
               {"peak": 300, "limit": 2 * GIB, "cpu_seconds": 8, "working_set": 40, "oom_kills": 1})  # fmt: skip
    run_id = launched(instance, "daily", *samples, tags={"millrace/cpu": "2"}, waited=5, starting=3)

    (job,) = read(cluster(settings)).jobs

    (run,) = job.runs
    assert (job.location, job.name, run.id, run.status) == ("here", "daily", run_id, "success")
    assert run.waited_seconds == pytest.approx(5, abs=0.1)
    assert run.startup_seconds == pytest.approx(3, abs=2)
    assert run.startup_seconds >= 3
    assert run.used == ResourceUse(300, False, 90, 2 * GIB, 8, 0, 1)
    assert 0 < run.process_seconds <= run.seconds - 3  # without what its pod waited for a node
    assert run.ran_out_of_memory
    assert (run.is_pod, run.cpu_request, run.memory_request, run.memory_limit) == (True, 2.0, 512 * 2**20, 2 * GIB)
    made, check, mart_step = sorted(run.steps, key=lambda step: (step.key != "raw", bool(step.assets)))
    assert made.made == (Made("raw", 0.5, 7),)
    assert (check.assets, check.checks) == (frozenset(), {"raw"})
    assert mart_step.made == (Made("mart"),)
    assert 0.05 <= mart_step.seconds < 5
    assert run.ended_at >= mart_step.ended_at >= made.ended_at


def test_runs_of_one_machine_are_no_pods(settings: Settings, instance: dg.DagsterInstance):
    launched(instance, "daily", {"peak": 100, "limit": 64 * GIB})
    dg.materialize([raw], instance=instance)

    found = {job.name: job.runs[0] for job in read(settings).jobs}
    in_a_cluster = {job.name: job.runs[0] for job in read(cluster(settings)).jobs}

    assert not any(run.is_pod or run.memory_limit for run in found.values())
    assert {name: run.is_pod for name, run in in_a_cluster.items()} == {"daily": True, "__ephemeral_asset_job__": False}


def test_partitions_are_counted_by_what_was_made(settings: Settings, instance: dg.DagsterInstance):
    launched(instance, "by_month", tags={"dagster/partition": "2026-01"})
    launched(instance, "by_month", tags={"dagster/asset_partition_range_start": "2026-01",
                                         "dagster/asset_partition_range_end": "2026-03"})  # fmt: skip
    (job,) = read(settings).jobs

    assert [run.steps[0].made[0].partitions for run in job.runs] == [3, 1]
    assert all(run.is_of_partitions for run in job.runs)


def test_a_step_that_failed_was_for_what_it_was_to_make(settings: Settings, instance: dg.DagsterInstance):
    launched(instance, "bad")

    ((run,),) = [job.runs for job in read(settings).jobs]

    assert run.status == "failure"
    assert run.assets == {"broken"}
    assert run.tags["dagster/failure_reason"] == "STEP_FAILURE"


def test_of_a_job_the_newest_runs_count_and_the_days_that_they_are_all_runs_of(
    settings: Settings, instance: dg.DagsterInstance, sql: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
):
    ids = [launched(instance, "by_month", tags={"dagster/partition": "2026-01"}) for _ in range(4)]
    for run_id, age in zip(ids, (20, 10, 4, 1), strict=True):
        moment = (datetime.now(UTC) - timedelta(days=age)).replace(tzinfo=None)
        sql("UPDATE runs SET create_timestamp = %s WHERE run_id = %s", moment, run_id)

    def found(**more: Any) -> tuple[list[str], float]:
        (job,) = read(settings, **more).jobs
        return [run.id for run in job.runs], round(job.days, 2)

    assert found() == ([ids[3], ids[2], ids[1]], 14)  # there was one before, so the job has been running all the time
    assert found(days=30) == ([*reversed(ids)], 20)  # it is no older
    monkeypatch.setattr(history_reader, "MAX_RUNS", 2)
    assert found() == ([ids[3], ids[2]], 4)


def test_of_a_frequent_job_that_a_cap_cut_the_days_are_parts_of_one(
    settings: Settings, instance: dg.DagsterInstance, sql: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
):
    for minutes in (30, 20, 10):
        run_id = launched(instance, "by_month", tags={"dagster/partition": "2026-01"})
        moment = (datetime.now(UTC) - timedelta(minutes=minutes)).replace(tzinfo=None)
        sql("UPDATE runs SET create_timestamp = %s WHERE run_id = %s", moment, run_id)

    assert [job.days for job in read(settings).jobs] == [1]  # these are all: half an hour tells no rate
    monkeypatch.setattr(history_reader, "MAX_RUNS", 2)
    assert [job.days for job in read(settings).jobs] == [pytest.approx(20 / 1440, rel=0.2)]


def test_steps_keep_the_order_of_their_events_though_the_clock_was_set_back(
    settings: Settings, instance: dg.DagsterInstance, sql: Callable[..., list[Any]]
):
    launched(instance, "daily")
    started = "SELECT id, step_key FROM event_logs WHERE dagster_event_type = 'STEP_START' ORDER BY id"
    (first, order) = zip(*sql(started), strict=True)
    sql("UPDATE event_logs SET timestamp = timestamp - interval '1 hour' WHERE id > %s", first[0])

    ((run,),) = [job.runs for job in read(settings).jobs]

    assert tuple(step.key for step in run.steps) == order
    assert run.steps[0].started_at == run.steps[0].ended_at > run.steps[1].started_at


def test_a_job_that_never_ran_is_an_error_that_lists_near_names(settings: Settings, instance: dg.DagsterInstance):
    with pytest.raises(ConfigError, match="No job has run yet"):
        read(settings, job="daily")
    launched(instance, "daily")
    launched(instance, "bad")

    with pytest.raises(ConfigError, match=r"the job dayly: it has none\. Give one that has: daily\."):
        read(settings, job="dayly")
    with pytest.raises(ConfigError, match="Give one that has: bad, daily"):
        read(settings, job="weekly_upkeep_of_everything")
    assert [job.name for job in read(settings, job="bad").jobs] == ["bad"]


def test_what_a_cap_keeps_out_is_told(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    run_id = launched(instance, "daily")
    launched(instance, "by_month", tags={"dagster/partition": "2026-01"})
    monkeypatch.setattr(history_reader, "MAX_EVENTS", 5)
    assert [job.name for job in read(settings).jobs] == ["by_month"]
    assert "Job daily: 5 events" in read(settings).left_out[0]

    monkeypatch.setattr(
        history_reader, "RUN_EVENTS", history_reader.RUN_EVENTS.replace(f"{history_reader.MAX_RUN_EVENTS}", "3")
    )
    assert read(settings, job="daily").jobs == ()
    assert run_id in read(settings, job="daily").left_out[0]


def test_schedules_and_sensors_are_read_with_their_ticks(settings: Settings, instance: dg.DagsterInstance):
    origin = RemoteInstigatorOrigin(HERE, "watch")
    data = SensorInstigatorData(min_interval=20, sensor_type=SensorType.STANDARD)
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data)
    instance.add_instigator_state(state)
    now = time.time()
    for age in (60, 40, 20, 8 * 86_400):
        tick = instance.create_tick(
            TickData(
                origin.get_id(),
                "watch",
                InstigatorType.SENSOR,
                TickStatus.STARTED,
                now - age,
                selector_id=state.selector_id,
            )
        )
        instance.update_tick(tick.with_status(TickStatus.SKIPPED))

    (found,) = read(settings).instigators

    assert (found.kind, found.name, found.location, found.is_on, found.interval, found.follows_runs) == (
        "sensor", "watch", "here", True, 20.0, False,
    )  # fmt: skip
    assert [tick.status for tick in found.ticks] == ["skipped"] * 3  # of the last seven days
    assert [round(now - tick.at) for tick in found.ticks] == [20, 40, 60]
    assert [round(tick.seconds) for tick in found.ticks] == [20, 40, 60]  # they have all just ended
    instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    (stopped,) = read(settings).instigators
    assert not stopped.is_on
    assert stopped.changed_at == pytest.approx(now, abs=60)


FILL = (
    """INSERT INTO runs (run_id, pipeline_name, status, create_timestamp, update_timestamp)
       SELECT 'r' || n, 'job' || n % 20, 'SUCCESS', now() - n * interval '1 minute', now() FROM generate_series(1, 10000) n""",
    "INSERT INTO run_tags (run_id, key, value) SELECT 'r' || n, k, 'v' FROM generate_series(1, 10000) n, (VALUES ('a'), ('b')) t(k)",
    """INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp)
       SELECT 'r' || n % 10000, '{}', CASE n % 3 WHEN 0 THEN 'STEP_START' WHEN 1 THEN 'ENGINE_EVENT' END, now()
       FROM generate_series(1, 300000) n""",
    "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp) SELECT 'long', '{}', 'STEP_START', now() FROM generate_series(1, 100000)",
    """INSERT INTO job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body)
       SELECT 'o', 's' || n % 20, 'SKIPPED', 'SENSOR', now() - n * interval '10 seconds', '{}' FROM generate_series(1, 200000) n""",
    "ANALYZE",
)


@pytest.fixture(scope="module")
def large(server: Settings) -> Iterator[psycopg2.extensions.connection]:
    """A connection to a database of a large history."""
    recreate(server, "large", template="tables")
    with closing(psycopg2.connect(administrators_url(server), dbname="large")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for each in FILL:
                cursor.execute(each)
        yield connection


@pytest.mark.parametrize(
    ("statement", "values", "most"),
    [
        (history_reader.JOBS, [], 200),
        (history_reader.RUNS, ["job7"], 1500),
        (history_reader.RUN_EVENTS, ["r77", list(history_reader.EVENTS)], 200),
        (history_reader.RUN_EVENTS, ["long", list(history_reader.EVENTS)], 600),
        (history_reader.TICKS, ["s7", time.time() - 86_400], 1500),
    ],
    ids=["jobs", "runs", "events of a run", "events of a long run", "ticks"],
)
def test_no_statement_reads_a_table_as_a_whole(
    large: psycopg2.extensions.connection, statement: str, values: Sequence[Any], most: int
):
    with large.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}", values or None)
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert "Seq Scan" not in plan, plan
    hit, read_in = (int(found) if found else 0 for found in _buffers(plan))
    assert hit + read_in < most, plan


def _buffers(plan: str) -> tuple[str | None, str | None]:
    import re

    line = next(line for line in plan.splitlines() if "Buffers: " in line)
    return tuple((found := re.search(rf"{kind}=(\d+)", line)) and found[1] for kind in ("hit", "read"))  # type: ignore[return-value]


def test_a_database_that_is_away_is_said(settings: Settings):
    assert settings.database_url
    address = settings.database_url.get_secret_value().replace("postgres&port=5432", "nowhere&port=5432")
    away = Settings(state_dir=settings.state_dir, database_url=address)  # type: ignore[arg-type]

    with pytest.raises(ServiceError, match="Reading the run history"):
        read(away)


def test_what_pods_have_by_default_is_in_the_instances_file(settings: Settings):
    assert run_pods(settings) is None
    assert run_pods(cluster(settings)) == Pods(0.25, 512 * 2**20, 2 * GIB)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("500m", 0.5), ("2", 2.0), ("1.5Gi", 1.5 * GIB), ("300M", 3e8), ("4Ki", 4096.0), (None, None), ("much", None)],
)
def test_amounts_are_read_as_kubernetes_reads_them(text: str | None, amount: float | None):
    assert quantity(text) == amount
