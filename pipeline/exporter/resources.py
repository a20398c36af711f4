"""Memory, CPU and disk of runs, as their sampler tells them through the event log (`pipeline.launch.sampler`)."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cgroup import SAMPLE
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Counter, Registry
from pipeline.exporter.run_facts import Ended
from pipeline.exporter.runs import ENDS as RUN_ENDS
from pipeline.exporter.runs import JOB, Runs
from pipeline.exporter.tail import Event
from pipeline.exporter.topic import Batch, Topic, restored

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MAX_RUNS = 20_000
SILENT_SECONDS = 900.0  # a run at work tells something every five minutes


@dataclass
class Used:
    """The newest sample of a run under way; bytes and seconds."""

    working_set: float = 0.0
    limit: float | None = None
    peak: float = 0.0
    cpu_seconds: float = 0.0
    throttled_seconds: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    oom_kills: float = 0.0
    told_at: float = 0.0


def sample_of(event: Event) -> dict[str, Any] | None:
    """What the event tells of its run's resources, if anything."""
    if event.type != "ENGINE_EVENT" or SAMPLE not in (event.body or ""):
        return None
    for entry in event.data.get("metadata_entries") or ():
        if entry["label"] == SAMPLE:
            found = (entry.get("entry_data") or {}).get("data")
            found = json.loads(found) if isinstance(found, str) else found
            return found if isinstance(found, dict) else None
    return None


class Resources(Topic):
    """Gauges are of the hungriest run of the job that is under way; sums are of all."""

    name = "resources"
    bodies_of = frozenset({"ENGINE_EVENT"})

    def __init__(self, registry: Registry, runs: Runs) -> None:
        self.working_set = registry.gauge(
            "dagster_run_memory_working_set_bytes", "Memory in use by the job's hungriest run under way.", JOB
        )
        self.limit = registry.gauge("dagster_run_memory_limit_bytes", "Memory limit of that run.", JOB)
        self.peak_ratio = registry.histogram(
            "dagster_run_peak_memory_ratio",
            "Peak of a run's memory over its limit, when it ended.",
            JOB,
            buckets=RATIOS,
        )
        self.last_peak = registry.last_value(
            "dagster_run_last_peak_memory_bytes", "Memory peak of the job's last run.", JOB
        )
        self.cpu = registry.counter("dagster_run_cpu_seconds_total", "CPU time of runs.", JOB)
        self.throttled = registry.counter(
            "dagster_run_cpu_throttled_seconds_total", "Time for which runs waited for their CPU limit.", JOB
        )
        self.read = registry.counter("dagster_run_disk_read_bytes_total", "Bytes that runs read from disk.", JOB)
        self.written = registry.counter("dagster_run_disk_written_bytes_total", "Bytes that runs wrote to disk.", JOB)
        self.oom_kills = registry.counter(
            "dagster_run_oom_kills_total", "Processes that the kernel killed for want of memory.", JOB
        )
        self._used: dict[str, Used] = {}
        self._labels: dict[str, tuple[str, str]] = {}
        self._runs = runs  # which saves what ended before a restart
        self._ended = Ended()  # as of the event that is counted: the process may live on for a while, and tell
        self._now = 0.0

    def start_job(self, location: str, job: str) -> None:
        """Have the job's sums before its first run."""
        for metric in (self.peak_ratio, *self._sums()):
            metric.start(location, job)

    def forget_jobs(self, gone: set[tuple[str, str]]) -> None:
        """Remove the series of jobs that are gone."""
        for metric in (self.peak_ratio, self.last_peak, *self._sums()):
            metric.forget_all(JOB, gone)

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            if event.run_id in self._ended:
                continue
            if sample := sample_of(event):
                self._sample(event, batch.runs[event.run_id].labels, sample)
            elif event.type in RUN_ENDS:
                self._ended.add(event.run_id)
                if event.run_id not in self._used:
                    continue
                used, labels = self._used.pop(event.run_id), self._labels.pop(event.run_id)
                if used.limit:
                    self.peak_ratio.observe(used.peak / used.limit, *labels)
                self.last_peak.set(used.peak, *labels)
        self._show()

    def poll(self, database: Database, now: float) -> None:
        self._now = now
        self._show()

    def _sample(self, event: Event, labels: tuple[str, str], sample: dict[str, Any]) -> None:
        run_id = event.run_id
        before = self._used.pop(run_id, Used())  # and to the end: who told longest ago is forgotten first
        told = {name: sample.get(name) or getattr(before, name) for name in asdict(before)}
        used = Used(**{**told, "told_at": event.at})
        for metric, name in self._sums().items():
            metric.start(*labels)
            metric.add(*labels, by=max(getattr(used, name) - getattr(before, name), 0.0))
        self._used[run_id], self._labels[run_id] = used, labels
        if len(self._used) > MAX_RUNS:
            oldest = next(iter(self._used))
            del self._used[oldest], self._labels[oldest]

    def _sums(self) -> dict[Counter, str]:
        """By what `Used` calls them."""
        return {
            self.cpu: "cpu_seconds",
            self.throttled: "throttled_seconds",
            self.read: "read_bytes",
            self.written: "written_bytes",
            self.oom_kills: "oom_kills",
        }

    def _show(self) -> None:
        working_set: dict[tuple[str, ...], float] = {}
        limit: dict[tuple[str, ...], float] = {}
        for run_id, used in self._used.items():
            if self._now - used.told_at > SILENT_SECONDS:
                continue  # its sums stay, or all of it would be added again when it tells once more
            labels = self._labels[run_id]
            if used.working_set >= working_set.get(labels, 0.0):
                working_set[labels] = used.working_set
                if used.limit:
                    limit[labels] = used.limit
        self.working_set.replace(working_set)
        self.limit.replace(limit)

    def dump(self) -> Any:
        return [[run_id, *self._labels[run_id], asdict(used)] for run_id, used in self._used.items()]

    def load(self, dumped: Any) -> None:
        for run_id, location, job, used in dumped:
            self._used[run_id], self._labels[run_id] = restored(Used, used), (location, job)
        self._ended.load(self._runs.ended.dump())
        self._show()
