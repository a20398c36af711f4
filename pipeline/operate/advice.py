"""One piece of advice, and the words and limits that all rules share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.exporter.run_facts import ASSET_JOB
from pipeline.operate.history import Job, Run

LEAST_RUNS = 5
STARTUP_SHARE = 0.3  # of a run
RETRY_TAG, SCHEDULE_TAG = "dagster/retry_number", "dagster/schedule_name"
ENDS = ("site/", "report/", "health/")  # assets of which nothing is made: they are what all else is made for


@dataclass(frozen=True)
class Advice:
    """One thing to change. *gain* is in *unit*; *money_per_month* is negative where it costs, 0 where it is no money."""

    kind: str
    subject: str
    text: str
    setting: str
    evidence: str
    gain: float
    unit: str
    money_per_month: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


def title(job: Job) -> str:
    """The job as people know it; runs of assets alone have a job of Dagster's own."""
    return "runs of assets" if job.name == ASSET_JOB else job.name


def period(runs: Sequence[Run]) -> str:
    """``12 runs, 2026-11-08 to 2026-11-22``."""
    days = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d") for at in sorted(run.ended_at for run in runs)]
    return f"{len(runs)} runs, {days[0]} to {days[-1]}" if days[0] != days[-1] else f"{len(runs)} runs on {days[0]}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of *values* that at least *share* of them do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(round(share * len(ordered), 6)) - 1]
