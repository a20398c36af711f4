"""What events do not say of their run: its job, its code location, what started it, when."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from pipeline.exporter.database import Database

MAX_KEPT = 5_000
MAX_ENDED = 5_000
REPOSITORY = ".dagster/repository"
SCHEDULED = ".dagster/scheduled_execution_time"
TAGS = (REPOSITORY, SCHEDULED, "dagster/schedule_name", "dagster/sensor_name", "dagster/backfill", "dagster/auto_materialize",
        "dagster/from_automation_condition", "dagster/parent_run_id", "dagster/retry_number")  # fmt: skip
ASSET_JOB = "__ASSET_JOB"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run, as far as it never changes."""

    job: str = UNKNOWN
    location: str = UNKNOWN
    trigger: str = "manual"
    is_retry: bool = False
    scheduled_at: float | None = None  # epoch seconds at which its schedule was to start it

    @property
    def labels(self) -> tuple[str, str]:
        """Values of ``code_location, job_name``."""
        return self.location, self.job


class Ended:
    """Runs that ended of late, so that whatever else comes of one is not taken for a new run."""

    def __init__(self) -> None:
        self._runs: dict[str, None] = {}  # in their order

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def add(self, run_id: str) -> None:
        self._runs[run_id] = None
        if len(self._runs) > MAX_ENDED:
            self._runs = dict.fromkeys(list(self._runs)[-MAX_ENDED // 2 :])

    def dump(self) -> list[str]:
        return list(self._runs)[-2_000:]

    def load(self, dumped: Collection[str]) -> None:
        self._runs.update(dict.fromkeys(dumped))


class RunCache:
    """`RunFacts` of runs that had events of late. A run that is gone has its defaults."""

    def __init__(self, most: float = MAX_KEPT) -> None:
        """*most* runs are kept; without end where `forget_others` is called."""
        self._most, self._kept = most, dict[str, RunFacts]()

    def forget_others(self, run_ids: Collection[str]) -> None:
        """Keep no run but *run_ids*, and of these not one whose tags were not there yet: they are stored after it."""
        known = {run_id: facts for run_id, facts in self._kept.items() if facts.location != UNKNOWN}
        self._kept = {run_id: facts for run_id, facts in known.items() if run_id in run_ids}

    def of(self, database: Database, run_ids: Collection[str]) -> dict[str, RunFacts]:
        """Facts by run id."""
        unknown = [run_id for run_id in set(run_ids) if run_id not in self._kept]
        for start in range(0, len(unknown), 1_000):
            self._kept.update(_read(database, unknown[start : start + 1_000]))
        found = {run_id: self._kept.get(run_id, RunFacts()) for run_id in run_ids}
        if len(self._kept) > self._most:
            self._kept = dict(list(self._kept.items())[len(self._kept) // 2 :])
        return found


def _read(database: Database, run_ids: list[str]) -> dict[str, RunFacts]:
    rows = database.rows(
        """SELECT r.run_id, r.pipeline_name, coalesce((SELECT json_object_agg(t.key, t.value) FROM run_tags t
                      WHERE t.run_id = r.run_id AND t.key = ANY(%s)), '{}')
           FROM runs r WHERE r.run_id = ANY(%s)""",
        list(TAGS),
        run_ids,
    )
    return {
        run_id: RunFacts(
            sys.intern(job),
            sys.intern(location_of(tags)),
            trigger_of(tags),
            "dagster/retry_number" in tags,
            _time_of(tags.get(SCHEDULED)),
        )
        for run_id, job, tags in rows
    }


def location_of(tags: dict[str, str]) -> str:
    """The code location in ``__repository__@location``."""
    return tags.get(REPOSITORY, "").partition("@")[2] or UNKNOWN


def trigger_of(tags: dict[str, str]) -> str:
    """What started a run with these tags; a retry before all, as it has its parent's tags."""
    if "dagster/retry_number" in tags or "dagster/parent_run_id" in tags:
        return "retry"
    if "dagster/backfill" in tags:
        return "backfill"
    if "dagster/auto_materialize" in tags or "dagster/from_automation_condition" in tags:
        return "automation"
    if "dagster/schedule_name" in tags:
        return "schedule"
    return "sensor" if "dagster/sensor_name" in tags else "manual"


def _time_of(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
