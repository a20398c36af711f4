"""What runs and assets cost, on histories with a known answer."""

from dataclasses import replace

import pytest

from pipeline.operate.costs import costs, money, shares
from pipeline.operate.history import Made, ResourceUse
from tests.operate.constructed import GIB, PRICES, job, run


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
    assert money(replace(hour, used=ResourceUse(cpu_seconds=7200, peak=3 * GIB)), PRICES) == pytest.approx(2.3)
    assert money(replace(hour, cpu_request=0.5, memory_request=2.0 * GIB), PRICES) == pytest.approx(0.7)
    used = ResourceUse(cpu_seconds=360, peak=5 * GIB)
    assert money(replace(hour, cpu_request=0.5, memory_request=2.0 * GIB, used=used), PRICES) == pytest.approx(1.0)


def test_costs_of_all_assets_add_up_to_those_of_all_runs():
    small = job(*[run(("a", 3600.0, "raw/a"))] * 3, days=30)
    large = job(*[run(("b", 3600.0, "raw/b"), ("a", 3600.0, "raw/a"))] * 6, days=15, name="twice")

    found = costs([small, large], PRICES)

    assert [(cost.name, cost.money, cost.runs) for cost in found] == [("raw/a", 15.0, 9), ("raw/b", 12.0, 6)]
    assert [round(cost.share, 3) for cost in found] == [0.556, 0.444]
    assert sum(cost.share for cost in found) == pytest.approx(1)
