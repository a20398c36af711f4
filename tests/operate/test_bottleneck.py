"""The critical path of runs, on histories with a known answer, each beside one that needs no change."""

import pytest

from pipeline.operate.asset_use import Asset
from pipeline.operate.bottleneck import bottleneck, critical_path
from pipeline.operate.history import Made, Run
from tests.operate.constructed import SHOP, job, one, run, step

LOADS = (("a", 10.0, "raw/a"), ("b", 30.0, "raw/b"))


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


def test_a_clock_that_is_set_back_makes_no_step_wait_for_a_later_one():
    steps = (step("first", 10.0, 0.0), step("second", 5.0, 1.0), step("third", 6.0, 100.0))
    runs = [Run("r", "success", 0, 106, steps)] * 5

    figures = one([*bottleneck(job(*runs), {})]).figures

    assert figures["critical_path_seconds"] == 101  # what the clock says of the second and third


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
