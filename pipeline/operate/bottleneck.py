"""The step that keeps a job's runs from ending sooner, by their critical path."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.operate.advice import LEAST_RUNS, Advice, period, title
from pipeline.operate.asset_use import Asset
from pipeline.operate.history import Job, Run, Step

RECENT_RUNS = 20  # with the same steps
BOTTLENECK_SHARE = 0.6  # of the critical path
LEAST_PATH_SECONDS = 60.0


@dataclass(frozen=True)
class Bottleneck:
    """The longest step of a critical path, and what halving it takes off the path; all times are seconds."""

    step: str
    path: Sequence[str]
    seconds: Mapping[str, float]  # of every step
    slack: Mapping[str, float]
    gain: float

    @property
    def step_seconds(self) -> float:
        return self.seconds[self.step]

    @property
    def path_seconds(self) -> float:
        return sum(self.seconds[key] for key in self.path)

    @property
    def serial_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        return self.step_seconds / self.path_seconds if self.path_seconds else 0.0


def bottleneck(job: Job, assets: Mapping[str, Asset]) -> Iterator[Advice]:
    """A step that is most of the longest chain of steps that wait for each other.

    Medians over the newest runs that have the same steps. The chain is what a run would take if steps that do not need
    each other went at once; in one process they go one after another, so both times are told.
    """
    runs = _alike(job.succeeded)[:RECENT_RUNS]
    if len(runs) < LEAST_RUNS or len(runs[0].steps) < 2:
        return
    found = _longest(runs, assets)
    if found.share <= BOTTLENECK_SHARE or found.path_seconds < LEAST_PATH_SECONDS:
        return
    wall = statistics.median([run.seconds for run in runs])
    asset, inside = _largest([step for run in runs for step in run.steps if step.key == found.step])
    split = asset or found.step
    chain = " → ".join(f"{key} {found.seconds[key]:,.0f} s" for key in found.path)
    others = [key for key in sorted(found.slack, key=lambda key: found.slack[key]) if key not in found.path][:3]
    slack = ", ".join(f"{key} {found.slack[key]:,.0f} s" for key in others)
    yield Advice(
        "bottleneck",
        f"{title(job)}: {found.step}",
        f"Split {split}, or make it do less: halving the step takes {found.step_seconds / 2:,.0f} s off a run whose steps "
        f"go one after another, as here, and {found.gain:,.0f} s off the critical path.",
        _way_to_split(assets.get(asset), split),
        f"critical path {chain} = {found.path_seconds:,.0f} s, of which {found.step} is {found.share:.0%}; one after another "
        f"the steps take {found.serial_seconds:,.0f} s, with start and end {wall:,.0f} s"
        + (f"; {asset} is {inside:.0%} of {found.step}" if asset and inside < 1 else "")
        + (f"; slack: {slack}" if slack else "")
        + f"; medians of {period(runs)}",
        found.gain,
        "s of the critical path",
        figures={
            "step_seconds": found.step_seconds,
            "critical_path_seconds": found.path_seconds,
            "share": found.share,
            "serial_seconds": found.serial_seconds,
            "wall_seconds": wall,
            "serial_gain_seconds": found.step_seconds / 2,
            "runs": len(runs),
        },
    )


def _alike(runs: Sequence[Run]) -> list[Run]:
    """Those with the steps that most runs have."""
    groups: dict[frozenset[str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[frozenset(step.key for step in run.steps)].append(run)
    return max(groups.values(), key=len, default=[])


def _longest(runs: Sequence[Run], assets: Mapping[str, Asset]) -> Bottleneck:
    """Of *runs* with the same steps."""
    steps = runs[0].steps
    seconds = {
        step.key: statistics.median([same.seconds for run in runs for same in run.steps if same.key == step.key])
        for step in steps
    }
    needs = _needs(steps, assets)
    path, slack = critical_path(seconds, needs)
    worst = max(path, key=lambda key: seconds[key])
    halved = {**seconds, worst: seconds[worst] / 2}
    shorter, _ = critical_path(halved, needs)
    gain = sum(seconds[key] for key in path) - sum(halved[key] for key in shorter)
    return Bottleneck(worst, path, seconds, slack, gain)


def critical_path(
    seconds: Mapping[str, float], needs: Mapping[str, Iterable[str]]
) -> tuple[list[str], dict[str, float]]:
    """The longest chain, and how much later than now each step could end without making it longer.

    *seconds* is in an order in which steps could run one after another.
    """
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for key, spent in seconds.items():
        last = max(needs[key], key=lambda need: ends[need], default=None)
        before[key], ends[key] = last, spent + (ends[last] if last else 0.0)
    after = dict.fromkeys(seconds, 0.0)
    for key in reversed(list(seconds)):
        for need in needs[key]:
            after[need] = max(after[need], after[key] + seconds[key])
    total = max(ends.values(), default=0.0)
    path: list[str] = []
    last = max(ends, key=lambda key: ends[key], default=None)
    while last is not None:
        path.insert(0, last)
        last = before[last]
    return path, {key: total - ends[key] - after[key] for key in seconds}


def _needs(steps: Sequence[Step], assets: Mapping[str, Asset]) -> dict[str, set[str]]:
    """What each step waits for: who makes what it reads or checks, and checks that may hold that back.

    A step without assets, or with some that the definitions do not have, waits for all before it, as it did. *steps* are
    in the order in which they began: by times alone, a clock that was set back lets one wait for a later one.
    """
    needs: dict[str, set[str]] = {}
    for number, step in enumerate(steps):
        own = step.assets | step.checks
        is_known = bool(own) and own <= assets.keys()
        read = {parent for key in step.assets & assets.keys() for parent in assets[key].parents} - step.assets
        read |= step.checks - step.assets
        guarded = {key for key in read if key in assets and assets[key].holds_back and key not in step.checks}
        needs[step.key] = {
            other.key
            for other in steps[:number]
            if other.ended_at <= step.started_at
            and (not is_known or other.assets & read or (not other.assets and other.checks & guarded) or not (other.assets | other.checks))
        }  # fmt: skip
    return needs


def _largest(steps: Sequence[Step]) -> tuple[str, float]:
    """The asset with the most of the steps' time, by what assets tell, and its share; evenly if they tell nothing."""
    spent: dict[str, float] = defaultdict(float)
    for made in (made for step in steps for made in step.made):
        spent[made.asset] += made.seconds or 0.0
    total = sum(spent.values())
    if not spent or (len(spent) > 1 and not total):
        return "", 1.0
    asset = max(sorted(spent), key=lambda key: spent[key])
    return asset, spent[asset] / total if total else 1.0


def _way_to_split(asset: Asset | None, name: str) -> str:
    if asset is None:
        return f"the code of {name}"
    if asset.is_partitioned:
        return f"a backfill of {asset.key} with MILLRACE_PARTITIONS_PER_RUN, whose runs go side by side"
    if asset.source.startswith("dbt/"):
        return f"{asset.source}: materialized: incremental, or models that do not need each other"
    return f"{asset.source or asset.key}: a stream for each part of what {asset.key} loads"
