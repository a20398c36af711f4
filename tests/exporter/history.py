"""A long history in Dagster's own tables: real runs and ticks, copied by the server.

Shop *n* of `definitions` has a job, an asset with a check, and for some a schedule. `record` runs shop 0 for real, once to
success and once to failure; `grow` copies what Dagster stored of it to further runs of all shops, with ids, names and times
of their own. The bodies of events are Dagster's but for ids and names. What is under way is the same at any length.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import dagster as dg
import psycopg2.extensions
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.events import DagsterEvent, DagsterEventType
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
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat

from pipeline.operate.database import connect
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.settings import Settings

LOCATION = "shops"
REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), "__repository__")
SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # what is stored is not printed too
SHOPS = 500
SCHEDULES = 50  # of the first shops
FAILED_OF = 20  # one run in so many
EVENTS_OF_A_RUN = 21  # as long as it succeeds
TICKS_OF_A_RUN = 10  # ticks for each run: most request none
SECONDS_OF_A_RUN = 7.5  # from one to the next: 11,520 a day
IN_FLIGHT = 40  # runs
BULK = 5_000  # runs, from which on the indices are made after the rows

# What is copied, with those that refer to others first.
TABLES = ("run_tags", "runs", "event_logs", "job_ticks", "asset_check_executions", "asset_keys")

RUNS = """CREATE TEMP TABLE new_runs ON COMMIT DROP AS
SELECT n, md5('run ' || n)::uuid::text AS run_id, 'shop' || lpad((n %% %(shops)s)::text, greatest(3, length((n %% %(shops)s)::text)), '0') AS shop,
       t.run_id AS template, t.start_time AS template_at,
       %(end)s - (%(last)s - n) * %(apart)s AS at
FROM generate_series(%(first)s, %(last)s) n
JOIN template.runs t ON t.status = CASE WHEN n %% %(failed_of)s = 0 THEN 'FAILURE' ELSE 'SUCCESS' END"""

# Each as a nested loop over the new runs, in their order, so that ids grow with time as they do in life.
COPIES = (
    """INSERT INTO runs (run_id, snapshot_id, pipeline_name, status, run_body, create_timestamp, update_timestamp, start_time, end_time)
    SELECT r.run_id, t.snapshot_id, replace(t.pipeline_name, 'shop000', r.shop), t.status,
           replace(replace(t.run_body, t.run_id, r.run_id), 'shop000', r.shop),
           t.create_timestamp + shift, t.update_timestamp + shift,
           t.start_time + r.at - r.template_at, t.end_time + r.at - r.template_at
    FROM new_runs r JOIN template.runs t ON t.run_id = r.template, make_interval(secs => r.at - r.template_at) shift
    ORDER BY r.n""",
    """INSERT INTO run_tags (run_id, key, value)
    SELECT r.run_id, t.key, replace(t.value, 'shop000', r.shop)
    FROM (SELECT * FROM new_runs ORDER BY n) r,
         LATERAL (SELECT * FROM template.run_tags t WHERE t.run_id = r.template ORDER BY t.id) t""",
    """INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key)
    SELECT r.run_id, replace(replace(t.event, t.run_id, r.run_id), 'shop000', r.shop), t.dagster_event_type,
           t.timestamp + make_interval(secs => r.at - r.template_at),
           replace(t.step_key, 'shop000', r.shop), replace(t.asset_key, 'shop000', r.shop)
    FROM (SELECT * FROM new_runs ORDER BY n) r,
         LATERAL (SELECT * FROM template.event_logs t WHERE t.run_id = r.template
                  AND (%(kinds)s = '{}' OR t.dagster_event_type = ANY(%(kinds)s)) ORDER BY t.id) t""",
    """INSERT INTO asset_check_executions (asset_key, check_name, run_id, execution_status, evaluation_event, evaluation_event_timestamp)
    SELECT replace(t.asset_key, 'shop000', r.shop), t.check_name, r.run_id, t.execution_status,
           replace(replace(t.evaluation_event, t.run_id, r.run_id), 'shop000', r.shop),
           t.evaluation_event_timestamp + make_interval(secs => r.at - r.template_at)
    FROM new_runs r JOIN template.asset_check_executions t ON t.run_id = r.template ORDER BY r.n""",
    """INSERT INTO job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body)
    SELECT t.job_origin_id, t.selector_id, t.status, t.type, to_timestamp(r.at) AT TIME ZONE 'UTC' + k * interval '1 ms', t.tick_body
    FROM (SELECT * FROM new_runs ORDER BY n) r, generate_series(1, %(ticks)s) k,
         LATERAL (SELECT * FROM template.job_ticks t WHERE t.id = 1 + (r.n * %(ticks)s + k) %% %(schedules)s) t""",
    """INSERT INTO bulk_actions (key, status, timestamp, action_type)
    SELECT left(md5('backfill ' || n), 8), 'COMPLETED_SUCCESS', to_timestamp(at) AT TIME ZONE 'UTC', 'PARTITION_BACKFILL'
    FROM new_runs WHERE n %% 100 = 0""",
)

# As Dagster does with each materialisation; once for each shop is the same in the end.
ASSETS = """INSERT INTO asset_keys (asset_key, last_materialization, last_run_id, last_materialization_timestamp)
SELECT e.asset_key, '{"__class__": "EventLogRecord", "event_log_entry": ' || e.event || ', "storage_id": ' || e.id || '}',
       e.run_id, e.timestamp
