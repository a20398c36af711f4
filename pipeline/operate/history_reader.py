"""The history of runs and ticks, read from Dagster's tables: each statement by an index and capped."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.cgroup import SAMPLE
from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter.compute import SECONDS
from pipeline.exporter.materializations import numbers_of
from pipeline.exporter.resources import sample_of
from pipeline.exporter.run_facts import location_of
from pipeline.exporter.runs import ENDS
from pipeline.exporter.tail import Event
from pipeline.operate.database import connect
from pipeline.operate.history import DAY, TICK_DAYS, History, Instigator, Job, Made, ResourceUse, Run, Step, Tick
from pipeline.settings import CPU_TAG, MEMORY_TAG, Settings

if TYPE_CHECKING:
    import psycopg2.extensions

MAX_JOBS = 500
MAX_RUNS = 50  # of a job, the newest that ended
NEWEST_RUNS = 200  # of a job, among which those are looked for
MAX_RUN_EVENTS = 10_000  # of a run; one with more is left out
MAX_EVENTS = 500_000  # of all runs; the jobs after that are left out
MAX_INSTIGATORS = 500
MAX_TICKS = 2_000  # of an instigator, the newest of TICK_DAYS
LEAST_DAYS = 1 / 1440  # of a job: that they may be divided by
STATEMENT_SECONDS = 10

MOMENTS = ("PIPELINE_ENQUEUED", "PIPELINE_STARTING", "PIPELINE_START")
EVENTS = (*MOMENTS, *ENDS, "STEP_START", "STEP_SUCCESS", "STEP_FAILURE", "ASSET_MATERIALIZATION_PLANNED",
          "ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION_PLANNED", "ENGINE_EVENT")  # fmt: skip
ROWS_LOADED = "rows_loaded"

# One entry of the index for each job, however many runs it has.
JOBS = f"""WITH RECURSIVE jobs(name) AS (
        (SELECT min(pipeline_name) FROM runs)
        UNION ALL SELECT (SELECT min(pipeline_name) FROM runs WHERE pipeline_name > name) FROM jobs WHERE name IS NOT NULL)
    SELECT name FROM jobs WHERE name IS NOT NULL LIMIT {MAX_JOBS}"""

RUNS = f"""SELECT r.run_id, r.status, extract(epoch FROM r.create_timestamp)::float8, (
        SELECT json_object_agg(key, value) FROM run_tags t WHERE t.run_id = r.run_id)
    FROM (SELECT run_id, status, create_timestamp, id FROM runs WHERE pipeline_name = %s ORDER BY id DESC LIMIT {NEWEST_RUNS}) r
    ORDER BY r.id DESC"""

RUN_EVENTS = f"""SELECT dagster_event_type, step_key, asset_key, partition, extract(epoch FROM timestamp)::float8,
        CASE WHEN dagster_event_type LIKE 'ASSET_%%' OR dagster_event_type = 'ENGINE_EVENT' THEN event END
    FROM (SELECT * FROM event_logs WHERE run_id = %s ORDER BY id LIMIT {MAX_RUN_EVENTS}) e
    WHERE dagster_event_type = ANY(%s) AND (dagster_event_type <> 'ENGINE_EVENT' OR event LIKE '%%{SAMPLE}%%')
    ORDER BY id"""

INSTIGATORS = f"""SELECT selector_id, status, instigator_type, instigator_body, extract(epoch FROM update_timestamp)::float8
    FROM instigators ORDER BY id LIMIT {MAX_INSTIGATORS}"""

TICKS = f"""SELECT status, extract(epoch FROM timestamp)::float8, tick_body FROM job_ticks
    WHERE selector_id = %s AND timestamp > to_timestamp(%s) AT TIME ZONE 'UTC' ORDER BY timestamp DESC LIMIT {MAX_TICKS}"""


def read_history(settings: Settings, *, days: float, now: float, job: str | None = None) -> History:
    """The history of the *days* before *now* (epoch seconds); of one *job* alone if it is given.

    Raises:
        ConfigError: if no run of *job* is there at all.
        ServiceError: if the database does not answer, or a statement takes longer than `STATEMENT_SECONDS`.
    """
    import psycopg2

    try:
        with closing(connect(settings)) as connection:
            connection.set_session(readonly=True, autocommit=True)
            reader = _Reader(connection, since=now - days * DAY, now=now, pods=run_pods(settings))
            names = [name for (name,) in reader.rows(JOBS)]
            if job and job not in names and not reader.rows(RUNS, job):
                near = get_close_matches(job, names, n=5) or names[:10]
                hint = f"Give one that has: {', '.join(near)}." if near else "No job has run yet."
                raise ConfigError(f"Reading the runs of the job {job}: it has none. {hint}")
            names = [job] if job else names
            jobs = tuple(found for name in names for found in reader.jobs(name))
            instigators = () if job else tuple(reader.instigators())
    except psycopg2.Error as error:
        raise ServiceError(f"Reading the run history: {str(error).strip()}") from error
    return History(now, days, jobs, instigators, tuple(reader.left_out))


@dataclass(frozen=True)
class Pods:
    """What a run's pod has where its tags do not say it: cores, bytes; None if nothing."""

    cpu_request: float | None = None
    memory_request: float | None = None
    memory_limit: float | None = None


