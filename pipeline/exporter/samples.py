"""One look of the monitor at everything the exporter knows: sums of all history, and what is just now.

The sums are the exporter's own counters, which outlive its restarts: what happened between two samples is their difference,
whatever lies between. In memory a sample has every job and asset; stored, `STORED_BYTES` at most: those with the most
runs and materialisations by name, and the sum of the others.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from pipeline.exporter.metrics import Histogram, Registry
from pipeline.exporter.service_health import STATES

FORMAT = 1
JOBS_BYTES = ASSETS_BYTES = 8_000
SERVICES_BYTES = 4_000
LIST_BYTES = 1_000  # of each other list
STORED_BYTES = 34_000  # all of these, the assets' times, the sums of the others and the names of the fields

Sums = dict[str, float]  # by what is summed; what is missing is 0
Job = tuple[str, str]  # code location, name
T = TypeVar("T")


@dataclass(frozen=True)
class Tally:
    """Sums by name (of a `Job` or an asset), and of the others, which are not named, together."""

    named: dict[Any, Sums] = field(default_factory=dict)
    others: Sums = field(default_factory=dict)
    others_count: int = 0

    @cached_property
    def whole(self) -> Sums:
        """Of all."""
        return total([self.others, *self.named.values()])

    def cut(self, most_bytes: int, by: Callable[[Sums], float]) -> "Tally":
        """Those with the most *by* name, as many as have *most_bytes* of JSON."""
        ranked = sorted(self.named.items(), key=lambda item: -by(item[1]))
        kept = dict(fitting(ranked, most_bytes))
        others = _less(self.whole, total(kept.values()))
        return Tally(kept, others, self.others_count + len(self.named) - len(kept))

    def since(self, first: "Tally") -> "Tally":
        """What came since *first*. By name only what both name, or one of them, where the other names all.

        The sum of the others shrinks where one of them is gone; it is 0 then.
        """
        named = {
            key: difference(sums, first.named.get(key, {}))
            for key, sums in (self.named.items() if not first.others_count else self._in(first.named))
        }
        if not (self.others_count or first.others_count):
            return Tally(named)
        later = _less(self.whole, total(self.named[key] for key in named))
        gone = [sums for key, sums in first.named.items() if self.others_count and key not in self.named]
        return Tally(
            named, _less(later, total([first.others, *gone])), self.others_count + len(self.named) - len(named)
        )

    def _in(self, names: Iterable[Any]) -> list[tuple[Any, Sums]]:
        return [(key, self.named[key]) for key in names if key in self.named]


@dataclass(frozen=True)
class Sample:
    """Times are Unix times.

    Sums of a job: success, failure, canceled (runs), cpu_seconds, ``took<=60`` (successful runs of a bucket, not
    cumulative), ``peak<=0.9`` (runs by their share of the memory limit); of an asset: made, failed. `present` is ready
    for JSON.
    """

    at: float  # when it was taken
    counted_at: float  # when events were read last; older than `at` while the database is away
    jobs: Tally = field(default_factory=Tally)
    assets: Tally = field(default_factory=Tally)
    made_at: dict[str, float] = field(default_factory=dict)  # asset → its last materialisation
    checks: Sums = field(default_factory=dict)  # passed, failed
    present: dict[str, Any] = field(default_factory=dict)

    def stored(self) -> str:
        """As JSON of at most `STORED_BYTES` in UTF-8."""
        jobs, assets = (
            self.jobs.cut(JOBS_BYTES, runs_of),
            self.assets.cut(ASSETS_BYTES, lambda sums: sum(sums.values())),
        )
        return _json(
            {
                "format": FORMAT,
                "at": self.at,
                "counted_at": self.counted_at,
                "jobs": [list(jobs.named.items()), jobs.others, jobs.others_count],
                "assets": [list(assets.named.items()), assets.others, assets.others_count],
                "made_at": [round(self.made_at.get(asset, 0)) for asset in assets.named],
                "checks": self.checks,
                "present": self.present,
            }
        )


def load(text: str) -> Sample | None:
    """The reverse of `Sample.stored`; None if it is of another version's format."""
    read = json.loads(text)
    if read.pop("format", None) != FORMAT:
        return None
    jobs, *other_jobs = read.pop("jobs")
    assets, *other_assets = read.pop("assets")
    made_at = zip(assets, read.pop("made_at"), strict=True)
    return Sample(
        **read,
        jobs=Tally({tuple(job): sums for job, sums in jobs}, *other_jobs),
        assets=Tally(dict(assets), *other_assets),
        made_at={asset: at for (asset, _), at in made_at if at},
    )