FROM generate_series(0, %(shops)s - 1) n,
     LATERAL (SELECT * FROM event_logs e WHERE e.asset_key = '["shop' || lpad(n::text, greatest(3, length(n::text)), '0') || '", "orders"]'
              AND e.dagster_event_type = 'ASSET_MATERIALIZATION' ORDER BY e.id DESC LIMIT 1) e
ON CONFLICT (asset_key) DO UPDATE SET last_materialization = excluded.last_materialization,
    last_run_id = excluded.last_run_id, last_materialization_timestamp = excluded.last_materialization_timestamp"""

UNDER_WAY = """UPDATE runs SET status = CASE WHEN id %% 2 = 0 THEN 'STARTED' ELSE 'QUEUED' END, end_time = NULL
WHERE id > (SELECT max(id) FROM runs) - %(in_flight)s;
DELETE FROM event_logs e USING runs r WHERE r.run_id = e.run_id AND r.end_time IS NULL
    AND e.dagster_event_type IN ('PIPELINE_SUCCESS', 'PIPELINE_FAILURE');
INSERT INTO bulk_actions (key, status, timestamp, action_type)
    SELECT 'open ' || n, 'REQUESTED', now(), 'PARTITION_BACKFILL' FROM generate_series(1, 3) n"""


def definitions(shops: int) -> dg.Definitions:
    """Jobs ``load_shop000`` and so on, each with the asset ``shop000/orders`` and its check."""
    parts = [_shop(f"shop{number:03}") for number in range(shops)]
    jobs = [job for _, _, job in parts]
    return dg.Definitions(
        assets=[asset for asset, _, _ in parts],
        asset_checks=[check for _, check, _ in parts],
        jobs=jobs,
        schedules=[_schedule(job) for job in jobs[:SCHEDULES]],
    )


def _shop(name: str) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition, UnresolvedAssetJobDefinition]:
    @dg.asset(
        key=[name, "orders"], group_name=name, owners=["team:shops"], kinds={"python"}, metadata={"max_age_hours": 26.0}
    )
    def orders(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        """Orders of the shop, as its database has them."""
        context.log.info("Reading orders.")
        if context.run.tags.get("fails"):
            raise ValueError("The shop does not answer.")
        return dg.MaterializeResult(metadata={"dagster/row_count": 1200, "path": f"raw/{name}/orders"})

    @dg.asset_check(asset=orders)
    def has_rows() -> dg.AssetCheckResult:
        """There are rows."""
        return dg.AssetCheckResult(passed=True, metadata={"rows": 1200})

    selection = dg.AssetSelection.assets(orders)
    return orders, has_rows, dg.define_asset_job(f"load_{name}", selection, executor_def=dg.in_process_executor)


def _schedule(job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"daily_{job.name}", job=job, cron_schedule="0 3 * * *", default_status=dg.DefaultScheduleStatus.RUNNING
    )


def record(settings: Settings) -> None:
    """Run shop 0 for real, keep what Dagster stored in the schema ``template``, and leave what is under way at any time."""
    ensure_instance(settings)
    with open_instance(settings) as instance:
        job = definitions(1).resolve_job_def("load_shop000")
        for tags in ({"dagster/schedule_name": "daily_load_shop000"}, {"fails": "yes"}):
            _run(instance, job, {**tags, ".dagster/repository": f"__repository__@{LOCATION}"})
        for number in range(SCHEDULES):
            _tick(instance, f"daily_load_shop{number:03}")
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "id", []))
        instance.event_log_storage.set_concurrency_slots("api", 4)
    with _session(settings) as cursor:
        cursor.execute("CREATE SCHEMA template")
        for table in TABLES:
            cursor.execute(f"CREATE TABLE template.{table} AS TABLE {table}")
            cursor.execute(f"DELETE FROM {table}")
            cursor.execute(f"ALTER TABLE {table} SET UNLOGGED")
    grow(settings, IN_FLIGHT)
    with _session(settings) as cursor:
        cursor.execute(UNDER_WAY, {"in_flight": IN_FLIGHT})


def grow(
    settings: Settings, runs: int, *, shops: int = SHOPS, end: float | None = None, kinds: Sequence[str] = ()
) -> int:
    """Add *runs* that ended, the last of them at *end* (epoch seconds; now), and ticks. Returns how many events.

    If *kinds* are named there are only events of these, and no ticks.
    """
    with _session(settings) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT count(*) FROM runs")
        (before,) = cursor.fetchone() or (0,)
        values = {
            "first": before + 1, "last": before + runs, "end": time.time() if end is None else end, "apart": SECONDS_OF_A_RUN,
            "shops": shops, "failed_of": FAILED_OF, "ticks": 0 if kinds else TICKS_OF_A_RUN, "schedules": SCHEDULES, "kinds": list(kinds),
        }  # fmt: skip
        cursor.execute(RUNS, values)
        indices = _drop_indices(cursor) if runs >= BULK else []
        events = 0
        for statement in COPIES:
            cursor.execute(statement, values)
            events += cursor.rowcount if "INTO event_logs" in statement else 0
        cursor.execute("SET LOCAL maintenance_work_mem = '512MB'")
        for statement in indices:
            cursor.execute(statement)
        cursor.execute(ASSETS, values)
        cursor.execute("COMMIT")
        if runs >= SHOPS // 2:  # as the server does by itself, some time
            cursor.execute("VACUUM ANALYZE")
    return events


def leave_open(settings: Settings, count: int) -> None:
    """Leave *count* ticks that have not ended, and as many ids of the event log that never come."""
    with _session(settings) as cursor:
        cursor.execute(
            "UPDATE job_ticks SET status = 'STARTED' WHERE id > (SELECT max(id) FROM job_ticks) - %s", [count]
        )
        cursor.execute("SELECT nextval('event_logs_id_seq') FROM generate_series(1, %s)", [count])


def _drop_indices(cursor: psycopg2.extensions.cursor) -> list[str]:
    """Drop those of the large tables that are no constraint's; the statements make them again."""
    cursor.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY(%s) "
        "AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = indexname)",
        [[table for table in TABLES if table != "asset_keys"]],
    )
    found = cursor.fetchall()
    for name, _ in found:
        cursor.execute(f"DROP INDEX {name}")
    return [statement for _, statement in found]


