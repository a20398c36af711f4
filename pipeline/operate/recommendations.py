"""What to change, from the history of runs, ticks and assets: on time, on what is idle and on what nobody reads.

Each rule is a function of plain facts, and silent where they are too few. Memory, CPU and partitions are `sizing`.
"""

import math
import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.exporter.run_facts import ASSET_JOB
from pipeline.operate.asset_use import Asset
from pipeline.operate.costs import HOUR, MONTH_DAYS, Cost, Prices, monthly
from pipeline.operate.history import DAY, TICK_DAYS, History, Instigator, Job, Made, Run, Step

LEAST_RUNS = 5
RECENT_RUNS = 20  # with the same steps, for a critical path
BOTTLENECK_SHARE = 0.6  # of the critical path
LEAST_PATH_SECONDS = 60.0
STARTUP_SHARE = 0.3
LEAST_STARTUP_SECONDS = 600.0  # a day: less is not worth a change
QUEUE_SECONDS = 60.0  # 95th percentile
POOL_SHARE = 0.2
RETRY_SHARE = 0.05
LEAST_FOR_SHARES = 20  # runs
LEAST_UNCHANGED = 7  # runs of a schedule
LEAST_SKIPPED = 20  # ticks of a schedule
LEAST_TICKS = 500  # of a sensor: some hours at its interval
SKIPPED_SHARE = 0.99
SHORT_INTERVAL_SECONDS = 30.0
LONG_INTERVAL_SECONDS = 300.0
OFF_DAYS = 30.0
ENDS = ("site/", "report/", "health/")  # nothing is made of these: they are what all else is made for
RETRY_TAG, SCHEDULE_TAG, POOL_TAG = "dagster/retry_number", "dagster/schedule_name", ".dagster/pool/"
REASON_TAG = "dagster/failure_reason"
OUT_OF_MEMORY = "out of memory"
REMEDIES = {
    OUT_OF_MEMORY: "millrace.yaml: limits: a larger `memory` for the job or its assets",
    "start timeout": "runs.startTimeoutSeconds of the chart, or nodes that can take runs.maxConcurrent pods",
    "unexpected termination": "nodes that are not taken away (runs.nodeSelector of the chart)",
    "run worker restart": "nodes that are not taken away (runs.nodeSelector of the chart)",
}


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


# time


def bottleneck(job: Job, assets: Mapping[str, Asset]) -> Iterator[Advice]:
    """A step that is most of the longest chain of steps that wait for each other.

    Medians over the newest runs that have the same steps. The chain is what a run would take if steps that do not need
    each other went at once; in one process they go one after another, so both times are told.
    """
    runs = _alike(job.succeeded)[:RECENT_RUNS]
    if len(runs) < LEAST_RUNS or len(runs[0].steps) < 2:
        return
    seconds = {
        step.key: statistics.median([same.seconds for run in runs for same in run.steps if same.key == step.key])
        for step in runs[0].steps
    }
    needs = _needs(runs[0].steps, assets)
    path, slack = critical_path(seconds, needs)
    total = sum(seconds[key] for key in path)
    worst = max(path, key=lambda key: seconds[key])
    share = seconds[worst] / total if total else 0.0
    if share <= BOTTLENECK_SHARE or total < LEAST_PATH_SECONDS:
        return
    shorter, _ = critical_path({**seconds, worst: seconds[worst] / 2}, needs)
    halved = total - sum(seconds[key] if key != worst else seconds[key] / 2 for key in shorter)
    serial, wall = sum(seconds.values()), statistics.median([run.seconds for run in runs])
    asset, inside = _largest([step for run in runs for step in run.steps if step.key == worst])
    others = [f"{key} {slack[key]:,.0f} s" for key in sorted(slack, key=lambda key: slack[key]) if key not in path][:3]
    yield Advice(
        "bottleneck",
        f"{title(job)}: {worst}",
        f"Split {asset or worst}, or make it do less: halving the step takes {seconds[worst] / 2:,.0f} s off a run whose steps "
        f"go one after another, as here, and {halved:,.0f} s off the critical path.",
        _way_to_split(assets.get(asset), asset or worst),
        f"critical path {' → '.join(f'{key} {seconds[key]:,.0f} s' for key in path)} = {total:,.0f} s, of which {worst} is "
        f"{share:.0%}; one after another the steps take {serial:,.0f} s, with start and end {wall:,.0f} s"
        + (f"; {asset} is {inside:.0%} of {worst}" if asset and inside < 1 else "")
        + (f"; slack: {', '.join(others)}" if others else "")
        + f"; medians of {period(runs)}",
        halved,
        "s of the critical path",
        figures={"step_seconds": seconds[worst], "critical_path_seconds": total, "share": share, "serial_seconds": serial,
                 "wall_seconds": wall, "serial_gain_seconds": seconds[worst] / 2, "runs": len(runs)},
    )  # fmt: skip


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