def take(registry: Registry, now: float, services: Sequence[Mapping[str, Any]], *, interval_seconds: float) -> Sample:
    """What *registry* holds *now*, with the state of the *services*; the next one follows after *interval_seconds*."""
    metrics = {metric.name: metric for metric in registry}
    values = {name: metric.series for name, metric in metrics.items()}

    jobs: dict[Job, Sums] = {}
    for (location, job, status), runs in values["dagster_runs_completed_total"].items():
        jobs.setdefault((location, job), {})[status] = runs
    for (location, job), seconds in values["dagster_run_cpu_seconds_total"].items():
        jobs.setdefault((location, job), {})["cpu_seconds"] = round(seconds, 1)
    for name, prefix in (("dagster_run_duration_seconds", "took"), ("dagster_run_peak_memory_ratio", "peak")):
        histogram = metrics[name]
        assert isinstance(histogram, Histogram)
        limits = [f"{prefix}<={limit:g}" for limit in (*histogram.buckets, float("inf"))]
        for (location, job), (*counts, _) in histogram.series.items():
            found = {limit: count for limit, count in zip(limits, counts, strict=True) if count}
            jobs.setdefault((location, job), {}).update(found)

    assets: dict[str, Sums] = {}
    for name, what in (("dagster_asset_materializations_total", "made"), ("dagster_asset_failures_total", "failed")):
        for (asset, _), times in values[name].items():
            sums = assets.setdefault(asset, {})
            sums[what] = sums.get(what, 0.0) + times
    checks = {"passed": 0.0, "failed": 0.0}
    for (_, _, result, _), times in values["dagster_asset_check_evaluations_total"].items():
        checks[result] = checks.get(result, 0.0) + times

    return Sample(
        at=now,
        counted_at=values["dagster_exporter_last_success_timestamp_seconds"].get(("events",), 0.0),
        jobs=Tally({job: _compact(sums) for job, sums in jobs.items()}),
        assets=Tally({asset: _compact(sums) for asset, sums in assets.items()}),
        made_at={asset: at for (asset,), at in values["dagster_asset_last_materialization_timestamp_seconds"].items()},
        checks=checks,
        present={"interval_seconds": interval_seconds, **_present(values, now, services)},
    )


