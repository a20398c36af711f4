"""What to change about time, idleness and use, on histories with a known answer, each beside one that needs no change."""

from dataclasses import replace

import pytest

from pipeline.operate.advise import judge
from pipeline.operate.asset_use import Asset
from pipeline.operate.costs import costs, money, shares
from pipeline.operate.history import DAY, History, Instigator, Job, Made, Run, Sample, Tick
from pipeline.operate.recommendations import (  # fmt: skip
    Advice,
    bottleneck,
    critical_path,
    idle,
    percentile,
    queue,
    retries,
    startup,
    unused,
)
from tests.operate.constructed import GIB, NOW, PRICES, job, run, step

SHOP = {
    "raw/a": Asset("raw/a", source="sources/a.yaml"),
    "raw/b": Asset("raw/b", source="sources/b.yaml"),
    "marts/m": Asset("marts/m", parents=frozenset({"raw/a", "raw/b"}), source="dbt/models/marts/m.sql"),
}
LOADS = (("a", 10.0, "raw/a"), ("b", 30.0, "raw/b"))


def one(found: list[Advice]) -> Advice:
    (advice,) = found
    return advice


# the critical path


def test_the_step_that_is_most_of_the_critical_path_is_found_with_the_slack_of_the_others():
    runs = [run(*LOADS, ("dbt", 90.0, "marts/m"), start=6, end=1)] * 5

    advice = one([*bottleneck(job(*runs), SHOP)])

    assert advice.subject == "daily: dbt"
    assert advice.gain == 45
    assert advice.figures == {
        "step_seconds": 90, "critical_path_seconds": 120, "share": 0.75, "serial_seconds": 130, "wall_seconds": 137,
        "serial_gain_seconds": 45, "runs": 5,
    }  # fmt: skip
    assert "critical path b 30 s → dbt 90 s = 120 s, of which dbt is 75%" in advice.evidence
    assert "one after another the steps take 130 s, with start and end 137 s" in advice.evidence
    assert "slack: a 20 s" in advice.evidence
    assert advice.setting.startswith("dbt/models/marts/m.sql: materialized: incremental")


def test_what_halving_gains_ends_where_another_branch_is_the_longest():
    runs = [run(("a", 100.0, "raw/a"), ("b", 90.0, "raw/b"), ("dbt", 10.0, "marts/m"))] * 5

    advice = one([*bottleneck(job(*runs), SHOP)])

    assert advice.subject == "daily: a"
    assert advice.gain == 10  # 110 s to 100 s, by way of b
    assert advice.figures["serial_gain_seconds"] == 50
    assert advice.setting == "sources/a.yaml: a stream for each part of what raw/a loads"


@pytest.mark.parametrize(("seconds", "fires"), [(45.0, False), (46.0, True)], ids=["60 %", "61 %"])
def test_a_step_is_a_bottleneck_above_60_percent_of_the_path(seconds: float, fires: bool):
    runs = [run(*LOADS, ("dbt", seconds, "marts/m"))] * 5

    assert bool([*bottleneck(job(*runs), SHOP)]) is fires


@pytest.mark.parametrize(
    "runs",
    [
        [run(*LOADS, ("dbt", 90.0, "marts/m"))] * 4,
        [run(("a", 1.0, "raw/a"), ("dbt", 9.0, "marts/m"))] * 5,
        [run(("maintain", 900.0))] * 5,
        [run(*LOADS, ("dbt", 90.0, "marts/m"), status="failure")] * 5,
    ],
    ids=["four runs", "ten seconds", "one step", "failed"],
)
def test_no_bottleneck_is_told_of_short_single_failed_or_few_runs(runs: list[Run]):
    assert [*bottleneck(job(*runs), SHOP)] == []


def test_runs_of_a_part_do_not_blur_the_path_and_one_slow_run_does_not_either():
    whole = [run(*LOADS, ("dbt", 90.0, "marts/m"))] * 6
    slow = run(*LOADS, ("dbt", 9000.0, "marts/m"))
    part = [run(("b", 500.0, "raw/b"), ("dbt", 1.0, "marts/m"))] * 5

    figures = one([*bottleneck(job(*part, slow, *whole), SHOP)]).figures

    assert (figures["critical_path_seconds"], figures["runs"]) == (120, 7)


def test_a_blocking_check_is_on_the_path_between_what_it_checks_and_what_reads_that():
    steps = (
        step("a", 0, 10, "raw/a"),
        step("b", 10, 5, "raw/b"),
        step("check_a", 15, 20, checks=("raw/a",)),
        step("dbt", 35, 100, "marts/m"),
    )
    runs = [Run("r", "success", 0, 135, steps)] * 5
    guarded = {**SHOP, "raw/a": Asset("raw/a", holds_back=True)}

    assert one([*bottleneck(job(*runs), guarded)]).figures["critical_path_seconds"] == 130
    assert one([*bottleneck(job(*runs), SHOP)]).figures["critical_path_seconds"] == 110


