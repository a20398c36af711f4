"""What works for nothing: schedules and sensors that change nothing, and assets that nobody reads."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pipeline.operate.advice import ENDS, SCHEDULE_TAG, Advice, period
from pipeline.operate.asset_use import Asset
from pipeline.operate.costs import MONTH_DAYS, Cost, Prices, monthly
from pipeline.operate.history import DAY, History, Instigator, Job, Made, Run, Tick

LEAST_UNCHANGED = 7  # runs of a schedule
LEAST_SKIPPED = 20  # ticks of a schedule
LEAST_TICKS = 500  # of a sensor: some hours at its interval
SKIPPED_SHARE = 0.99
SHORT_INTERVAL_SECONDS = 30.0
LONG_INTERVAL_SECONDS = 300.0
OFF_DAYS = 30.0


def idle(history: History, assets: Mapping[str, Asset], schedules: Collection[str], prices: Prices) -> Iterator[Advice]:
    """Schedules whose runs change nothing, that only skip or have long been off, and sensors that look too often.

    *schedules* are those that the definitions have: of one that is off, the database keeps the switch for ever.
    """
    for each in history.instigators:
        if each.kind == "sensor":
            yield from _idle_sensor(each)
        elif each.is_on:
            yield from _skipping_schedule(each)
            for job in history.jobs:
                if job.location == each.location:
                    yield from _schedule_without_news(each, job, assets, prices)
        elif each.name in schedules:
            yield from _stopped_schedule(each, history.now)


def _stopped_schedule(each: Instigator, now: float) -> Iterator[Advice]:
    days = (now - each.changed_at) / DAY
    if days <= OFF_DAYS:
        return
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


def _skipping_schedule(each: Instigator) -> Iterator[Advice]:
    ended = _ended(each)
    if len(ended) < LEAST_SKIPPED or any(tick.status != "skipped" for tick in ended):
        return
    days = _days(ended, least=1.0)
    yield Advice(
        "idle schedule",
        each.name,
        "Switch it off, or correct what makes it skip.",
        "the switch of the schedule in the UI, or its definition",
        f"all of {len(ended):,} ticks in {days:,.1f} days skipped",
        len(ended) / days,
        "ticks a day",
        figures={"ticks": len(ended)},
    )


def _schedule_without_news(each: Instigator, job: Job, assets: Mapping[str, Asset], prices: Prices) -> Iterator[Advice]:
    runs = [run for run in job.runs if run.tags.get(SCHEDULE_TAG) == each.name]
    loads = [_loads(run, assets) for run in runs]
    if len(runs) < LEAST_UNCHANGED or not all(found and not any(found.values()) for found in loads):
        return
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
    ended = _ended(each)
    # One that follows runs is to answer soon, and costs a query where nothing ended.
    if not each.is_on or each.follows_runs or len(ended) < LEAST_TICKS or each.interval > SHORT_INTERVAL_SECONDS:
        return
    skipped = sum(tick.status == "skipped" for tick in ended)
    if skipped / len(ended) <= SKIPPED_SHARE:
        return
    days = _days(ended, least=each.interval / DAY)
    fewer = len(ended) / days * (1 - each.interval / LONG_INTERVAL_SECONDS)
    spent = sum(tick.seconds for tick in ended) / len(ended)
    yield Advice(
        "idle sensor",
        each.name,
        f"Look every {LONG_INTERVAL_SECONDS:,.0f} s, if what it starts may begin that much later.",
        f"minimum_interval_seconds={LONG_INTERVAL_SECONDS:.0f} of the sensor {each.name}",
        f"{skipped:,} of {len(ended):,} ticks in {days:,.1f} days skipped, {skipped / len(ended):.2%}, "
        f"every {each.interval:,.0f} s, {spent:.2f} s each",
        fewer,
        "ticks a day",
        figures={"ticks": len(ended), "skipped": skipped, "interval_seconds": each.interval, "tick_seconds": spent},
    )


def _ended(each: Instigator) -> list[Tick]:
    return [tick for tick in each.ticks if tick.status != "started"]


def _days(ticks: Sequence[Tick], *, least: float) -> float:
    """From the oldest to the newest: a cap may have kept out earlier ones."""
    return max((ticks[0].at - ticks[-1].at) / DAY, least)


def unused(assets: Mapping[str, Asset], costs: Iterable[Cost], history: History, prices: Prices) -> Iterator[Advice]:
    """Assets that no asset reads, no check looks at, and no exposure, metric or saved query names."""
    by_name = {cost.name: cost for cost in costs}
    for asset in assets.values():
        if asset.readers or asset.checks or asset.uses or asset.key.startswith(ENDS):
            continue
        cost = by_name.get(asset.key)
        if cost:
            runs = f"{cost.runs} {'run' if cost.runs == 1 else 'runs'}"
            made = f"made in {runs} of {history.days:,.0f} days, {prices.text(cost.money)} a month"
        else:
            made = f"not made in {history.days:,.0f} days"
        how = "an exposure in the YAML beside it" if asset.source.startswith("dbt/") else "a model that reads it"
        yield Advice(
            "unused asset",
            asset.key,
            "Remove it, or say who reads it: what people query by hand is not seen here.",
            f"{asset.source or asset.key}: remove, or {how}",
            f"no asset, check, exposure, metric or saved query reads it; {made}",
            cost.pod_hours if cost else 0.0,
            "pod-hours a month",
            cost.money if cost else 0.0,
            {"runs": cost.runs if cost else 0},
        )
