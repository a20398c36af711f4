"""Steps: how many, how they ended, how long they took."""

from pipeline.exporter.metrics import Registry
from pipeline.exporter.runs import JOB
from pipeline.exporter.topic import Batch, Topic

ENDS = {"STEP_SUCCESS": "success", "STEP_FAILURE": "failure", "STEP_SKIPPED": "skipped"}


class Steps(Topic):
    """By job: a step has no label of its own, as a project has thousands."""

    name = "steps"
    bodies_of = frozenset({"STEP_SUCCESS"})

    def __init__(self, registry: Registry) -> None:
        self.completed = registry.counter(
            "dagster_steps_completed_total", "Steps that ended, by how.", (*JOB, "status")
        )
        self.retries = registry.counter("dagster_step_retries_total", "Steps that are tried once more.", JOB)
        self.duration = registry.histogram("dagster_step_duration_seconds", "How long successful steps took.", JOB)

    def start_job(self, location: str, job: str) -> None:
        """Have the job's series before its first step."""
        for status in ENDS.values():
            self.completed.start(location, job, status)
        self.retries.start(location, job)
        self.duration.start(location, job)

    def forget_jobs(self, gone: set[tuple[str, str]]) -> None:
        """Remove the series of jobs that are gone."""
        for metric in (self.completed, self.retries, self.duration):
            metric.forget_all(JOB, gone)

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            if event.type in ENDS:
                labels = batch.runs[event.run_id].labels
                self.completed.add(*labels, ENDS[event.type])
                if event.type == "STEP_SUCCESS":
                    self.duration.observe(float(event.data.get("duration_ms") or 0) / 1000, *labels)
            elif event.type == "STEP_UP_FOR_RETRY":
                self.retries.add(*batch.runs[event.run_id].labels)