def _alike(runs: Sequence[Run]) -> list[Run]:
    """Those with the steps that most runs have."""
    groups: dict[frozenset[str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[frozenset(step.key for step in run.steps)].append(run)
    return max(groups.values(), key=len, default=[])


def _needs(steps: Sequence[Step], assets: Mapping[str, Asset]) -> dict[str, set[str]]:
    """What each step waits for: who makes what it reads or checks, and checks that may hold that back.

    A step without assets, or with some that the definitions do not have, waits for all before it, as it did.
    """
    needs: dict[str, set[str]] = {}
    for step in steps:
        own = step.assets | step.checks
        is_known = bool(own) and own <= assets.keys()
        read = {parent for key in step.assets & assets.keys() for parent in assets[key].parents} - step.assets
        read |= step.checks - step.assets
        guarded = {key for key in read if key in assets and assets[key].holds_back and key not in step.checks}
        needs[step.key] = {
            other.key
            for other in steps
            if other.key != step.key
            and other.ended_at <= step.started_at
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


def startup(job: Job, prices: Prices) -> Iterator[Advice]:
    """Runs that are mostly start: pod, container, imports. Those of partitions are `sizing.partitions`."""
    runs = [run for run in job.succeeded if run.steps and run.seconds and not run.is_of_partitions]
    if len(runs) < LEAST_RUNS:
        return
    share = statistics.median([run.startup_seconds / run.seconds for run in runs])
    a_day = sum(run.startup_seconds for run in runs) / job.days
    if share <= STARTUP_SHARE or a_day < LEAST_STARTUP_SECONDS:
        return
    each = statistics.median([run.startup_seconds for run in runs])
    of_start = sum(run.startup_seconds for run in runs) / sum(run.seconds for run in runs)
    schedules = Counter(run.tags[SCHEDULE_TAG] for run in runs if SCHEDULE_TAG in run.tags).most_common(1)
    yield Advice(
        "start-up",
        title(job),
        f"Start fewer runs that each do more: half as many save {a_day / 2 / HOUR:,.1f} pod-hours a day.",
        f"millrace.yaml: schedules: {{{schedules[0][0]}: a rarer cron}}" if schedules else "more assets in one run",
        f"{each:,.0f} s from launch to the first step, {share:.0%} of a run, {len(runs) / job.days:,.1f} runs a day; medians of {period(runs)}",
        a_day / 2 / HOUR,
        "pod-hours a day",
        monthly(runs, job, prices) * of_start / 2,
        {"startup_seconds": each, "share": share, "runs": len(runs)},
    )  # fmt: skip


def queue(jobs: Sequence[Job]) -> Iterator[Advice]:
    """Runs that wait in the queue: for a pool that another run held, or else for one of the runs at once."""
    held = _held(jobs)
    for job in jobs:
        waited = [(run, run.waited_seconds) for run in job.runs if run.waited_seconds is not None]
        if len(waited) < LEAST_FOR_SHARES:
            continue
        runs = [run for run, _ in waited]
        in_pool: dict[str, float] = defaultdict(float)
        rest = []
        for run, seconds in waited:
            pools = [tag.removeprefix(POOL_TAG) for tag in run.tags if tag.startswith(POOL_TAG)]
            spent = {pool: _overlap(held[pool], run.began_at - seconds, run.began_at) for pool in pools}
            for pool, held_back in spent.items():
                in_pool[pool] += held_back
            rest.append(seconds - max(spent.values(), default=0.0))
        pool = max(in_pool, key=lambda name: in_pool[name], default="")
        lost = in_pool[pool]
        share = lost / (sum(seconds for _, seconds in waited) + sum(run.seconds for run in runs) or 1.0)
        if share > POOL_SHARE:
            yield Advice(
                "pool",
                title(job),
                f"Start it when no other run holds the pool {pool}, or give the pool more slots if what it guards can be done twice at once.",
                f"millrace.yaml: schedules, or `dagster instance concurrency set {pool} 2`",
                f"{lost / len(runs):,.0f} s a run of waiting while another run held {pool}, {share:.0%} of the time from queued to ended; {period(runs)}",
                lost / job.days / HOUR,
                "hours of waiting a day",
                figures={"waited_seconds": lost / len(runs), "share": share, "runs": len(runs)},
            )  # fmt: skip
        p95 = percentile(rest, 0.95)
        if p95 > QUEUE_SECONDS:
            yield Advice(
                "queue",
                title(job),
                "Let more runs go at once, if the nodes have room.",
                "runs.maxConcurrent of the chart",
                f"95th percentile of the wait in the queue {p95:,.0f} s, median {statistics.median(rest):,.0f} s, without waits for a pool; {period(runs)}",
                sum(rest) / job.days / HOUR,
                "hours of waiting a day",
                figures={"p95_seconds": p95, "runs": len(runs)},
            )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of *values* that at least *share* of them do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(round(share * len(ordered), 6)) - 1]


Spans = list[tuple[float, float]]


def _held(jobs: Iterable[Job]) -> dict[str, Spans]:
    """When any run was under way that holds the pool, as spans that do not touch."""
    spans: dict[str, Spans] = defaultdict(list)
    for run in (run for job in jobs for run in job.runs):
        for tag in run.tags:
            if tag.startswith(POOL_TAG):
                spans[tag.removeprefix(POOL_TAG)].append((run.began_at, run.ended_at))
    for pool, found in spans.items():
        joined: Spans = []
        for began, ended in sorted(found):
            if joined and began <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], ended))
            else:
                joined.append((began, ended))
        spans[pool] = joined
    return spans