def _present(
    values: Mapping[str, Mapping[tuple[str, ...], float]], now: float, services: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is as it is just now. Each list has a cap in bytes, and where that can cut it, a count beside it."""
    in_progress: dict[str, float] = {}
    for (_, _, status), runs in values["dagster_runs_in_progress"].items():
        in_progress[status] = in_progress.get(status, 0.0) + runs
    oldest = values["dagster_run_oldest_status_timestamp_seconds"]
    queued = [at for (_, _, status), at in oldest.items() if status == "queued"]
    made = values["dagster_asset_last_materialization_timestamp_seconds"]
    late = [
        {"asset_key": asset, "made_at": made[(asset,)], "max_age_seconds": limit}
        for (asset,), limit in values["dagster_asset_max_age_seconds"].items()
        if (asset,) in made and now - made[(asset,)] > limit
    ]
    checked = values["dagster_asset_check_last_timestamp_seconds"]
    failing = [
        {"asset_key": key[0], "check": key[1], "severity": key[2], "at": checked.get(key)}
        for key, passed in values["dagster_asset_check_last_passed"].items()
        if not passed
    ]
    pools = [
        {
            "pool": pool,
            "slots": slots,
            "claimed": values["dagster_pool_slots_claimed"].get((pool,), 0.0),
            "pending": values["dagster_pool_steps_pending"].get((pool,), 0.0),
        }
        for (pool,), slots in values["dagster_pool_slots_limit"].items()
    ]
    memory_limits = values["dagster_run_memory_limit_bytes"]
    run_memory = [
        {"code_location": key[0], "job_name": key[1], "working_set_bytes": used, "limit_bytes": memory_limits.get(key)}
        for key, used in values["dagster_run_memory_working_set_bytes"].items()
    ]
    service_memory = _beside(
        "service", values, "millrace_service_memory_working_set_bytes", "millrace_service_memory_limit_bytes"
    )
    volumes = _beside("volume", values, "millrace_volume_free_bytes", "millrace_volume_size_bytes")
    return {
        "services": fitting(_worst_first(services), SERVICES_BYTES),
        "services_count": len(services),
        "in_progress": in_progress,
        "queue": {
            "limit": values["dagster_run_queue_limit_runs"].get(()),
            "oldest_queued_at": min(queued, default=None),
            "pools": fitting(sorted(pools, key=lambda pool: -pool["pending"]), LIST_BYTES),
        },
        "late": fitting(sorted(late, key=lambda each: each["made_at"] + each["max_age_seconds"]), LIST_BYTES),
        "late_count": len(late),
        "failing_checks": fitting(sorted(failing, key=lambda each: each["severity"] != "error"), LIST_BYTES),
        "failing_checks_count": len(failing),
        "run_memory": fitting(sorted(run_memory, key=lambda each: -each["working_set_bytes"]), LIST_BYTES),
        "service_memory": fitting(service_memory, LIST_BYTES),
        "volumes": fitting(volumes, LIST_BYTES),
    }


def _worst_first(services: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The worst part of each service before all the others: a list that is cut tells of every service."""
    ranked = sorted(services, key=lambda each: -STATES.index(each["state"]))
    worst = {each["service"]: each for each in reversed(ranked)}
    return sorted(ranked, key=lambda each: each is not worst[each["service"]])


def difference(later: Sums, earlier: Sums) -> Sums:
    """What came between: a sum that is smaller than before began anew, and all of it came since."""
    if any(later.get(name, 0.0) < before for name, before in earlier.items()):
        return dict(later)
    return {name: value - earlier.get(name, 0.0) for name, value in later.items()}


def total(sums: Iterable[Sums]) -> Sums:
    """All of them added up."""
    added: Sums = {}
    for each in sums:
        for name, value in each.items():
            added[name] = added.get(name, 0.0) + value
    return added


def _less(sums: Sums, part: Sums) -> Sums:
    """*sums* without *part*; to a tenth, as cpu_seconds is."""
    return _compact({name: max(round(value - part.get(name, 0.0), 1), 0.0) for name, value in sums.items()})


def runs_of(sums: Sums) -> float:
    """Runs of a job that ended."""
    return sums.get("success", 0.0) + sums.get("failure", 0.0) + sums.get("canceled", 0.0)


def fitting(items: Sequence[T], most_bytes: int) -> list[T]:
    """The first of *items*, as many as have *most_bytes* of JSON."""
    kept, size = [], 0
    for item in items:
        size += len(_json(item).encode()) + 1
        if size > most_bytes:
            break
        kept.append(item)
    return kept


def _beside(label: str, values: Mapping[str, Mapping[tuple[str, ...], float]], *names: str) -> list[dict[str, Any]]:
    """The gauges *names* of one label, side by side: ``millrace_volume_free_bytes`` is ``free_bytes``."""
    first = values.get(names[0], {})
    return [
        {label: key[0], **{name.removeprefix(f"millrace_{label}_"): values.get(name, {}).get(key) for name in names}}
        for key in first
    ]


def _compact(sums: Sums) -> Sums:
    """Without zeros, and whole numbers without ``.0``: half the bytes."""
    return {name: int(value) if value == int(value) else value for name, value in sums.items() if value}


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