def _run(instance: dg.DagsterInstance, job: dg.JobDefinition, tags: dict[str, str]) -> None:
    run = instance.create_run_for_job(
        job, run_config=SILENT, tags=tags, remote_job_origin=RemoteJobOrigin(REPOSITORY, job.name)
    )
    for kind in (DagsterEventType.PIPELINE_ENQUEUED, DagsterEventType.PIPELINE_STARTING):
        instance.report_dagster_event(DagsterEvent(kind.value, job.name), run.run_id)
    instance.report_engine_event("Executing run in the pod dagster-run.", run)
    begun = instance.get_run_by_id(run.run_id)
    assert begun
    execute_run(InMemoryJob(job), begun, instance)


def _tick(instance: dg.DagsterInstance, schedule: str) -> None:
    origin = RemoteInstigatorOrigin(REPOSITORY, schedule)
    data, kind = ScheduleInstigatorData("0 3 * * *"), InstigatorType.SCHEDULE
    state = InstigatorState(origin, kind, InstigatorStatus.RUNNING, data)
    instance.add_instigator_state(state)
    began = TickData(origin.get_id(), schedule, kind, TickStatus.STARTED, time.time(), selector_id=state.selector_id)
    ended = instance.create_tick(began).with_status(TickStatus.SKIPPED, skip_reason="Nothing is new.")
    instance.update_tick(ended.with_status(TickStatus.SKIPPED, end_timestamp=time.time()))


@contextmanager
def _session(settings: Settings) -> Iterator[psycopg2.extensions.cursor]:
    with closing(connect(settings)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET timezone = 'UTC'")
            yield cursor
