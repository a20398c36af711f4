"""What runs and ticks of the last days were, as plain facts: `history_reader` reads them from Dagster's tables.

What follows from it is `bottleneck`, `lost_time`, `idle`, `sizing` and `costs`, which know no database.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.launch.pods import KILLED_AT_TAG

DAY = 86_400.0
TICK_DAYS = 7  # of which ticks are read
PARTITION_TAGS = ("dagster/partition", "dagster/asset_partition_range_start")


@dataclass(frozen=True)
class Made:
    """An asset that a step was to make. *seconds* and *rows_loaded* are what it says of itself, None if nothing."""

    asset: str
    seconds: float | None = None
    rows_loaded: int | None = None
    partitions: int = 0


@dataclass(frozen=True)
class Step:
    """A step that ran, epoch seconds; *checks* are the assets of which it makes checks."""

    key: str
    started_at: float
    ended_at: float
    made: tuple[Made, ...] = ()
    checks: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        return max(self.ended_at - self.started_at, 0.0)

    @property
    def assets(self) -> frozenset[str]:
        return frozenset(made.asset for made in self.made)


@dataclass(frozen=True)
class ResourceUse:
    """What a run used, bytes and seconds: the highest that it told.

    *peak_is_kernels* is false where the kernel keeps no peak: it may then have been higher between two samples.
    """

    peak: float = 0.0
    peak_is_kernels: bool = False
    working_set: float = 0.0
    limit: float = 0.0  # 0: none, or not known
    cpu_seconds: float = 0.0
    throttled_seconds: float = 0.0
    oom_kills: float = 0.0


@dataclass(frozen=True)
class Run:
    """A run that ended; *status* is success, failure or canceled, moments are epoch seconds."""

    id: str
    status: str
    began_at: float  # launched, which is when its pod begins; else started
    ended_at: float
    steps: tuple[Step, ...] = ()
    used: ResourceUse | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    queued_at: float | None = None
    started_at: float | None = None  # by its own process; None if that told nothing
    is_pod: bool = False
    cpu_request: float | None = None  # cores, of a pod
    memory_request: float | None = None  # bytes, of a pod
    memory_limit: float | None = None

    @property
    def seconds(self) -> float:
        return max(self.ended_at - self.began_at, 0.0)

    @property
    def process_seconds(self) -> float:
        """From the start of its process: what came before, as a pod that found no node, used nothing."""
        return max(self.ended_at - (self.began_at if self.started_at is None else self.started_at), 0.0)

    @property
    def startup_seconds(self) -> float:
        """From launch to the first step."""
        return max(min([step.started_at for step in self.steps], default=self.ended_at) - self.began_at, 0.0)

    @property
    def waited_seconds(self) -> float | None:
        """In the queue; None if it was not there."""
        return None if self.queued_at is None else max(self.began_at - self.queued_at, 0.0)

    @property
    def ran_out_of_memory(self) -> bool:
        """True if the kernel killed it or a child of it; a retry that succeeded has its tag too."""
        killed = self.used is not None and self.used.oom_kills > 0
        return killed or (self.status == "failure" and KILLED_AT_TAG in self.tags)

    @property
    def did_work(self) -> bool:
        """True if it succeeded and, where its loads tell their rows, brought some: only then it shows what it needs."""
        rows = [made.rows_loaded for step in self.steps for made in step.made if made.rows_loaded is not None]
        return self.status == "success" and (not rows or any(rows))

    @property
    def assets(self) -> frozenset[str]:
        return frozenset(asset for step in self.steps for asset in step.assets)

    @property
    def is_of_partitions(self) -> bool:
        """True if it was started for some partitions, not for whatever is new."""
        return not self.tags.keys().isdisjoint(PARTITION_TAGS)


@dataclass(frozen=True)
class Job:
    """The newest runs of a job, newest first, and the days that they are all runs of: parts of one, of a frequent job."""

    location: str
    name: str
    runs: tuple[Run, ...]
    days: float

    @property
    def succeeded(self) -> list[Run]:
        return [run for run in self.runs if run.status == "success"]


@dataclass(frozen=True)
class Tick:
    """One evaluation of a schedule or sensor: success, failure, skipped or started; epoch seconds."""

    status: str
    at: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Instigator:
    """A schedule or sensor (*kind*) and its ticks of the last days, newest first."""

    kind: str
    name: str
    location: str
    is_on: bool
    changed_at: float
    interval: float = 30.0  # seconds at least between two ticks of a sensor; Dagster's own if it says none
    follows_runs: bool = False  # a sensor of run statuses: it asks the database alone, and is to answer soon
    ticks: tuple[Tick, ...] = ()


@dataclass(frozen=True)
class History:
    """What advice is based on. *left_out* says, a sentence each, what a cap kept out."""

    now: float
    days: float
    jobs: tuple[Job, ...] = ()
    instigators: tuple[Instigator, ...] = ()
    left_out: tuple[str, ...] = ()
