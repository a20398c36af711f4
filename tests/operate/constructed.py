"""Histories with a known right answer, made of few words."""

from collections.abc import Mapping
from typing import Any

from pipeline.operate.advice import Advice
from pipeline.operate.asset_use import Asset
from pipeline.operate.costs import Prices
from pipeline.operate.history import DAY, Job, Made, ResourceUse, Run, Step

NOW = 1_800_000_000.0
PRICES = Prices(cpu_hour=1.0, gib_hour=0.1, currency="EUR")
MIB, GIB = 1 << 20, 1 << 30
SHOP = {
    "raw/a": Asset("raw/a", source="sources/a.yaml"),
    "raw/b": Asset("raw/b", source="sources/b.yaml"),
    "marts/m": Asset("marts/m", parents=frozenset({"raw/a", "raw/b"}), source="dbt/models/marts/m.sql"),
}


def step(key: str, began: float, seconds: float, *assets: str | Made, checks: tuple[str, ...] = ()) -> Step:
    made = tuple(item if isinstance(item, Made) else Made(item) for item in assets)
    return Step(key, began, began + seconds, made, frozenset(checks))


def serial(*steps: tuple[Any, ...], start: float = 0.0, at: float = NOW - DAY) -> tuple[Step, ...]:
    """Steps one after another from *at* plus *start* on; each is its key, seconds, assets."""
    found, now = [], at + start
    for key, seconds, *assets in steps:
        found.append(step(key, now, seconds, *assets))
        now += seconds
    return tuple(found)


def run(*steps: tuple[Any, ...], start: float = 0.0, end: float = 0.0, at: float = NOW - DAY, **more: Any) -> Run:
    """A run that succeeded: *start* seconds, its steps, *end* seconds."""
    made = serial(*steps, start=start, at=at)
    ended = (made[-1].ended_at if made else at + start) + end
    return Run(**{"id": f"{at}", "status": "success", "began_at": at, "ended_at": ended, "steps": made, **more})


def job(*runs: Run, days: float = 10.0, name: str = "daily", location: str = "here") -> Job:
    return Job(location, name, tuple(runs), days)


def pod(
    seconds: float = 1800.0,
    *,
    request: float | None = 4 * GIB,
    limit: float | None = None,
    cpu: float | None = None,
    status: str = "success",
    tags: Mapping[str, str] | None = None,
    steps: tuple[tuple[Any, ...], ...] | None = None,
    start: float = 0.0,
    at: float = NOW - DAY,
    **used: Any,
) -> Run:
    """A run in a pod of these limits that used what is *used*, and took *seconds* if it has no *steps*."""
    made = (("load", seconds, "raw/a"),) if steps is None else steps
    return run(
        *made,
        start=start,
        at=at,
        status=status,
        tags=tags or {},
        is_pod=True,
        cpu_request=cpu,
        memory_request=request,
        memory_limit=limit or request,
        used=ResourceUse(**{"peak_is_kernels": True, **used}) if used else None,
    )


def often_started(share_of_start: float, *, count: int = 50, days: float = 1.0) -> Job:
    """Runs of 100 s that are start for that share."""
    start = 100 * share_of_start
    return job(*[run(("a", 100 - start, "raw/a"), start=start)] * count, days=days)


def one(found: list[Advice]) -> Advice:
    (advice,) = found
    return advice
