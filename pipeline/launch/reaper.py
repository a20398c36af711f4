"""What Dagster leaves undone in a cluster: Jobs whose run is over, and runs that will never start.

One pass looks at the run Jobs of one release, so its cost is that of the runs under way and of the last hour, not of
history. A pass that fails is a line in the log; the next one does its work.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import (
    AUTO_MATERIALIZE_TAG,
    AUTO_OBSERVE_TAG,
    AUTOMATION_CONDITION_TAG,
    BACKFILL_ID_TAG,
    RETRY_NUMBER_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    TICK_ID_TAG,
)

from pipeline.launch import sessions
from pipeline.launch.launcher import LAUNCH_SECONDS, NOT_KNOWN, RunLauncher

log = logging.getLogger(__name__)

PERIOD_SECONDS = 15.0
OVER_SECONDS = 60.0  # a run's process may still be writing its last log when the run is over
START_SECONDS = 75.0  # an image, a volume or a Secret that is missing may come within
PAGE = 500
JOB_MADE = "run worker job created"  # what dagster-k8s records of a launch that succeeded
OF_THE_DAEMON = {AUTO_MATERIALIZE_TAG, AUTO_OBSERVE_TAG, AUTOMATION_CONDITION_TAG, BACKFILL_ID_TAG, RETRY_NUMBER_TAG,
                 SCHEDULE_NAME_TAG, SENSOR_NAME_TAG, TICK_ID_TAG}  # it queues what it had begun to launch  # fmt: skip


@dataclass
class Reaped:
    """What one pass did: names of Jobs deleted, ids of runs failed and of runs cancelled."""

    deleted: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)


class Reaper:
    """Passes over the run Jobs of one instance. Not safe for use by two threads."""

    def __init__(self, instance: DagsterInstance, launcher: RunLauncher) -> None:
        self._instance, self._launcher = instance, launcher
        self._without_job: set[str] = set()  # starting runs that had none at the last pass

    def run_pass(self, now: float) -> Reaped:
        """Delete, fail, cancel, return. *now* is Unix time.

        Raises:
            ApiException, urllib3's HTTPError: if the API server does not answer; the next pass does it all.
        """
        reaped = Reaped()
        jobs = {job["metadata"]["labels"].get("dagster/run-id", ""): job for job in self._launcher.run_jobs()}
        records = {record.dagster_run.run_id: record for record in self._records(list(jobs))}
        for run_id, job in jobs.items():
            record = records.get(run_id)
            if _is_active(job) and _is_over(record, now) and self._launcher.delete_job(job["metadata"]["name"]):
                log.info("Deleted Job %s: its run is over", job["metadata"]["name"])
                reaped.deleted.append(job["metadata"]["name"])
        starting = self._instance.get_run_records(RunsFilter(statuses=[DagsterRunStatus.STARTING]))
        without_job = {record.dagster_run.run_id for record in starting} - jobs.keys()
        for record in starting:
            run = record.dagster_run
            if why := self._why_it_does_not_start(record, jobs.get(run.run_id), now):
                self._instance.report_run_failed(run, f"The run's pod did not start. {why}")
                reaped.failed.append(run.run_id)
        self._without_job = without_job
        reaped.cancelled = self._cancel_half_launched(now)
        return reaped

    def _why_it_does_not_start(self, record: RunRecord, job: Mapping[str, Any] | None, now: float) -> str:
        """Why a run that is starting never will, and what to do; empty while it still may."""
        run, starting_for = record.dagster_run, now - record.update_timestamp.timestamp()
        if job and not _is_active(job):  # what its pod had to say is in the database: the Job was read before the run
            return self._launcher.why_it_cannot_start(run) or (
                f"Its pod ended before it began to work: preempted, evicted or deleted ({_last_word(job)}). "
                "The run is retried if retries are on."
            )
        if starting_for < START_SECONDS:
            return ""
        if job:
            return self._launcher.why_it_cannot_start(run)
        if run.run_id not in self._without_job:
            return ""
        if self._had_a_job(run.run_id):
            return "Its Job is gone: somebody deleted it. Launch the run again."
        if starting_for > LAUNCH_SECONDS + START_SECONDS:
            return "No Job was made for it. Launch the run again."
        return ""  # the launcher may still be trying

    def _had_a_job(self, run_id: str) -> bool:
        events = self._instance.get_records_for_run(run_id, of_type=DagsterEventType.ENGINE_EVENT).records
        return any(JOB_MADE in record.event_log_entry.message for record in events)

    def _cancel_half_launched(self, now: float) -> list[str]:
        """A launch that lost the database between making its run and queueing it: who asked for it was told that it failed."""
        made = self._instance.get_run_records(RunsFilter(statuses=[DagsterRunStatus.NOT_STARTED]), limit=PAGE)
        cancelled = []
        for record in made:
            run = record.dagster_run
            if now - record.create_timestamp.timestamp() > START_SECONDS and not OF_THE_DAEMON & run.tags.keys():
                self._instance.report_run_canceled(run, "Its launch was cut off before it was queued. Launch it again.")
                cancelled.append(run.run_id)
        return cancelled

    def _records(self, run_ids: list[str]) -> Iterator[RunRecord]:
        for start in range(0, len(run_ids), PAGE):
            yield from self._instance.get_run_records(RunsFilter(run_ids=run_ids[start : start + PAGE]))


def start(period_seconds: float = PERIOD_SECONDS) -> threading.Thread:
    """Make passes for ever in a thread that ends with this process, on the instance of DAGSTER_HOME."""
    thread = threading.Thread(target=_run, args=[period_seconds], name="reaper", daemon=True)
    thread.start()
    return thread


def _run(period_seconds: float) -> None:
    with DagsterInstance.get() as instance:
        sessions.pool(instance)
        launcher = instance.run_launcher
        assert isinstance(launcher, RunLauncher)
        reaper = Reaper(instance, launcher)
        while True:
            try:
                reaper.run_pass(time.time())
            except NOT_KNOWN as error:
                log.warning("The API server does not answer: %s", str(error)[:300])
            except Exception:  # a database that is away, above all; a dead reaper would not be noticed
                log.exception("A pass of the reaper failed; the next one does its work")
            time.sleep(period_seconds)


def _is_active(job: Mapping[str, Any]) -> bool:
    conditions = job.get("status", {}).get("conditions") or ()
    return not any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)


def _last_word(job: Mapping[str, Any]) -> str:
    """Of the Job's controller."""
    ended = next(each for each in job["status"]["conditions"] if each["type"] in ("Complete", "Failed"))
    return ": ".join(filter(None, (ended.get("reason"), ended.get("message")))) or str(ended["type"])


def _is_over(record: RunRecord | None, now: float) -> bool:
    """True too for a run that is not in the database: it was deleted, or a backup from before it was restored."""
    return record is None or (
        record.dagster_run.is_finished and now - record.update_timestamp.timestamp() > OVER_SECONDS
    )