def run_pods(settings: Settings) -> Pods | None:
    """The defaults of run pods; None where runs are processes of one machine."""
    import yaml

    file = settings.dagster_home / "dagster.yaml"
    launcher = (yaml.safe_load(file.read_text()) or {}).get("run_launcher", {}) if file.exists() else {}
    if not str(launcher.get("module", "")).startswith(("pipeline.launch", "dagster_k8s")):
        return None
    resources = (launcher.get("config") or {}).get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    return Pods(quantity(requests.get("cpu")), quantity(requests.get("memory")), quantity(limits.get("memory")))


def quantity(text: Any) -> float | None:
    """``500m`` or ``1.5Gi`` as a number, as Kubernetes reads it; None for nothing and for what is none."""
    from kubernetes.utils.quantity import parse_quantity  # it is there where runs are pods

    try:
        return float(parse_quantity(str(text))) if text else None
    except ValueError:
        return None


class _Reader:
    def __init__(
        self, connection: "psycopg2.extensions.connection", *, since: float, now: float, pods: Pods | None
    ) -> None:
        self._connection, self._since, self._now, self._pods = connection, since, now, pods
        self._events = 0
        self.left_out: list[str] = []
        self.rows(f"SELECT set_config('statement_timeout', '{STATEMENT_SECONDS}s', false)")

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall()

    def jobs(self, name: str) -> Iterator[Job]:
        """The job *name* of each code location that has one."""
        found = self.rows(RUNS, name)
        ended = [row for row in found if row[1] in ("SUCCESS", "FAILURE", "CANCELED") and row[2] >= self._since]
        kept = ended[:MAX_RUNS]
        if not kept:
            return
        if self._events >= MAX_EVENTS:
            self.left_out.append(f"Job {name}: {MAX_EVENTS:,} events of other jobs were read before it; see --job.")
            return
        is_whole = len(kept) == len(ended) and (len(found) < NEWEST_RUNS or found[-1][2] < self._since)
        is_older = found[-1][2] < self._since  # than the days that were asked for: it ran before them too
        since = self._since if is_whole and is_older else kept[-1][2]
        runs: dict[str, list[Run]] = defaultdict(list)
        for run_id, status, _, tags in kept:
            run = self._run(run_id, status.lower(), tags or {})
            if run is not None:
                runs[location_of(dict(run.tags))].append(run)
        least = 1.0 if is_whole else LEAST_DAYS  # a few runs in an hour tell no rate; runs that a cap cut do
        for location, of_location in runs.items():
            yield Job(location, name, tuple(of_location), max((self._now - since) / DAY, least))

    def _run(self, run_id: str, status: str, tags: dict[str, str]) -> Run | None:
        rows = self.rows(RUN_EVENTS, run_id, list(EVENTS))
        self._events += len(rows)
        at = {kind: moment for kind, *_, moment, _ in reversed(rows) if kind in MOMENTS or kind in ENDS}
        ended = next((at[kind] for kind in ENDS if kind in at), None)
        if ended is None:
            self.left_out.append(f"Run {run_id}: its end is not among its first {MAX_RUN_EVENTS:,} events.")
            return None
        began = at.get("PIPELINE_STARTING", at.get("PIPELINE_START", ended))
        used = _used(rows)
        pods = self._pods if "PIPELINE_STARTING" in at else None  # `millrace run` beside them launches nothing
        own = Pods()
        if pods:
            memory = quantity(tags.get(MEMORY_TAG))
            limit = (used.limit if used else None) or memory or pods.memory_limit
            own = Pods(quantity(tags.get(CPU_TAG)) or pods.cpu_request, memory or pods.memory_request or limit, limit)
        return Run(
            run_id,
            status,
            began,
            ended,
            steps=tuple(_steps(rows, ended)),
            used=used,
            tags=tags,
            queued_at=at.get("PIPELINE_ENQUEUED"),
            started_at=at.get("PIPELINE_START"),
            is_pod=pods is not None,
            cpu_request=own.cpu_request,
            memory_request=own.memory_request,
            memory_limit=own.memory_limit,
        )

    def instigators(self) -> Iterator[Instigator]:
        for selector, status, kind, body, changed_at in self.rows(INSTIGATORS):
            if kind not in ("SCHEDULE", "SENSOR"):
                continue
            state = json.loads(body)
            origin, data = state["origin"], state.get("job_specific_data") or {}
            repository = origin["external_repository_origin"]["repository_location_origin"]
            sensor_type = (data.get("sensor_type") or {}).get("__enum__", "")
            since = max(self._since, self._now - TICK_DAYS * DAY)
            yield Instigator(
                kind.lower(),
                origin["job_name"],
                str(repository.get("location_name", "")),
                is_on=status != "STOPPED",
                changed_at=changed_at,
                interval=float(data.get("min_interval") or 30.0),
                follows_runs=sensor_type.endswith(".RUN_STATUS"),
                ticks=tuple(_tick(*row) for row in self.rows(TICKS, selector, since)),
            )


