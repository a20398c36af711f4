"""How large run pods should be, and how many partitions one run should load, from what runs told that they use.

Less is advised only by runs that did work. Less memory by the peak that the kernel kept, which counts files that it could
give back: it may be too high, and no moment is missing. More is advised by what could not be given back (the working set),
and by runs that were killed.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.exporter.run_facts import ASSET_JOB
from pipeline.operate.advice import LEAST_RUNS, RETRY_TAG, STARTUP_SHARE, Advice, percentile, period, title
from pipeline.operate.asset_use import Asset
from pipeline.operate.costs import HOUR, MONTH_DAYS, Prices, hourly, money
from pipeline.operate.history import Job, Run
from pipeline.operate.jobs import DAILY, MAINTAIN, PURGE
from pipeline.settings import CPU_TAG, GIB, MEMORY_TAG

MIB = 1 << 20
# Over the highest peak. Of half of a limit, which DuckDB takes if it needs to, it is no less than WORTHWHILE: such a run must
# not be advised less, and then less again.
HEADROOM = 1.4
KILLED_FACTOR = 1.5  # as the launcher gives a retry
FULL = 0.8  # of the limit
WORTHWHILE = 0.7  # of what is asked for: less of a change is not worth one
CPU_STEP = 0.05  # cores
LEAST_CPU_CHANGE = 0.25  # cores
THROTTLED_SHARE = 0.1  # of the time
OVERHEAD = 0.15  # of a run's time that its start and end should take at most
MOST_PARTITIONS = 120


def sizes(jobs: Iterable[Job], assets: Mapping[str, Asset], prices: Prices) -> Iterator[Advice]:
    """All advice on sizes that can be followed together.

    More partitions a run are as many as fit the memory of now, and the setting is one for all: so none of it is saved then.
    """
    jobs = list(jobs)
    by_run = [advice for job in jobs for advice in partitions(job, assets, prices)]
    more = any(advice.figures["recommended"] > advice.figures["partitions"] for advice in by_run)
    yield from by_run
    for job in jobs:
        yield from memory(job, prices, more_partitions=more)
        yield from cpu(job, prices)


def memory(job: Job, prices: Prices, *, more_partitions: bool = False) -> Iterator[Advice]:
    """A memory limit that fits the peaks: less where it is saved, more where runs are killed or near it.

    No less for runs for partitions if they are to get *more_partitions*.
    """
    for assets, runs in _groups(job):
        limit, kept = runs[0].memory_limit, runs[0].memory_request
        told = [run.used for run in runs if run.used]
        if not limit or not kept or len(told) < LEAST_RUNS:
            continue
        peak, median = max(used.peak for used in told), statistics.median([used.peak for used in told])
        fullest = max(used.working_set for used in told)
        killed = [run for run in runs if run.ran_out_of_memory]
        if killed or fullest > FULL * limit:
            wanted = _sensible(max(fullest * HEADROOM, limit * KILLED_FACTOR if killed else 0.0))
            text = f"Give it {_amount(wanted)} of memory instead of {_amount(limit)}."
        else:
            wanted = _sensible(peak * HEADROOM)
            telling = [run for run in runs if run.did_work and run.used and run.used.peak_is_kernels]
            if wanted > WORTHWHILE * kept or len(telling) < LEAST_RUNS:
                continue
            if more_partitions and any(run.is_of_partitions for run in runs):
                continue
            text = f"Give it {_amount(wanted)} of memory instead of {_amount(kept)}; DuckDB takes half of it, and spills beyond."
        hours = sum(run.seconds for run in runs) / HOUR / job.days * MONTH_DAYS
        saved = (kept - wanted) / GIB * hours
        lost = sum(money(run, prices) for run in killed) / job.days * MONTH_DAYS
        yield Advice(
            "memory",
            _subject(job, assets),
            text,
            _setting(job, assets, MEMORY_TAG, _amount(wanted)),
            f"peak {_amount(peak)} at most, median {_amount(median)}; working set {_amount(fullest)} at most, "
            f"limit {_amount(limit)}, request {_amount(kept)}; {len(killed)} runs killed for memory; "
            f"{hours:,.1f} pod-hours a month; {period(runs)}",
            saved,
            "GiB-hours a month",
            saved * prices.gib_hour + lost,
            {
                "peak_bytes": peak,
                "working_set_bytes": fullest,
                "limit_bytes": limit,
                "request_bytes": kept,
                "recommended_bytes": wanted,
                "killed_runs": len(killed),
                "runs": len(runs),
            },
        )


def cpu(job: Job, prices: Prices) -> Iterator[Advice]:
    """A CPU request that is what runs use on average while their process is there."""
    for assets, runs in _groups(job):
        request = runs[0].cpu_request
        used = [(run, run.used) for run in runs if run.did_work and run.used and run.process_seconds]
        if not request or len(used) < LEAST_RUNS:
            continue
        cores = [each.cpu_seconds / run.process_seconds for run, each in used]
        throttled = statistics.median([each.throttled_seconds / run.process_seconds for run, each in used])
        median, p90 = statistics.median(cores), percentile(cores, 0.9)
        wanted = round(max(math.ceil(round(p90 / CPU_STEP, 6)), 2) * CPU_STEP, 2)
        why = "." if wanted < request else ": it has had more than it asked for, which a busy node will not give it."
        if throttled > THROTTLED_SHARE:
            wanted, why = max(wanted, request) * KILLED_FACTOR, ": its limit, which is as much, keeps it waiting."
        elif WORTHWHILE * request < wanted < request / WORTHWHILE:
            continue
        if abs(request - wanted) < LEAST_CPU_CHANGE:
            continue
        hours = sum(run.seconds for run in runs) / HOUR / job.days * MONTH_DAYS
        saved = (request - wanted) * hours
        yield Advice(
            "cpu",
            _subject(job, assets),
            f"Request {_cores(wanted)} of CPU instead of {_cores(request)}{why}",
            _setting(job, assets, CPU_TAG, _cores(wanted)),
            f"cores in use on average {median:.2f}, 90th percentile of runs {p90:.2f}, request {request:.2f}; "
            f"waiting for a CPU limit {throttled:.0%} of the time; {hours:,.1f} pod-hours a month; {period([run for run, _ in used])}",
            saved,
            "core-hours a month",
            saved * prices.cpu_hour,
            {
                "cores": p90,
                "request_cores": request,
                "recommended_cores": wanted,
                "throttled_share": throttled,
                "runs": len(used),
            },
        )


def partitions(job: Job, assets: Mapping[str, Asset], prices: Prices) -> Iterator[Advice]:
    """More partitions a run where its start and end are most of it, fewer where it runs out of memory."""
    for keys, of_partitions in _by_assets([run for run in job.runs if run.is_of_partitions]):
        if len(keys) != 1:
            continue
        (key,) = keys
        if key in assets and not assets[key].is_partitioned:
            continue
        runs = _under_limits_of_now(of_partitions)
        sizes = [size for run in runs if (size := _partitions(run))]
        if len(runs) < LEAST_RUNS or not sizes:
            continue
        size, limit = int(statistics.median(sizes)), runs[0].memory_limit
        fullest = max((run.used.working_set for run in runs if run.used), default=0.0)
        killed = [run for run in runs if run.ran_out_of_memory]
        if limit and size > 1 and (killed or fullest > FULL * limit):
            yield _fewer(key, runs, size=size, limit=limit, fullest=fullest, killed=killed, job=job, prices=prices)
        else:
            yield from _more(key, runs, size=size, limit=limit, job=job, prices=prices)


def _fewer(
    key: str, runs: Sequence[Run], *, size: int, limit: float, fullest: float, killed: Sequence[Run], job: Job, prices: Prices
) -> Advice:  # fmt: skip
    fitting = size // 2 if killed else int(size * 0.75 * FULL * limit / fullest)
    wanted = max(min(fitting, size - 1), 1)
    lost = sum(money(run, prices) for run in killed) / job.days * MONTH_DAYS
    return Advice(
        "partitions",
        key,
        f"Load {wanted} partitions a run instead of {size}: the memory then fits, instead of more of it.",
        f"MILLRACE_PARTITIONS_PER_RUN={wanted}",
        f"working set {_amount(fullest)} at most of {_amount(limit)} with {size} partitions a run; {len(killed)} runs killed for memory; {period(runs)}",
        sum(run.seconds for run in killed) / HOUR / job.days,
        "pod-hours a day",
        lost,
        {"partitions": size, "recommended": wanted, "working_set_bytes": fullest, "limit_bytes": limit, "killed_runs": len(killed)},
    )  # fmt: skip


def _more(
    key: str, runs: Sequence[Run], *, size: int, limit: float | None, job: Job, prices: Prices
) -> Iterator[Advice]:
    good = [run for run in runs if run.status == "success" and run.seconds and _partitions(run)]
    if len(good) < LEAST_RUNS:
        return
    overhead = statistics.median([_overhead(run) for run in good])
    share = statistics.median([_overhead(run) / run.seconds for run in good])
    each = statistics.median([(run.seconds - _overhead(run)) / _partitions(run) for run in good])
    if share <= STARTUP_SHARE:
        return
    wanted = math.ceil(round(overhead * (1 - OVERHEAD) / (OVERHEAD * each), 6)) if each else MOST_PARTITIONS
    peaks = [run.used.peak for run in good if run.used and run.used.peak_is_kernels]
    if limit and len(peaks) < LEAST_RUNS:
        return  # how many fit is not known
    peak = max(peaks, default=0.0)
    fitting = int(size * FULL * limit / peak) if limit and peak else MOST_PARTITIONS
    wanted = min(wanted, fitting, MOST_PARTITIONS)
    if wanted < 2 * size:
        return
    a_day = len(good) * overhead * (1 - size / wanted) / job.days
    yield Advice(
        "partitions",
        key,
        f"Load {wanted} partitions a run instead of {size}: {share:.0%} of a run is its start and end.",
        f"MILLRACE_PARTITIONS_PER_RUN={wanted}, which is of all streams by month",
        f"start and end {overhead:,.0f} s a run, {each:,.1f} s a partition, {size} partitions a run; with {wanted} they are "
        f"{overhead / (overhead + wanted * each):.0%}"
        + (f", all that the memory allows: peak {_amount(peak)} of {_amount(limit)}" if limit and wanted == fitting else "")
        + f"; medians of {period(good)}",
        a_day / HOUR,
        "pod-hours a day",
        a_day / HOUR * MONTH_DAYS * statistics.median([hourly(run, prices) for run in good]),
        {"partitions": size, "recommended": wanted, "overhead_seconds": overhead, "partition_seconds": each, "share": share, "runs": len(good)},
    )  # fmt: skip


def _overhead(run: Run) -> float:
    return max(run.seconds - sum(step.seconds for step in run.steps), 0.0)


def _partitions(run: Run) -> int:
    """How many it made; 0 where that is not known, as of a run for a range that was killed."""
    return max([made.partitions for step in run.steps for made in step.made], default=0)


Group = tuple[frozenset[str], list[Run]]


def _groups(job: Job) -> Iterator[Group]:
    """The pods that are one thing to size: those of a job, and of each set of assets where people choose them."""
    for assets, runs in _by_assets(job.runs) if job.name == ASSET_JOB else [(frozenset[str](), list(job.runs))]:
        pods = _under_limits_of_now([run for run in runs if run.is_pod])
        if pods:
            yield assets, pods


def _under_limits_of_now(runs: Sequence[Run]) -> list[Run]:
    """Those that had what runs have now: one that was killed with less says nothing of it.

    A retry may have been given more, so the newest that is none says what that is.
    """
    limits = [(run.cpu_request, run.memory_request, run.memory_limit) for run in runs]
    now = next((limit for run, limit in zip(runs, limits, strict=True) if RETRY_TAG not in run.tags), None)
    return [run for run, limit in zip(runs, limits, strict=True) if limit == now]


def _by_assets(runs: Sequence[Run]) -> Iterator[Group]:
    groups: dict[frozenset[str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.assets].append(run)
    yield from groups.items()


def _subject(job: Job, assets: frozenset[str]) -> str:
    if len(assets) == 1:
        return next(iter(assets))
    return f"runs of {len(assets)} assets, {min(assets)} first" if assets else title(job)


def _setting(job: Job, assets: frozenset[str], tag: str, amount: str) -> str:
    name = {MEMORY_TAG: "memory", CPU_TAG: "cpu"}[tag]
    if len(assets) == 1:
        return f'millrace.yaml: limits: - {{assets: "{next(iter(assets))}", {name}: "{amount}"}}'
    if job.name in (DAILY, MAINTAIN, PURGE):
        return f'millrace.yaml: limits: - {{job: {job.name}, {name}: "{amount}"}}'
    return f"the tag {tag}: {amount} of the job or run"


def _sensible(amount: float) -> float:
    """Rounded up: to 128 MiB below 1 GiB, to 256 MiB below 4, to whole GiB from there."""
    step = 128 * MIB if amount <= GIB else 256 * MIB if amount <= 4 * GIB else GIB
    return math.ceil(amount / step) * float(step)


def _amount(amount: float) -> str:
    """As Kubernetes writes it."""
    return f"{amount / GIB:.0f}Gi" if amount and amount % GIB == 0 else f"{amount / MIB:.0f}Mi"


def _cores(amount: float) -> str:
    return f"{amount:.0f}" if round(amount, 3) % 1 == 0 else f"{amount * 1000:.0f}m"
