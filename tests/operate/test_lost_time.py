"""Starts, queues, pools and retries, on histories with a known answer, each beside one that needs no change."""

from dataclasses import replace

import pytest

from pipeline.operate.advice import percentile
from pipeline.operate.history import Job, ResourceUse, Run
from pipeline.operate.lost_time import queue, retries, startup
from tests.operate.constructed import NOW, PRICES, job, often_started, one, run


def test_runs_that_are_mostly_start_are_to_be_fewer():
    advice = one([*startup(often_started(0.5), PRICES)])

    assert advice.gain == pytest.approx(50 * 50 / 2 / 3600)
    assert advice.money_per_month == pytest.approx(advice.gain * 30 * 1.0)
    assert advice.setting == "more assets in one run"


def test_of_a_schedule_its_cron_is_named():
    scheduled = job(
        *[replace(each, tags={"dagster/schedule_name": "hourly"}) for each in often_started(0.5).runs], days=1
    )

    assert one([*startup(scheduled, PRICES)]).setting == "millrace.yaml: schedules: {hourly: a rarer cron}"


@pytest.mark.parametrize(
    "made",
    [
        often_started(0.3),
        often_started(0.5, count=4),
        often_started(0.5, count=10),
        job(*[replace(each, tags={"dagster/partition": "x"}) for each in often_started(0.5).runs]),
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
    dead = run(("a", 360.0, "raw/a"), status="failure", used=ResourceUse(oom_kills=1))

    assert "memory" in one([*retries(job(*[retry] * 2, *[dead] * 2, *[run()] * 16), PRICES)]).setting


@pytest.mark.parametrize(("share", "found"), [(0.95, 19), (0.5, 10), (1.0, 20), (0.01, 1)])
def test_a_percentile_is_one_of_the_values(share: float, found: int):
    assert percentile(range(1, 21), share) == found