def _tick(status: str, at: float, body: str) -> Tick:
    ended = json.loads(body or "{}").get("end_timestamp")
    return Tick(status.lower(), at, max(float(ended) - at, 0.0) if ended else 0.0)


def _used(rows: Sequence[tuple[Any, ...]]) -> ResourceUse | None:
    told = [
        sample
        for kind, *_, at, body in rows
        if kind == "ENGINE_EVENT" and (sample := sample_of(Event(0, "", kind, at, body=body)))
    ]
    if not told:
        return None
    names = ("peak", "working_set", "limit", "cpu_seconds", "throttled_seconds", "oom_kills")
    return ResourceUse(
        # Not said: told by a version that did not tell whose peak it is.
        peak_is_kernels=all(sample.get("peak_is_sampled") is False for sample in told),
        **{name: max(float(sample.get(name) or 0) for sample in told) for name in names},
    )


def _steps(rows: Sequence[tuple[Any, ...]], run_ended: float) -> Iterator[Step]:
    """The steps that began, in the order of their events, which a clock that is set back does not change.

    What a step was to make counts as made where it failed or was killed.
    """
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    made: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    partitions: dict[tuple[str, str], set[str]] = defaultdict(set)
    checks: dict[str, set[str]] = defaultdict(set)
    for kind, step, key, partition, at, body in rows:
        if step is None:
            continue
        asset = "/".join(json.loads(key)) if key else ""
        if kind == "STEP_START":
            began.setdefault(step, at)  # a step that is tried again has several
        elif kind in ("STEP_SUCCESS", "STEP_FAILURE"):
            ended[step] = at
        elif kind == "ASSET_CHECK_EVALUATION_PLANNED":
            checks[step].add(_checked(body))
        elif asset:
            told = made[step][asset]
            if partition:
                partitions[step, asset].add(partition)
            if kind == "ASSET_MATERIALIZATION":
                told.update(numbers_of(Event(0, "", kind, at, body=body)))
    for step, began_at in began.items():
        yield Step(
            step,
            began_at,
            max(ended.get(step, run_ended), began_at),
            tuple(
                Made(
                    asset,
                    next((told[label] for label in SECONDS if label in told), None),
                    int(told[ROWS_LOADED]) if ROWS_LOADED in told else None,
                    len(partitions[step, asset]),
                )
                for asset, told in sorted(made[step].items())
            ),
            frozenset(checks[step]),
        )


def _checked(body: str) -> str:
    data = Event(0, "", "", 0.0, body=body).data
    return "/".join((data.get("asset_key") or {}).get("path") or ())
