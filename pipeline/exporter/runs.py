"""Runs: how many, how they ended and why, how long they took, waited and started."""

from collections import deque
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from pipeline.exporter.baseline import Baseline
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import MAX_SERIES, Registry
from pipeline.exporter.run_facts import Ended, RunCache, RunFacts
from pipeline.exporter.tail import Event
from pipeline.exporter.topic import Batch, Topic, restored

JOB = ("code_location", "job_name")
ENDS = {"PIPELINE_SUCCESS": "success", "PIPELINE_FAILURE": "failure", "PIPELINE_CANCELED": "canceled"}
LIFE = {"PIPELINE_ENQUEUED", "PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_CANCELING", *ENDS}
IN_FLIGHT = ("queued", "not_started", "starting", "started", "canceling")
TRIGGERS = ("manual", "schedule", "sensor", "automation", "backfill", "retry")
REASONS = ("step_failure", "unexpected_termination", "run_exception", "job_initialization_failure", "start_timeout",
           "run_worker_restart", "out_of_memory", "unknown")  # fmt: skip
OUT_OF_MEMORY = "ran out of memory"  # as the launcher and the worker word it
RECENT = 20  # runs of a job, whose share of failures does not forget a job that runs once a day
MAX_REMEMBERED = 20_000  # runs under way
WAIT_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass
class Life:
    """What is known of a run under way, epoch seconds."""

    queued_at: float | None = None
    starting_at: float | None = None
    started_at: float | None = None
    out_of_memory: bool = False


