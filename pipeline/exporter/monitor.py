"""The monitor: every half minute a sample is taken and stored, and `document` tells what came between two of them.

It is a topic of the exporter, as that has all figures in memory and is the only one of its kind (it holds the lock). The
poll's thread takes the sample and hands it over whole, so that answers are made of what does not change under them. Who else
wants to know, in a process that cannot reach the exporter's port (a run's pod), reads the table: `pipeline.operate.monitor`.
This module imports nothing of `operate`; `operate` may import it, and the control API `document`.
"""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter import samples
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import RUN_SECONDS, Registry
from pipeline.exporter.samples import Sample, Sums, Tally, difference, runs_of
from pipeline.exporter.service_health import Watch
from pipeline.exporter.topic import Topic
from pipeline.settings import Settings

LISTED = 20  # jobs and assets of a document
DELETED_AT_ONCE = 500  # rows; ten times what a whole hour brings, so that a shorter retention is soon in force
DEFAULT_HOURS = 24.0
MAX_WINDOWS = 32  # whose first samples are kept in memory

# A sample that the database cannot take at once is not worth a late poll, nor, of half a minute, a wait for the disk.
INSERT = """SET LOCAL statement_timeout = '1s'; SET LOCAL synchronous_commit = off;
    INSERT INTO millrace.monitor_samples (at, sample) VALUES (now(), %s)"""
# By row address: joined by time, the planner reads the whole table for it.
DELETE = f"""SET LOCAL statement_timeout = '1s'; SET LOCAL synchronous_commit = off;
    DELETE FROM millrace.monitor_samples WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM millrace.monitor_samples WHERE at < now() - make_interval(days => %s)
        ORDER BY at LIMIT {DELETED_AT_ONCE}))"""
# The one before and the one after: after a time without an exporter either may be far away.
NEAREST = """WITH asked AS (SELECT now() - make_interval(secs => %s) AS at)
    SELECT sample FROM (
        (SELECT s.at, s.sample FROM millrace.monitor_samples s, asked WHERE s.at <= asked.at ORDER BY s.at DESC LIMIT 1)
        UNION ALL
        (SELECT s.at, s.sample FROM millrace.monitor_samples s, asked WHERE s.at > asked.at ORDER BY s.at LIMIT 1)
    ) found, asked ORDER BY abs(extract(epoch FROM found.at - asked.at)) LIMIT 1"""

Listing = Sequence[dict[str, Any]]  # of alerts, as ``/alerts`` shows them


