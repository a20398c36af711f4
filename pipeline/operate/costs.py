"""What runs cost: the time of their pods, the memory and CPU that these keep, and whose steps they were."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.exporter.compute import parts
from pipeline.operate.history import Job, Run, Step
from pipeline.settings import GIB

HOUR = 3600.0
MONTH_DAYS = 30.0
UNREPORTED_CORES = 1.0


@dataclass(frozen=True)
class Prices:
    """Money for an hour of a core and of a GiB."""

    cpu_hour: float
    gib_hour: float
    currency: str

    def text(self, amount: float) -> str:
        """*amount* as people read it."""
        return f"{amount:,.2f} {self.currency}"


@dataclass(frozen=True)
class Cost:
    """Of an asset, or of a *job* itself where no asset was made, per month of 30 days; *share* is of all."""

    name: str
    pod_hours: float
    money: float
    share: float
    runs: int
    reported_runs: int  # which told what they use; others count with what they ask for, or with one core


def cores(run: Run) -> float:
    """What the run kept of CPU: what it asked for, or used if that is more."""
    used = run.used.cpu_seconds / run.seconds if run.used and run.seconds else 0.0
    return max(used, run.cpu_request or 0.0) or UNREPORTED_CORES


def memory(run: Run) -> float:
    """What the run kept of memory, bytes: what it asked for, or used at its peak if that is more."""
    return max(run.memory_request or 0.0, run.used.peak if run.used else 0.0)


def hourly(run: Run, prices: Prices) -> float:
    """Money for an hour of the run."""
    return cores(run) * prices.cpu_hour + memory(run) / GIB * prices.gib_hour


def money(run: Run, prices: Prices) -> float:
    """Money for the whole run."""
    return run.seconds / HOUR * hourly(run, prices)


def monthly(runs: Iterable[Run], job: Job, prices: Prices) -> float:
    """Money a month for *runs* of *job*, if they go on as in its days."""
    return sum(money(run, prices) for run in runs) / job.days * MONTH_DAYS


def shares(run: Run, job: str) -> dict[str, float]:
    """Who the run was for, adding up to 1: its assets by the time of their steps, so that each bears start and end too.

    A step's assets share it by the time that they tell of themselves, evenly if one of them tells none. A step of checks
    is borne by what it checks; one without assets, and a run without steps, by the job.
    """
    total = sum(step.seconds for step in run.steps)
    if not total:
        return {f"job {job}": 1.0}
    found: dict[str, float] = defaultdict(float)
    for step in run.steps:
        for name, part in _parts(step, job).items():
            found[name] += part * step.seconds / total
    return dict(found)


def _parts(step: Step, job: str) -> dict[str, float]:
    if step.made:
        return parts({made.asset: made.seconds for made in step.made})
    return parts(dict.fromkeys(sorted(step.checks) or [f"job {job}"]))


def costs(jobs: Iterable[Job], prices: Prices) -> list[Cost]:
    """The cost of each asset, the dearest first."""
    hours: dict[str, float] = defaultdict(float)
    amounts: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    reported: dict[str, int] = defaultdict(int)
    for job in jobs:
        a_month = MONTH_DAYS / job.days
        for run in job.runs:
            for name, share in shares(run, job.name).items():
                hours[name] += share * run.seconds / HOUR * a_month
                amounts[name] += share * money(run, prices) * a_month
                runs[name] += 1
                reported[name] += run.used is not None
    total = sum(amounts.values()) or 1.0
    found = [
        Cost(name, hours[name], amounts[name], amounts[name] / total, runs[name], reported[name]) for name in hours
    ]
    return sorted(found, key=lambda cost: (-cost.money, -cost.pod_hours, cost.name))