def test_steps_that_the_definitions_do_not_know_count_as_the_chain_that_they_were():
    runs = [run(("first", 10.0), ("second", 90.0))] * 5

    assert one([*bottleneck(job(*runs), {})]).figures["critical_path_seconds"] == 100


def test_within_a_step_of_many_models_the_longest_is_named():
    models = (Made("marts/m", seconds=60), Made("marts/n", seconds=20))
    runs = [run(("a", 10.0, "raw/a"), ("dbt", 90.0, *models))] * 5

    advice = one([*bottleneck(job(*runs), {**SHOP, "marts/n": Asset("marts/n")})])

    assert advice.text.startswith("Split marts/m")
    assert "marts/m is 75% of dbt" in advice.evidence


def test_the_critical_path_of_a_diamond():
    path, slack = critical_path(
        {"a": 1, "b": 5, "c": 3, "d": 2, "lone": 4}, {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "lone": []}
    )

    assert path == ["a", "b", "d"]
    assert slack == {"a": 0, "b": 0, "c": 2, "d": 0, "lone": 4}


# start, queue, retries


def often(share_of_start: float, *, count: int = 50, days: float = 1.0) -> Job:
    """Runs of 100 s that are start for that share."""
    start = 100 * share_of_start
    return job(*[run(("a", 100 - start, "raw/a"), start=start)] * count, days=days)


def test_runs_that_are_mostly_start_are_to_be_fewer():
    advice = one([*startup(often(0.5), PRICES)])

    assert advice.gain == pytest.approx(50 * 50 / 2 / 3600)
    assert advice.money_per_month == pytest.approx(advice.gain * 30 * 1.0)
    assert advice.setting == "more assets in one run"


def test_of_a_schedule_its_cron_is_named():
    scheduled = job(*[replace(each, tags={"dagster/schedule_name": "hourly"}) for each in often(0.5).runs], days=1)

    assert one([*startup(scheduled, PRICES)]).setting == "millrace.yaml: schedules: {hourly: a rarer cron}"


@pytest.mark.parametrize(
    "made",
    [
        often(0.3),
        often(0.5, count=4),
        often(0.5, count=10),
        job(*[replace(each, tags={"dagster/partition": "x"}) for each in often(0.5).runs]),
    ],
    ids=["30 %", "four runs", "under ten minutes a day", "of partitions"],
)
def test_start_is_no_matter_where_it_is_little(made: Job):
    assert [*startup(made, PRICES)] == []


def queued(wait: float, *, at: float = NOW, pool: str = "", seconds: float = 100.0) -> Run:
    """A run that was launched at *at* after *wait* seconds."""
    return run(
        ("a", seconds, "raw/a"), at=at, queued_at=at - wait, tags={f".dagster/pool/{pool}": "true"} if pool else {}
    )


@pytest.mark.parametrize(("wait", "fires"), [(60.0, False), (61.0, True)])
def test_runs_that_wait_over_a_minute_for_a_slot_want_more_at_once(wait: float, fires: bool):
    waiting = job(*[queued(wait, at=NOW + 1000 * number) for number in range(20)])

    found = [*queue([waiting])]

    assert [advice.setting for advice in found] == (["runs.maxConcurrent of the chart"] if fires else [])


def test_one_long_wait_of_twenty_is_chance():
    waits = [queued(600.0, at=NOW), *(queued(1.0, at=NOW + 1000 * number) for number in range(1, 20))]

    assert [*queue([job(*waits)])] == []


def test_runs_that_wait_for_a_pool_are_told_which_and_not_to_go_more_at_once():
    holding = job(*[queued(0, at=NOW + 1000 * number, pool="dbt", seconds=200) for number in range(20)], name="builds")
    waiting = job(
        *[queued(150, at=NOW + 1000 * number + 200, pool="dbt", seconds=50) for number in range(20)], name="small"
    )

    advice = one([*queue([holding, waiting])])

    assert (advice.kind, advice.subject) == ("pool", "small")
    assert advice.figures == {"waited_seconds": 150, "share": 0.75, "runs": 20}
    assert advice.gain == pytest.approx(20 * 150 / 10 / 3600)
    assert "dagster instance concurrency set dbt 2" in advice.setting


def test_runs_of_a_pool_that_nobody_held_wait_for_something_else():
    waiting = job(*[queued(150, at=NOW + 1000 * number, pool="dbt") for number in range(20)])

    assert one([*queue([waiting])]).kind == "queue"


@pytest.mark.parametrize(("again", "fires"), [(1, False), (2, True)], ids=["5 %", "10 %"])
def test_retries_are_told_above_five_percent_with_what_the_runs_died_of(again: int, fires: bool):
    retry = run(("a", 100.0, "raw/a"), tags={"dagster/retry_number": "1"})
    dead = run(("a", 360.0, "raw/a"), status="failure", tags={"dagster/failure_reason": "RUN_WORKER_RESTART"})
    good = run(("a", 100.0, "raw/a"))

    found = [*retries(job(*[retry] * again, *[dead] * 2, *[good] * (18 - again)), PRICES)]

    assert bool(found) is fires
    if fires:
        assert "failures: 2 × run worker restart" in found[0].evidence
        assert "runs.nodeSelector" in found[0].setting
        assert found[0].gain == pytest.approx(0.02)  # 12 minutes in ten days
        assert found[0].money_per_month == pytest.approx(0.6)