class Monitor(Topic):
    """Takes samples, keeps them for the retention, and answers from the newest and the one at the window's start."""

    name = "monitor"

    def __init__(self, registry: Registry, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.current: Sample | None = None
        self._registry, self._settings, self._clock = registry, settings, clock
        self._watch = Watch(
            unavailable_seconds=settings.alert_unavailable_seconds,
            daemon_silent_seconds=settings.alert_daemon_silent_seconds,
        )
        self._taken_at = 0.0
        self._reading = threading.Lock()
        # hours → when it was read, the sample at the window's start, what was wrong
        self._firsts: dict[float, tuple[float, Sample | None, str]] = {}

    def poll(self, database: Database, now: float) -> None:
        if 0 <= now - self._taken_at < self._settings.monitor_interval_seconds:
            return
        self._taken_at = now
        services = [asdict(each) for each in self._watch.look(self._registry, self.problems, now)]
        # It cannot come oftener than a poll; who reads the table knows neither setting of this process.
        interval = max(self._settings.monitor_interval_seconds, self._settings.metrics_interval_seconds)
        self.current = samples.take(self._registry, now, services, interval_seconds=interval)
        if "events" in self.problems:  # asked a moment ago; to ask again would cost the poll another time-out
            raise ServiceError("Storing the monitor's sample: left out, as the database does not answer")
        database.write(INSERT, self.current.stored())
        database.write(DELETE, self._settings.monitor_retention_days)

    def dump(self) -> Any:
        return self._watch.dump()

    def load(self, dumped: Any) -> None:
        self._watch.load(dumped)

    def answer(self, query: str, alerts: Listing | None = None) -> dict[str, Any] | None:
        """The document for a URL's *query* (``hours=24``); None before the first sample. Any thread may ask.

        Raises:
            ConfigError: if the query asks for something that there is not.
        """
        hours = _hours(query, most=self._settings.monitor_retention_days * 24)
        current = self.current
        if current is None:
            return None
        first, problem = self._first(hours)
        answer = document(current, first, now=self._clock(), asked_hours=hours, problem=problem, alerts=alerts)
        answer["collected"]["interval_seconds"] = current.present["interval_seconds"]
        answer["collected"]["retention_days"] = self._settings.monitor_retention_days
        return answer

    def _first(self, hours: float) -> tuple[Sample | None, str]:
        """The sample at the window's start, read once an interval; of before, if it cannot be read now."""
        if not self._reading.acquire(timeout=1):  # another request waits for a database that hangs
            _, sample, _ = self._firsts.get(hours, (0.0, None, ""))
            return sample, "the database does not answer"
        try:
            now = self._clock()
            read_at, sample, problem = self._firsts.get(hours, (0.0, None, ""))
            if not 0 <= now - read_at < self._settings.monitor_interval_seconds:
                problem = ""
                try:
                    # A session of its own, and only for this: at most one an interval, and none that idles.
                    with closing(Database(self._settings)) as database:
                        rows = database.rows(NEAREST, hours * 3600)
                    sample = samples.load(rows[0][0]) if rows else None
                except ServiceError as error:
                    problem = str(error)
                self._firsts.pop(hours, None)
                self._firsts[hours] = (now, sample, problem)
                if len(self._firsts) > MAX_WINDOWS:
                    del self._firsts[next(iter(self._firsts))]
            return sample, problem
        finally:
            self._reading.release()


def _hours(query: str, *, most: float) -> float:
    try:
        asked = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=10)
    except ValueError:
        raise ConfigError(f"The query {query[:100]!r} cannot be read. It looks like ?hours=24.") from None
    if unknown := sorted(asked.keys() - {"hours"}):
        raise ConfigError(f"There is no parameter {unknown[0][:100]!r}; there is hours.")
    values = asked.get("hours", [str(DEFAULT_HOURS)])
    try:
        (hours,) = map(float, values)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= most:
        raise ConfigError(f"hours is {', '.join(values)[:100]!r}; it is one number above 0, and {most:g} at most.")
    return hours


def document(
    current: Sample,
    first: Sample | None,
    *,
    now: float,
    asked_hours: float,
    problem: str = "",
    alerts: Listing | None = None,
) -> dict[str, Any]:
    """What is now, by *current*, and what came since *first*, for JSON. Times are ISO 8601 in UTC, rates shares of 1.

    Without *first* nothing is known of the window: its figures are null, and `problem` says why. *alerts* is passed through.
    """
    present = current.present
    window: dict[str, Any] = {"asked_hours": asked_hours, "from": None, "to": _utc(current.counted_at), "hours": None}
    if first is None:
        problem = problem or "there is no earlier sample yet"
    else:
        window["from"] = _utc(first.counted_at)
        window["hours"] = round((current.counted_at - first.counted_at) / 3600, 3)
    jobs = current.jobs.since(first.jobs) if first else Tally()
    assets = current.assets.since(first.assets) if first else Tally()
    checks = difference(current.checks, first.checks) if first else None
    return {
        "window": {**window, "problem": problem or None},
        "collected": {
            "at": _utc(current.at),
            "age_seconds": round(now - current.at, 1),
            "counted_at": _utc(current.counted_at),
            "counted_age_seconds": round(now - current.counted_at, 1),
        },
        "services": [{**each, "since": _utc(each["since"])} for each in present["services"]],
        "services_count": present["services_count"],
        "runs": {
            **_runs(jobs.whole if first else None),
            "in_progress": present["in_progress"],
            "jobs": [
                {"code_location": location, "job_name": job, **_runs(sums), **_durations(sums)}
                for (location, job), sums in _most(jobs.named, lambda sums: (sums.get("failure", 0.0), runs_of(sums)))
                if runs_of(sums)
            ],
            "jobs_count": sum(bool(runs_of(sums)) for sums in jobs.named.values()),
            "other_jobs": _runs(jobs.others) if jobs.others_count else None,
        },
        "assets": {
            **_made(assets.whole if first else None),
            "assets": [
                {"asset_key": asset, **_made(sums), **_age("last_success", current.made_at.get(asset), now)}
                for asset, sums in _most(assets.named, lambda sums: (sums.get("failed", 0.0), sums.get("made", 0.0)))
                if any(sums.values())
            ],
            "assets_count": sum(any(sums.values()) for sums in assets.named.values()),
            "other_assets": _made(assets.others) if assets.others_count else None,
            "late": [
                {"asset_key": each["asset_key"], **_age("last_success", each["made_at"], now),
                 "max_age_seconds": each["max_age_seconds"]}
                for each in present["late"]
            ],
            "late_count": present["late_count"],
        },
        "checks": {
            "passed": checks and checks.get("passed", 0.0),
            "failed": checks and checks.get("failed", 0.0),
            "failing": [{**each, "at": _utc(each["at"])} for each in present["failing_checks"]],
            "failing_count": present["failing_checks_count"],
        },
        "resources": {
            "cpu_seconds": round(jobs.whole.get("cpu_seconds", 0.0), 1) if first else None,
            "jobs": [
                {"code_location": location, "job_name": job, "cpu_seconds": round(sums.get("cpu_seconds", 0.0), 1),
                 "peak_memory_ratio": _highest(sums, "peak<=")}
                for (location, job), sums in _most(jobs.named, lambda sums: (sums.get("cpu_seconds", 0.0),))
                if sums.get("cpu_seconds") or _highest(sums, "peak<=") is not None
            ],
            "runs_now": present["run_memory"],
            "services": present["service_memory"],
            "volumes": present["volumes"],
        },
        "queue": {
            "queued": present["in_progress"].get("queued", 0.0),
            "limit": present["queue"]["limit"],
            "oldest_queued_at": _utc(present["queue"]["oldest_queued_at"]),
            "pools": present["queue"]["pools"],
        },
        "alerts": None if alerts is None else list(alerts),
    }  # fmt: skip


