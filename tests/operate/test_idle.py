"""What works for nothing, on histories with a known answer, each beside one that needs no change."""

from dataclasses import replace

import pytest

from pipeline.operate.advice import Advice
from pipeline.operate.asset_use import Asset
from pipeline.operate.costs import costs
from pipeline.operate.history import DAY, History, Instigator, Made, Run, Tick
from pipeline.operate.idle import idle, unused
from tests.operate.constructed import NOW, PRICES, job, one, run


def loaded(*rows: int | None, status: str = "success") -> Run:
    """A scheduled hour's run of a stream each, with the rows that it tells, and a model of them."""
    steps = [(f"s{number}", 1800.0, Made(f"raw/s{number}", rows_loaded=count)) for number, count in enumerate(rows)]
    return run(*steps, ("dbt", 1800.0, "marts/m"), status=status, tags={"dagster/schedule_name": "daily"})


MODEL = {"marts/m": Asset("marts/m", parents=frozenset({"raw/s0"}))}
DAILY = Instigator("schedule", "daily", "here", is_on=True, changed_at=NOW)


def idle_with(*runs: Run, instigator: Instigator = DAILY, days: float = 14.0) -> list[Advice]:
    jobs = (job(*runs, days=days),) if runs else ()
    return [*idle(History(NOW, 14, jobs, (instigator,)), MODEL, {"daily"}, PRICES)]


def test_a_schedule_whose_runs_load_nothing_is_to_run_half_as_often_started():
    advice = one(idle_with(*[loaded(0)] * 14))

    assert advice.setting == "millrace.yaml: schedules: {daily: a rarer cron}"
    assert advice.gain == pytest.approx(15)  # of 30 runs a month
    assert advice.money_per_month == pytest.approx(15.0)  # an hour of a core each
    assert "none of 14 runs" in advice.evidence
    assert "30.00 EUR a month" in advice.evidence


@pytest.mark.parametrize(
    "runs",
    [
        [loaded(0)] * 6,
        [loaded(5), *[loaded(0)] * 13],
        [loaded(0, status="failure"), *[loaded(0)] * 13],
        [loaded(0, None)] * 14,
        [loaded()] * 14,
    ],
    ids=["six runs", "one brought rows", "one failed", "a stream does not tell", "nothing is loaded"],
)
def test_a_schedule_that_may_change_something_stays(runs: list[Run]):
    assert idle_with(*runs) == []


def test_a_schedule_that_only_skips_and_one_that_is_long_off_are_told():
    ticks = tuple(Tick("skipped", NOW - hour * 3600) for hour in range(20))
    off = replace(DAILY, is_on=False, changed_at=NOW - 31 * DAY)

    assert "all of 20 ticks" in one(idle_with(instigator=replace(DAILY, ticks=ticks))).evidence
    assert "off for 31 days" in one(idle_with(instigator=off)).evidence
    assert idle_with(instigator=replace(DAILY, ticks=(*ticks, Tick("success", NOW)))) == []
    assert idle_with(instigator=replace(off, changed_at=NOW - 30 * DAY)) == []
    assert idle_with(instigator=replace(off, name="removed")) == []  # from the definitions, not from the database


def test_of_ticks_that_a_cap_kept_out_none_are_counted_and_neither_are_their_days():
    ticks = tuple(Tick("skipped", NOW - 60 * minute) for minute in range(2000))

    advice = one(idle_with(instigator=replace(DAILY, ticks=ticks)))

    assert advice.gain == pytest.approx(1440, rel=0.01)
    assert "all of 2,000 ticks in 1.4 days" in advice.evidence


def sensor(skipped: int, requested: int, *, interval: float = 30.0, **more: bool) -> Instigator:
    kinds = ["success"] * requested + ["skipped"] * skipped
    ticks = tuple(Tick(kind, NOW - interval * number, 0.2) for number, kind in enumerate(kinds))
    return Instigator(
        "sensor", "watch", "here", **{"is_on": True, **more}, changed_at=NOW, interval=interval, ticks=ticks
    )


def test_a_sensor_that_looks_often_and_finds_nothing_is_to_look_more_rarely():
    advice = one(idle_with(instigator=sensor(998, 2)))

    assert advice.setting == "minimum_interval_seconds=300 of the sensor watch"
    assert advice.gain == pytest.approx(2880 * 0.9, rel=0.01)  # ticks a day
    assert "998 of 1,000 ticks in 0.3 days skipped, 99.80%, every 30 s, 0.20 s each" in advice.evidence


@pytest.mark.parametrize(
    "instigator",
    [
        sensor(990, 10),
        sensor(499, 0),
        sensor(1000, 0, interval=60.0),
        sensor(1000, 0, follows_runs=True),
        sensor(1000, 0, is_on=False),
    ],
    ids=["99 %", "few ticks", "every minute", "follows runs", "off"],
)
def test_a_sensor_that_finds_something_or_is_cheap_stays(instigator: Instigator):
    assert idle_with(instigator=instigator) == []


def test_an_asset_that_nobody_reads_is_told_with_what_it_costs():
    assets = {
        "raw/a": Asset("raw/a", readers=frozenset({"marts/m"})),
        "marts/m": Asset("marts/m", source="dbt/models/marts/m.sql"),
        "marts/checked": Asset("marts/checked", checks=1),
        "marts/shown": Asset("marts/shown", uses=frozenset({"exposure board"})),
        "health/lake": Asset("health/lake"),
        "site/home": Asset("site/home"),
    }
    made = job(run(("a", 1800.0, "raw/a"), ("dbt", 1800.0, "marts/m")), days=10)

    advice = one([*unused(assets, costs([made], PRICES), History(NOW, 14), PRICES)])

    assert advice.subject == "marts/m"
    assert advice.setting == "dbt/models/marts/m.sql: remove, or an exposure in the YAML beside it"
    assert advice.money_per_month == pytest.approx(1.5)  # half an hour of a core, three times a month
    assert "made in 1 run of 14 days, 1.50 EUR a month" in advice.evidence