def test_of_runs_that_died_of_memory_the_memory_is_to_change():
    retry = run(("a", 100.0, "raw/a"), tags={"dagster/retry_number": "1"})
    dead = run(("a", 360.0, "raw/a"), status="failure", sample=Sample(oom_kills=1))

    assert "memory" in one([*retries(job(*[retry] * 2, *[dead] * 2, *[run()] * 16), PRICES)]).setting


@pytest.mark.parametrize(("share", "found"), [(0.95, 19), (0.5, 10), (1.0, 20), (0.01, 1)])
def test_a_percentile_is_one_of_the_values(share: float, found: int):
    assert percentile(range(1, 21), share) == found


# idle


def loaded(*rows: int | None, status: str = "success") -> Run:
    """A scheduled hour's run of a stream each, with the rows that it tells, and a model of them."""
    steps = [(f"s{number}", 1800.0, Made(f"raw/s{number}", rows_loaded=count)) for number, count in enumerate(rows)]
    return run(*steps, ("dbt", 1800.0, "marts/m"), status=status, tags={"dagster/schedule_name": "daily"})


MODEL = {"marts/m": Asset("marts/m", parents=frozenset({"raw/s0"}))}
DAILY = Instigator("schedule", "daily", "here", is_on=True, changed_at=NOW)


def idle_with(*runs: Run, instigator: Instigator = DAILY, days: float = 14.0) -> list[Advice]:
    jobs = (job(*runs, days=days),) if runs else ()
    return [*idle(History(NOW, 14, jobs, (instigator,)), MODEL, PRICES)]


def test_a_schedule_whose_runs_load_nothing_is_to_run_half_as_often():
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


# use and cost


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


def test_a_run_is_borne_by_its_assets_with_its_start_and_end_and_by_the_time_that_they_tell():
    models = (Made("marts/m", seconds=3), Made("marts/n", seconds=1))
    made = run(("a", 100.0, "raw/a"), ("check_a", 20.0), ("dbt", 80.0, *models), start=150, end=50)
    made = replace(made, steps=(made.steps[0], replace(made.steps[1], checks=frozenset({"raw/a"})), made.steps[2]))

    assert shares(made, "daily") == pytest.approx({"raw/a": 0.6, "marts/m": 0.3, "marts/n": 0.1})
    assert shares(run(), "daily") == {"job daily": 1.0}
    assert shares(run(("op", 5.0)), "upkeep") == {"job upkeep": 1.0}
    evenly = run(("dbt", 80.0, Made("marts/m", seconds=3), "marts/n"))
    assert shares(evenly, "daily") == {"marts/m": 0.5, "marts/n": 0.5}


def test_the_price_of_a_run_is_what_it_asked_for_or_used_if_that_is_more():
    hour = run(("a", 3600.0, "raw/a"))

    assert money(hour, PRICES) == 1.0  # one core where nothing is known
    assert money(replace(hour, sample=Sample(cpu_seconds=7200, peak=3 * GIB)), PRICES) == pytest.approx(2.3)
    assert money(replace(hour, cpu_request=0.5, memory_request=2.0 * GIB), PRICES) == pytest.approx(0.7)
    used = Sample(cpu_seconds=360, peak=5 * GIB)
    assert money(replace(hour, cpu_request=0.5, memory_request=2.0 * GIB, sample=used), PRICES) == pytest.approx(1.0)


def test_costs_of_all_assets_add_up_to_those_of_all_runs():
    small = job(*[run(("a", 3600.0, "raw/a"))] * 3, days=30)
    large = job(*[run(("b", 3600.0, "raw/b"), ("a", 3600.0, "raw/a"))] * 6, days=15, name="twice")

    found = costs([small, large], PRICES)

    assert [(cost.name, cost.money, cost.runs) for cost in found] == [("raw/a", 15.0, 9), ("raw/b", 12.0, 6)]
    assert [round(cost.share, 3) for cost in found] == [0.556, 0.444]
    assert sum(cost.share for cost in found) == pytest.approx(1)


def test_the_report_has_the_most_money_first_and_of_one_job_says_nothing_that_needs_all():
    often_started = often(0.5)
    history = History(NOW, 14, (often_started,), (replace(DAILY, is_on=False, changed_at=NOW - 90 * DAY),))

    whole, part = (judge(history, SHOP, PRICES, is_whole=is_whole) for is_whole in (True, False))

    assert [item.kind for item in whole.advice] == [
        "unused asset",
        "start-up",
        "idle schedule",
        "unused asset",
        "unused asset",
    ]
    amounts = [item.money_per_month for item in whole.advice]
    assert amounts == sorted(amounts, reverse=True)
    assert [item.kind for item in part.advice] == ["start-up"]
    assert judge(History(NOW, 14), {}, PRICES).advice == []