def _most(sums: dict[Any, Sums], by: Callable[[Sums], tuple[float, ...]]) -> list[tuple[Any, Sums]]:
    return sorted(sums.items(), key=lambda item: (*(-value for value in by(item[1])), item[0]))[:LISTED]


def _runs(sums: Sums | None) -> dict[str, float | None]:
    """The rates are of those that ended by themselves."""
    if sums is None:
        return dict.fromkeys(("completed", "success", "failure", "canceled", "success_rate", "failure_rate"))
    success, failure = sums.get("success", 0.0), sums.get("failure", 0.0)
    ended = success + failure
    return {
        "completed": runs_of(sums),
        "success": success,
        "failure": failure,
        "canceled": sums.get("canceled", 0.0),
        "success_rate": round(success / ended, 4) if ended else None,
        "failure_rate": round(failure / ended, 4) if ended else None,
    }


def _made(sums: Sums | None) -> dict[str, float | None]:
    if sums is None:
        return {"materializations": None, "failures": None}
    return {"materializations": sums.get("made", 0.0), "failures": sums.get("failed", 0.0)}


def _durations(sums: Sums) -> dict[str, float | None]:
    """Of successful runs; estimates within the histogram's buckets, as Prometheus makes them."""
    return {"p50_seconds": quantile(sums, 0.5), "p95_seconds": quantile(sums, 0.95)}


def quantile(sums: Sums, share: float) -> float | None:
    """Seconds within which *share* of the successful runs ended, None if there were none."""
    counts = _buckets(sums, "took<=")
    rank = share * sum(counts.values())
    for limit, count in sorted(counts.items()):
        if count and rank <= count:
            if math.isinf(limit):
                return float(RUN_SECONDS[-1])
            place = bisect_left(RUN_SECONDS, limit)
            low = RUN_SECONDS[place - 1] if place else 0
            return round(low + (limit - low) * rank / count, 2)
        rank -= count
    return None


def _highest(sums: Sums, prefix: str) -> float | None:
    """The limit of the highest bucket that something fell into; of one without a limit, 1."""
    found = [limit for limit, count in _buckets(sums, prefix).items() if count]
    return min(max(found), 1.0) if found else None


def _buckets(sums: Sums, prefix: str) -> dict[float, float]:
    return {float(name.removeprefix(prefix)): count for name, count in sums.items() if name.startswith(prefix)}


def _age(what: str, at: float | None, now: float) -> dict[str, Any]:
    return {f"{what}_at": _utc(at), f"{what}_age_seconds": None if at is None else round(now - at, 1)}


def _utc(at: float | None) -> str | None:
    """Without a fraction; None for no time at all."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if at else None