def _overlap(spans: Spans, since: float, until: float) -> float:
    total, at = 0.0, max(bisect_left(spans, (since, since)) - 1, 0)
    while at < len(spans) and spans[at][0] < until:
        total += max(min(spans[at][1], until) - max(spans[at][0], since), 0.0)
        at += 1
    return total


def retries(job: Job, prices: Prices) -> Iterator[Advice]:
    """Runs that repeat one whose process died."""
    runs = job.runs
    again = [run for run in runs if RETRY_TAG in run.tags]
    if len(runs) < LEAST_FOR_SHARES or len(again) / len(runs) <= RETRY_SHARE:
        return
    failed = [run for run in runs if run.status == "failure"]
    reasons = Counter(
        OUT_OF_MEMORY if run.ran_out_of_memory else run.tags.get(REASON_TAG, "unknown").lower().replace("_", " ")
        for run in failed
    )
    lost = sum(run.seconds for run in failed) / job.days / HOUR
    first = reasons.most_common(1)[0][0] if reasons else "unknown"
    yield Advice(
        "retries",
        title(job),
        f"Remove what ends its runs, mostly: {first}.",
        REMEDIES.get(first, "the failed runs' events, in the UI"),
        f"{len(again)} of {period(runs)}, {len(again) / len(runs):.0%}, repeat a run that died; failures: "
        + (", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3)) or "none of these runs"),
        lost,
        "pod-hours a day",
        monthly(failed, job, prices),
        {"retried": len(again), "runs": len(runs), "share": len(again) / len(runs)},
    )


# what is idle


def idle(history: History, assets: Mapping[str, Asset], prices: Prices) -> Iterator[Advice]:
    """Schedules whose runs change nothing, that only skip or have long been off, and sensors that look too often."""
    for each in history.instigators:
        if each.kind == "sensor":
            yield from _idle_sensor(each)
        elif not each.is_on:
            days = (history.now - each.changed_at) / DAY
            if days > OFF_DAYS:
                yield Advice(
                    "idle schedule",
                    each.name,
                    "Switch it on or remove it: who reads the code believes that it runs.",
                    "the switch of the schedule in the UI, or its definition",
                    f"off for {days:,.0f} days",
                    days,
                    "days off",
                    figures={"days": days},
                )
        else:
            yield from _idle_schedule(each, history, assets, prices)


def _idle_schedule(each: Instigator, history: History, assets: Mapping[str, Asset], prices: Prices) -> Iterator[Advice]:
    ended, days = [tick for tick in each.ticks if tick.status != "started"], min(TICK_DAYS, history.days)
    if len(ended) >= LEAST_SKIPPED and all(tick.status == "skipped" for tick in ended):
        yield Advice(
            "idle schedule",
            each.name,
            "Switch it off, or correct what makes it skip.",
            "the switch of the schedule in the UI, or its definition",
            f"all of {len(ended):,} ticks in {days:g} days skipped",
            len(ended) / days,
            "ticks a day",
            figures={"ticks": len(ended)},
        )
    for job in history.jobs:
        if job.location != each.location:
            continue
        runs = [run for run in job.runs if run.tags.get(SCHEDULE_TAG) == each.name]
        loads = [_loads(run, assets) for run in runs]
        if len(runs) < LEAST_UNCHANGED or not all(found and not any(found.values()) for found in loads):
            continue
        cost = monthly(runs, job, prices)
        a_month = len(runs) / job.days * MONTH_DAYS
        yield Advice(
            "idle schedule",
            each.name,
            "Run it half as often: its sources change more rarely than it runs.",
            f"millrace.yaml: schedules: {{{each.name}: a rarer cron}}",
            f"none of {period(runs)} loaded a row, of {len(loads[0])} streams; they cost {prices.text(cost)} a month",
            a_month / 2,
            "runs a month",
            cost / 2,
            {"runs": len(runs), "runs_per_month": a_month, "streams": len(loads[0])},
        )


def _loads(run: Run, assets: Mapping[str, Asset]) -> dict[str, int]:
    """Rows that each load of a run brought; empty if it failed, or an asset that nothing feeds does not tell."""
    if run.status != "success":
        return {}
    made: dict[str, Made] = {made.asset: made for step in run.steps for made in step.made}
    found = {}
    for name, item in made.items():
        if item.rows_loaded is not None:
            found[name] = item.rows_loaded
        elif not name.startswith(ENDS) and (name not in assets or not assets[name].parents & made.keys()):
            return {}
    return found


def _idle_sensor(each: Instigator) -> Iterator[Advice]:
    ended = [tick for tick in each.ticks if tick.status != "started"]
    # One that follows runs is to answer soon, and costs a query where nothing ended.
    if not each.is_on or each.follows_runs or len(ended) < LEAST_TICKS or each.interval > SHORT_INTERVAL_SECONDS:
        return
    skipped = sum(tick.status == "skipped" for tick in ended)
    if skipped / len(ended) <= SKIPPED_SHARE:
        return
    days = max(ended[0].at - ended[-1].at, each.interval) / DAY
    fewer = len(ended) / days * (1 - each.interval / LONG_INTERVAL_SECONDS)
    spent = sum(tick.seconds for tick in ended) / len(ended)
    yield Advice(
        "idle sensor",
        each.name,
        f"Look every {LONG_INTERVAL_SECONDS:,.0f} s, if what it starts may begin that much later.",
        f"minimum_interval_seconds={LONG_INTERVAL_SECONDS:.0f} of the sensor {each.name}",
        f"{skipped:,} of {len(ended):,} ticks in {days:,.1f} days skipped, {skipped / len(ended):.2%}, every {each.interval:,.0f} s, {spent:.2f} s each",
        fewer,
        "ticks a day",
        figures={"ticks": len(ended), "skipped": skipped, "interval_seconds": each.interval, "tick_seconds": spent},
    )  # fmt: skip


# what nobody reads


def unused(assets: Mapping[str, Asset], costs: Iterable[Cost], history: History, prices: Prices) -> Iterator[Advice]:
    """Assets that no asset reads, no check looks at, and no exposure, metric or saved query names."""
    by_name = {cost.name: cost for cost in costs}
    for asset in assets.values():
        if asset.readers or asset.checks or asset.uses or asset.key.startswith(ENDS):
            continue
        cost = by_name.get(asset.key)
        made = (
            f"made in {cost.runs} {'run' if cost.runs == 1 else 'runs'} of {history.days:,.0f} days"
            if cost
            else f"not made in {history.days:,.0f} days"
        )
        how = "an exposure in the YAML beside it" if asset.source.startswith("dbt/") else "a model that reads it"
        yield Advice(
            "unused asset",
            asset.key,
            "Remove it, or say who reads it: what people query by hand is not seen here.",
            f"{asset.source or asset.key}: remove, or {how}",
            f"no asset, check, exposure, metric or saved query reads it; {made}"
            + (f", {prices.text(cost.money)} a month" if cost else ""),
            cost.pod_hours if cost else 0.0,
            "pod-hours a month",
            cost.money if cost else 0.0,
            {"runs": cost.runs if cost else 0},
        )