class Runs(Topic):
    """One series for each job of each code location."""

    name = "runs"
    bodies_of = frozenset({"PIPELINE_FAILURE", "ENGINE_EVENT"})

    def __init__(self, registry: Registry) -> None:
        self.created = registry.counter("dagster_runs_created_total", "Runs, by what started them.", (*JOB, "trigger"))
        self.completed = registry.counter("dagster_runs_completed_total", "Runs that ended, by how.", (*JOB, "status"))
        self.failures = registry.counter(
            "dagster_run_failures_total",
            "Failed runs, by the reason that Dagster or the launcher found.",
            (*JOB, "reason"),
        )
        self.retries = registry.counter("dagster_run_retries_total", "Runs that repeat a failed one.", JOB)
        self.duration = registry.histogram("dagster_run_duration_seconds", "From start to end of successful runs.", JOB)
        self.queue_wait = registry.histogram(
            "dagster_run_queue_wait_seconds", "From queued to launched.", JOB, buckets=WAIT_SECONDS
        )
        self.startup = registry.histogram(
            "dagster_run_startup_seconds",
            "From launch to the first step: pod, container, imports.",
            JOB,
            buckets=WAIT_SECONDS,
        )
        self.schedule_delay = registry.histogram(
            "dagster_schedule_run_delay_seconds",
            "From the moment of the schedule to the start of its run; repetitions are left out.",
            JOB,
            buckets=WAIT_SECONDS,
        )
        self.last_completed = registry.last_value(
            "dagster_run_last_completed_timestamp_seconds", "When a run of the job ended last.", (*JOB, "status")
        )
        self.last_duration = registry.last_value(
            "dagster_run_last_duration_seconds", "How long the job's last run took.", (*JOB, "status")
        )
        self.recent_failures = registry.last_value(
            "dagster_job_recent_failure_ratio",
            f"Share of failed runs among the job's last {RECENT} that ended by themselves.",
            JOB,
        )
        self.recent_runs = registry.last_value("dagster_job_recent_runs", "Runs that the share is of.", JOB)
        self.in_progress = registry.gauge("dagster_runs_in_progress", "Runs under way, by status.", (*JOB, "status"))
        self.oldest = registry.gauge(
            "dagster_run_oldest_status_timestamp_seconds",
            "Since when the oldest run in the status has been in it.",
            (*JOB, "status"),
        )
        self.baseline = Baseline(registry, "dagster_job_duration", "the job's successful runs", JOB)
        self._lives: dict[str, Life] = {}
        self._evicted = 0  # runs under way that are not remembered any more
        self.ended = Ended()
        self._recent: dict[tuple[str, str], deque[bool]] = {}
        self._in_flight = RunCache(inf)  # of its own: a run that waits for long has no events

    def start_job(self, location: str, job: str) -> None:
        """Have the job's series before its first run."""
        for trigger in TRIGGERS:
            self.created.start(location, job, trigger)
        for status in ENDS.values():
            self.completed.start(location, job, status)
        for reason in REASONS:
            self.failures.start(location, job, reason)
        for metric in (self.retries, self.duration, self.queue_wait, self.startup, self.schedule_delay):
            metric.start(location, job)

    def forget_jobs(self, gone: set[tuple[str, str]]) -> None:
        """Remove the series of jobs that their locations do not have any more."""
        for metric in (self.created, self.completed, self.failures, self.retries, self.duration, self.queue_wait, self.startup,
                       self.schedule_delay, self.last_completed, self.last_duration, self.recent_failures, self.recent_runs):  # fmt: skip
            metric.forget_all(JOB, gone)
        for job in gone:
            self._recent.pop(job, None)
            self.baseline.forget(job)

    def jobs(self) -> set[tuple[str, str]]:
        """Those that have series."""
        return {(location, job) for location, job, _ in self.completed.series}

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            if event.type == "ENGINE_EVENT":
                if event.run_id in self._lives and OUT_OF_MEMORY in (event.body or ""):
                    self._lives[event.run_id].out_of_memory = True
            elif event.type in LIFE:
                self._count_one(event, batch.runs[event.run_id])

    def _count_one(self, event: Event, facts: RunFacts) -> None:
        if event.run_id in self.ended:
            return  # the end of a run may be reported by two who noticed it
        life = self._lives.get(event.run_id)
        if life is None:
            life = self._lives[event.run_id] = Life()
            self.start_job(*facts.labels)
            if self._evicted and event.type != "PIPELINE_ENQUEUED":
                self._evicted -= 1  # one of those: a new run is queued first
            else:
                self.created.add(*facts.labels, facts.trigger)
                if facts.is_retry:
                    self.retries.add(*facts.labels)
            if len(self._lives) > MAX_REMEMBERED:
                del self._lives[next(iter(self._lives))]
                self._evicted += 1
        if event.type == "PIPELINE_ENQUEUED":
            life.queued_at = event.at
        elif event.type == "PIPELINE_STARTING" and life.starting_at is None:
            life.starting_at = event.at
            if life.queued_at is not None:  # taken from the queue, which has no event of its own
                self.queue_wait.observe(max(event.at - life.queued_at, 0.0), *facts.labels)
        elif event.type == "PIPELINE_START" and life.started_at is None:
            life.started_at = event.at
            if facts.scheduled_at is not None and facts.trigger == "schedule":
                self.schedule_delay.observe(max(event.at - facts.scheduled_at, 0.0), *facts.labels)
            if life.starting_at is not None:
                self.startup.observe(max(event.at - life.starting_at, 0.0), *facts.labels)
        elif event.type in ENDS:
            self._end(event, facts, life)

    def _end(self, event: Event, facts: RunFacts, life: Life) -> None:
        status, labels = ENDS[event.type], facts.labels
        self.completed.add(*labels, status)
        self.last_completed.set(event.at, *labels, status)
        if life.started_at is not None:
            seconds = max(event.at - life.started_at, 0.0)
            self.last_duration.set(seconds, *labels, status)
            if status == "success":
                self.duration.observe(seconds, *labels)
                self.baseline.observe(labels, seconds)
        if status == "failure":
            self.failures.add(*labels, "out_of_memory" if _is_out_of_memory(event, life) else _reason(event))
        if status != "canceled" and (labels in self._recent or len(self._recent) < MAX_SERIES):
            recent = self._recent.setdefault(labels, deque(maxlen=RECENT))
            recent.append(status == "failure")
            self.recent_failures.set(sum(recent) / len(recent), *labels)
            self.recent_runs.set(len(recent), *labels)
        del self._lives[event.run_id]
        self.ended.add(event.run_id)

    def poll(self, database: Database, now: float) -> None:
        rows = database.rows(
            """SELECT run_id, pipeline_name, lower(status),
                      extract(epoch FROM CASE WHEN status IN ('STARTING', 'CANCELING') THEN update_timestamp
                          WHEN status = 'STARTED' THEN coalesce(to_timestamp(start_time) AT TIME ZONE 'UTC', update_timestamp)
                          ELSE create_timestamp END)::float8
               FROM runs WHERE status = ANY(%s)""",
            [status.upper() for status in IN_FLIGHT],
        )
        self._in_flight.forget_others({run_id for run_id, *_ in rows})
        found = self._in_flight.of(database, [run_id for run_id, *_ in rows])
        counts = {(*job, status): 0.0 for job in self.jobs() for status in IN_FLIGHT}
        oldest: dict[tuple[str, str, str], float] = {}
        for run_id, job, status, since in rows:
            key = (found[run_id].location, job, status)
            counts[key] = counts.get(key, 0.0) + 1
            oldest[key] = min(since, oldest.get(key, since))
        self.in_progress.replace(counts)
        self.oldest.replace(oldest)

    def adopt(self, database: Database) -> None:
        """Take runs that are under way as created already: for a start without a past."""
        rows = database.rows(
            "SELECT run_id, start_time FROM runs WHERE status = ANY(%s)", [status.upper() for status in IN_FLIGHT]
        )
        self._lives = {run_id: Life(started_at=started) for run_id, started in rows}

    def dump(self) -> Any:
        return {
            "lives": {run_id: asdict(life) for run_id, life in self._lives.items()},
            "evicted": self._evicted,
            "ended": self.ended.dump(),
            "recent": [[*job, [int(failed) for failed in recent]] for job, recent in self._recent.items()],
            "baseline": self.baseline.dump(),
        }

    def load(self, dumped: Any) -> None:
        self._lives = {run_id: restored(Life, life) for run_id, life in dumped["lives"].items()}
        self._evicted = dumped.get("evicted", 0)  # of an older version
        self.ended.load(dumped["ended"])
        self._recent = {
            (location, job): deque(map(bool, recent), maxlen=RECENT) for location, job, recent in dumped["recent"]
        }
        self.baseline.load(dumped["baseline"])


def _is_out_of_memory(event: Event, life: Life) -> bool:
    return life.out_of_memory or OUT_OF_MEMORY in (event.body or "")


def _reason(event: Event) -> str:
    """As Dagster tells it with the failure: ``RunFailureReason.STEP_FAILURE``."""
    found = event.data.get("failure_reason") or {}
    reason = str(found.get("__enum__", "")).rpartition(".")[2].lower()
    return reason if reason in REASONS else "unknown"
