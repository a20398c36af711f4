"""Time that runs lose beside their work: to start, in the queue, for a pool, and to what has to be done again."""

import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.operate.advice import (
    LEAST_RUNS,
    RETRY_TAG,
    SCHEDULE_TAG,
    STARTUP_SHARE,
    Advice,
    percentile,
    period,
    title,
)
from pipeline.operate.costs import HOUR, Prices, monthly
from pipeline.operate.history import Job, Run

LEAST_STARTUP_SECONDS = 600.0  # a day: less is not worth a change
QUEUE_SECONDS = 60.0  # 95th percentile
POOL_SHARE = 0.2
RETRY_SHARE = 0.05
LEAST_FOR_SHARES = 20  # runs
POOL_TAG = ".dagster/pool/"
REASON_TAG = "dagster/failure_reason"
OUT_OF_MEMORY = "out of memory"
REMEDIES = {
    OUT_OF_MEMORY: "millrace.yaml: limits: a larger `memory` for the job or its assets",
    "start timeout": "runs.startTimeoutSeconds of the chart, or nodes that can take runs.maxConcurrent pods",
    "unexpected termination": "nodes that are not taken away (runs.nodeSelector of the chart)",
    "run worker restart": "nodes that are not taken away (runs.nodeSelector of the chart)",
}


def startup(job: Job, prices: Prices) -> Iterator[Advice]:
    """Runs that are mostly start: pod, container, imports. Those of partitions are `sizing.partitions`."""
    runs = [run for run in job.succeeded if run.steps and run.seconds and not run.is_of_partitions]
    if len(runs) < LEAST_RUNS:
        return
    starts = [run.startup_seconds for run in runs]
    each, in_all = statistics.median(starts), sum(starts)
    share = statistics.median([run.startup_seconds / run.seconds for run in runs])
    if share <= STARTUP_SHARE or in_all / job.days < LEAST_STARTUP_SECONDS:
        return
    saved = in_all / 2 / job.days / HOUR
    money = monthly(runs, job, prices) * in_all / sum(run.seconds for run in runs) / 2
    schedules = Counter(run.tags[SCHEDULE_TAG] for run in runs if SCHEDULE_TAG in run.tags).most_common(1)
    yield Advice(
        "start-up",
        title(job),
        f"Start fewer runs that each do more: half as many save {saved:,.1f} pod-hours a day.",
        f"millrace.yaml: schedules: {{{schedules[0][0]}: a rarer cron}}" if schedules else "more assets in one run",
        f"{each:,.0f} s from launch to the first step, {share:.0%} of a run, {len(runs) / job.days:,.1f} runs a day; "
        f"medians of {period(runs)}",
        saved,
        "pod-hours a day",
        money,
        {"startup_seconds": each, "share": share, "runs": len(runs)},
    )


@dataclass(frozen=True)
class Wait:
    """Seconds of a run in the queue, and how many of them another run held each of its pools."""

    run: Run
    seconds: float
    in_pools: Mapping[str, float]

    @property
    def for_no_pool(self) -> float:
        return self.seconds - max(self.in_pools.values(), default=0.0)


def queue(jobs: Sequence[Job]) -> Iterator[Advice]:
    """Runs that wait in the queue: for a pool that another run held, or else for one of the runs at once."""
    held = _held(jobs)
    for job in jobs:
        waits = [_wait(run, run.waited_seconds, held) for run in job.runs if run.waited_seconds is not None]
        if len(waits) >= LEAST_FOR_SHARES:
            yield from _waits_for_a_pool(job, waits)
            yield from _waits_for_a_slot(job, waits)


def _waits_for_a_pool(job: Job, waits: Sequence[Wait]) -> Iterator[Advice]:
    in_pools: dict[str, float] = defaultdict(float)
    for wait in waits:
        for pool, seconds in wait.in_pools.items():
            in_pools[pool] += seconds
    pool = max(in_pools, key=lambda name: in_pools[name], default="")
    lost = in_pools[pool]
    each, share = lost / len(waits), lost / (sum(wait.seconds + wait.run.seconds for wait in waits) or 1.0)
    if share <= POOL_SHARE:
        return
    yield Advice(
        "pool",
        title(job),
        f"Start it when no other run holds the pool {pool}, or give the pool more slots if what it guards can be done "
        "twice at once.",
        f"millrace.yaml: schedules, or `dagster instance concurrency set {pool} 2`",
        f"{each:,.0f} s a run of waiting while another run held {pool}, {share:.0%} of the time from queued to ended; "
        + period([wait.run for wait in waits]),
        lost / job.days / HOUR,
        "hours of waiting a day",
        figures={"waited_seconds": each, "share": share, "runs": len(waits)},
    )


def _waits_for_a_slot(job: Job, waits: Sequence[Wait]) -> Iterator[Advice]:
    seconds = [wait.for_no_pool for wait in waits]
    p95, median = percentile(seconds, 0.95), statistics.median(seconds)
    if p95 <= QUEUE_SECONDS:
        return
    yield Advice(
        "queue",
        title(job),
        "Let more runs go at once, if the nodes have room.",
        "runs.maxConcurrent of the chart",
        f"95th percentile of the wait in the queue {p95:,.0f} s, median {median:,.0f} s, without waits for a pool; "
        + period([wait.run for wait in waits]),
        sum(seconds) / job.days / HOUR,
        "hours of waiting a day",
        figures={"p95_seconds": p95, "runs": len(waits)},
    )


Spans = list[tuple[float, float]]


def _wait(run: Run, seconds: float, held: Mapping[str, Spans]) -> Wait:
    since = run.began_at - seconds
    return Wait(run, seconds, {pool: _overlap(held[pool], since, run.began_at) for pool in _pools(run)})


def _pools(run: Run) -> list[str]:
    return [tag.removeprefix(POOL_TAG) for tag in run.tags if tag.startswith(POOL_TAG)]


def _held(jobs: Iterable[Job]) -> dict[str, Spans]:
    """When any run was under way that holds the pool, as spans that do not touch."""
    spans: dict[str, Spans] = defaultdict(list)
    for run in (run for job in jobs for run in job.runs):
        for pool in _pools(run):
            spans[pool].append((run.began_at, run.ended_at))
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
    share = len(again) / len(runs)
    failed = [run for run in runs if run.status == "failure"]
    reasons = Counter(
        OUT_OF_MEMORY if run.ran_out_of_memory else run.tags.get(REASON_TAG, "unknown").lower().replace("_", " ")
        for run in failed
    ).most_common(3)
    first = reasons[0][0] if reasons else "unknown"
    yield Advice(
        "retries",
        title(job),
        f"Remove what ends its runs, mostly: {first}.",
        REMEDIES.get(first, "the failed runs' events, in the UI"),
        f"{len(again)} of {period(runs)}, {share:.0%}, repeat a run that died; failures: "
        + (", ".join(f"{count} × {reason}" for reason, count in reasons) or "none of these runs"),
        sum(run.seconds for run in failed) / job.days / HOUR,
        "pod-hours a day",
        monthly(failed, job, prices),
        {"retried": len(again), "runs": len(runs), "share": share},
    )
