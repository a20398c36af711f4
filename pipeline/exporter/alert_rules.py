"""The alerts that every installation needs, for those without Prometheus: what of deploy/rules fires is found here too.

Names, texts and times are those of the YAML, and a test runs the YAML's own test cases on both. No PromQL is read.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.exporter.metrics import Registry
from pipeline.exporter.workspace import EVERY_SECONDS

WINDOW_SECONDS = 3600.0  # of the failure rate
STEP_SECONDS = 60.0
LEAST_FAILED, LEAST_ENDED = 2, 5  # runs: one failure of two is not a page
FAILED_LATELY_SECONDS = 86400.0

DATABASE, WEBSERVER = ("service", "database"), ("service", "webserver")  # labels of the alerts of services

Labels = tuple[tuple[str, str], ...]  # name and value of each
Found = dict[Labels, float]  # what is too much → how much it is
Job = tuple[str, str]


@dataclass(frozen=True)
class Figures:
    """What rules look at: the exporter's metrics, and what was counted within the hour."""

    registry: Registry
    recent: "RecentRuns"
    now: float

    def series(self, name: str, **where: str) -> Found:
        """Value by labels of the series of *name* that have the labels *where*."""
        metric = self.registry[name]
        places = [(metric.labels.index(label), wanted) for label, wanted in where.items()]
        return {
            tuple(zip(metric.labels, key, strict=True)): float(value)
            for key, value in metric.series.items()
            if all(key[place] == wanted for place, wanted in places)
        }

    def threshold(self, name: str) -> float:
        """Past everything where there is none."""
        return float(self.registry[f"millrace_threshold_{name}"].series.get((), math.inf))


@dataclass(frozen=True)
class Rule:
    """One alert. Its texts are templates, as in a rule of Prometheus."""

    name: str
    severity: str
    for_seconds: float
    summary: str
    description: str
    find: Callable[[Figures], Found]


class RecentRuns:
    """Runs of each job that ended within the hour, by the minute: as many as there were runs, at most."""

    def __init__(self) -> None:
        self._seen: dict[Job, tuple[float, float]] | None = None  # ended and failed, when looked at last
        self._at = 0.0
        self._minutes: deque[tuple[float, dict[Job, tuple[float, float]]]] = deque()

    def observe(self, registry: Registry, now: float) -> None:
        """Add what the counters grew by. After a pause of more than the window, or a jump of the clock, begin anew."""
        seen = _ended_and_failed(registry)
        if self._seen is None or not 0 <= now - self._at <= WINDOW_SECONDS:
            self._minutes.clear()
        else:
            grown = {job: _grown(self._seen.get(job, (0.0, 0.0)), totals) for job, totals in seen.items()}
            if grown := {job: by for job, by in grown.items() if by[0]}:
                self._add(grown, now)
        while self._minutes and self._minutes[0][0] <= now - WINDOW_SECONDS:
            self._minutes.popleft()
        self._seen, self._at = seen, now

    def sums(self) -> dict[Job, tuple[float, float]]:
        """Ended and failed runs of the window, of each job that had any."""
        sums: dict[Job, tuple[float, float]] = {}
        for _, minute in self._minutes:
            for job, (ended, failed) in minute.items():
                before = sums.get(job, (0.0, 0.0))
                sums[job] = before[0] + ended, before[1] + failed
        return sums

    def dump(self) -> Any:
        return {
            "at": self._at,
            "seen": None if self._seen is None else _listed(self._seen),
            "minutes": [[at, _listed(minute)] for at, minute in self._minutes],
        }

    def load(self, dumped: Any) -> None:
        self._at = dumped["at"]
        self._seen = None if dumped["seen"] is None else _by_job(dumped["seen"])
        self._minutes = deque((at, _by_job(minute)) for at, minute in dumped["minutes"])

    def _add(self, grown: dict[Job, tuple[float, float]], now: float) -> None:
        if not self._minutes or now - self._minutes[-1][0] >= STEP_SECONDS:
            self._minutes.append((now, {}))
        minute = self._minutes[-1][1]
        for job, (ended, failed) in grown.items():
            before = minute.get(job, (0.0, 0.0))
            minute[job] = before[0] + ended, before[1] + failed


def failing_jobs(figures: Figures) -> Found:
    """By the hour, and for a job that runs once a day by its last runs, for a day after a failure."""
    limit, found = figures.threshold("failure_ratio"), {}
    runs = figures.series("dagster_job_recent_runs")
    failed_at = {
        _without(labels, "status"): at
        for labels, at in figures.series("dagster_run_last_completed_timestamp_seconds", status="failure").items()
    }
    for job, ratio in figures.series("dagster_job_recent_failure_ratio").items():
        enough = runs.get(job, 0) >= LEAST_ENDED and ratio * runs[job] > LEAST_FAILED - 0.5
        if ratio > limit and enough and figures.now - failed_at.get(job, -math.inf) < FAILED_LATELY_SECONDS:
            found[job] = ratio
    for (location, name), (ended, failed) in figures.recent.sums().items():
        if failed >= LEAST_FAILED and ended >= LEAST_ENDED and failed / ended > limit:
            found[(("code_location", location), ("job_name", name))] = failed / ended
    return found


def slow_runs(figures: Figures) -> Found:
    """Those still at work: a histogram would tell afterwards."""
    own = figures.series("dagster_job_slow_threshold_seconds")
    default = figures.threshold("slow_run_seconds")
    ages = {
        labels: figures.now - since
        for labels, since in figures.series("dagster_run_oldest_status_timestamp_seconds", status="started").items()
    }
    return {labels: age for labels, age in ages.items() if age > own.get(_without(labels, "status"), default)}


def hungry_runs(figures: Figures) -> Found:
    """Share of its memory limit that the hungriest run of a job has; without a limit there is none."""
    limits, share = figures.series("dagster_run_memory_limit_bytes"), figures.threshold("memory_ratio")
    ratios = {
        labels: used / limits[labels]
        for labels, used in figures.series("dagster_run_memory_working_set_bytes").items()
        if limits.get(labels)
    }
    return {labels: ratio for labels, ratio in ratios.items() if ratio > share}


def silent_services(figures: Figures) -> Found:
    """The database and the webserver, as the exporter is answered by them."""
    limit, found = figures.threshold("unavailable_seconds"), {}
    for service, collector, grace in ((DATABASE, "events", 0.0), (WEBSERVER, "workspace", EVERY_SECONDS)):
        for labels, at in figures.series(
            "dagster_exporter_last_success_timestamp_seconds", collector=collector
        ).items():
            if figures.now - at > limit + grace:
                found[(*labels, service)] = figures.now - at
    return found


def silent_daemons(figures: Figures) -> Found:
    """Those that the instance requires."""
    limit, newest = figures.threshold("daemon_silent_seconds"), Found()
    for labels, at in figures.series("dagster_daemon_last_heartbeat_timestamp_seconds", required="true").items():
        daemon = _without(labels, "required")
        newest[daemon] = max(at, newest.get(daemon, at))
    return {daemon: figures.now - at for daemon, at in newest.items() if figures.now - at > limit}


# That of the database stands for all other alerts: every figure is an old one then.
UNAVAILABLE = "MillraceServiceUnavailable"
RULES: Sequence[Rule] = (
    Rule(
        UNAVAILABLE, "critical", 60, "A service does not answer.", "The {{ $labels.service }} does not answer.",
        silent_services,
    ),
    Rule(
        "MillraceDaemonStale", "critical", 60, "A daemon is not alive.",
        "The {{ $labels.daemon_type }} daemon has not reported for {{ $value | humanizeDuration }}.", silent_daemons,
    ),
    Rule(
        "MillraceFailureRateHigh", "warning", 300, "A job fails too often.",
        "{{ $value | humanizePercentage }} of the runs of {{ $labels.job_name }} ({{ $labels.code_location }}) failed.",
        failing_jobs,
    ),
    Rule(
        "MillraceRunSlow", "warning", 60, "A run takes longer than its job may.",
        "A run of {{ $labels.job_name }} ({{ $labels.code_location }}) has been at work for {{ $value | humanizeDuration }}.",
        slow_runs,
    ),
    Rule(
        "MillraceRunMemoryHigh", "warning", 120, "A run is close to its memory limit.",
        "A run of {{ $labels.job_name }} ({{ $labels.code_location }}) uses {{ $value | humanizePercentage }} of its memory limit.",
        hungry_runs,
    ),
)  # fmt: skip


def filled(text: str, labels: Labels, value: float) -> str:
    """The template *text* for a series with *labels*, at *value*."""

    def fill(found: re.Match[str]) -> str:
        match found[1].split():
            case ["$value", "|", "humanizePercentage"]:
                return f"{value * 100:.4g}%"
            case ["$value", "|", "humanizeDuration"]:
                return _duration(value)
            case [name] if name.startswith("$labels."):
                return dict(labels).get(name.removeprefix("$labels."), "")
        raise ValueError(f"{found[0]} in {text!r} is not understood")

    return re.sub(r"\{\{(.*?)\}\}", fill, text)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.4g}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next(at for at, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count}{unit}" for count, unit in parts[first:])


def _ended_and_failed(registry: Registry) -> dict[Job, tuple[float, float]]:
    totals: dict[Job, tuple[float, float]] = {}
    for (location, job, status), count in registry["dagster_runs_completed_total"].series.items():
        if status in ("success", "failure"):
            ended, failed = totals.get((location, job), (0.0, 0.0))
            totals[(location, job)] = ended + count, failed + count * (status == "failure")
    return totals


def _grown(before: tuple[float, float], now: tuple[float, float]) -> tuple[float, float]:
    """From *before* to *now*; a job that was gone in between counts from 0."""
    if now[0] < before[0] or now[1] < before[1]:
        return now
    return now[0] - before[0], now[1] - before[1]


def _without(labels: Labels, name: str) -> Labels:
    return tuple(label for label in labels if label[0] != name)


def _listed(counts: dict[Job, tuple[float, float]]) -> list[Any]:
    return [[*job, *numbers] for job, numbers in counts.items()]


def _by_job(listed: list[Any]) -> dict[Job, tuple[float, float]]:
    return {(location, job): (ended, failed) for location, job, ended, failed in listed}
