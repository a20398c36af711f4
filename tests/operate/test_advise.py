"""`millrace advise` as a person meets it: a real project, real runs in a real PostgreSQL, the command's own output."""

import json
from pathlib import Path
from typing import Any

import click.testing
import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.operate.advise import judge
from pipeline.operate.asset_use import read_assets, read_schedules
from pipeline.operate.history import DAY, History, Instigator
from pipeline.operate.instance import open_instance
from pipeline.operate.run import run
from pipeline.settings import Settings
from tests.operate.constructed import GIB, NOW, PRICES, SHOP, often_started
from tests.operate.test_history_reader import cluster, launched

USES = """\
exposures:
  - {name: board, type: dashboard, owner: {name: team, email: a@b.c}, depends_on: [ref('dim_city')]}
models:
  - {name: days, time_spine: {standard_granularity_column: day}, columns: [{name: day, granularity: day}]}
"""


@dg.asset(key=["marts", "hungry"])
def hungry() -> None: ...


HUNGRY = dg.Definitions(
    assets=[hungry], jobs=[dg.define_asset_job("daily_dbt_build", [hungry])], executor=dg.in_process_executor
)


@pytest.fixture
def shop(project: Settings) -> Settings:
    """The project, with a dashboard that reads one of its models, and a time spine."""
    models = project.project_dir / "dbt" / "models"
    (models / "uses.yml").write_text(USES)
    (models / "marts" / "days.sql").write_text("select date '2026-01-01' as day\n")
    return project


@pytest.fixture
def history(shop: Settings, tmp_path: Path) -> tuple[Settings, Path]:
    """One run of the whole project, here, and five small ones of the daily job in pods of 2 GiB; the cluster's folder."""
    summary = run(shop, report=lambda _: None, log=lambda _: None)
    assert summary.succeeded, summary.errors
    sample = {
        "peak": 300 << 20,
        "peak_is_sampled": False,
        "working_set": 200 << 20,
        "limit": 2 * GIB,
        "cpu_seconds": 0.01,
    }
    with open_instance(shop) as instance:
        for _ in range(5):
            launched(
                instance, "daily_dbt_build", sample, tags={"millrace/memory": "2Gi"}, starting=8, definitions=HUNGRY
            )
    folder = tmp_path / "cluster"
    cluster(shop.model_copy(update={"instance_dir": folder}))
    return shop, folder


def advise(settings: Settings, folder: Path, *arguments: str, code: int = 0) -> str:
    """What the command prints."""
    assert settings.database_url
    environment = {
        "MILLRACE_PROJECT_DIR": str(settings.project_dir),
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_DBT_PARSED_DIR": str(settings.dbt_parsed_dir),
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
        "MILLRACE_INSTANCE_DIR": str(folder),
        "MILLRACE_PRICE_CURRENCY": "EUR",
    }
    done = click.testing.CliRunner().invoke(main, ["advise", *arguments], env=environment)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_advice_is_given_on_real_runs_as_json_and_as_a_table(history: tuple[Settings, Path]):
    found: dict[str, Any] = json.loads(advise(*history, "--json"))
    table = advise(*history)
    part = json.loads(advise(*history, "--json", "--job", "daily_dbt_build"))

    advice = {(item["kind"], item["subject"]): item for item in found["advice"]}
    assert advice.keys() == {("memory", "daily_dbt_build"), ("unused asset", "marts/fct_sales")}
    memory = advice["memory", "daily_dbt_build"]
    assert memory["setting"] == 'millrace.yaml: limits: - {job: daily_dbt_build, memory: "512Mi"}'
    assert memory["money_per_month"] > 0
    assert memory["figures"]["peak_bytes"] == 300 << 20
    assert advice["unused asset", "marts/fct_sales"]["setting"].startswith("dbt/models/marts/fct_sales.sql: remove")
    assert (found["runs"], found["days"], found["prices"]["currency"], found["left_out"]) == (6, 14.0, "EUR", [])
    costs = {item["name"]: item for item in found["costs"]}
    assert {"raw/second/sales", "marts/dim_city", "marts/fct_sales", "marts/hungry"} <= costs.keys()
    assert sum(item["share"] for item in costs.values()) == pytest.approx(1)
    assert costs["marts/hungry"]["reported_runs"] == costs["marts/hungry"]["runs"] == 5
    assert costs["marts/hungry"]["pod_hours"] > 5 * 8 / 3600 * 30  # of a day, with what they took to start

    assert "limits: - {job: daily_dbt_build" in table
    assert "peak 300Mi at most" in table
    assert "EUR a month" in table
    assert "marts/fct_sales" in table
    assert [item["kind"] for item in part["advice"]] == ["memory"]
    assert "Give one that has: daily_dbt_build" in advise(*history, "--job", "daily_dbt_biuld", code=1)


def test_who_reads_an_asset_and_what_is_scheduled_is_known_from_the_project(shop: Settings):
    assets = read_assets(shop)

    sales, city, model = assets["raw/second/sales"], assets["marts/dim_city"], assets["marts/fct_sales"]
    assert (sales.readers, sales.is_partitioned, sales.holds_back, sales.source) == (
        {"marts/fct_sales"}, True, True, "sources/second.yaml",
    )  # fmt: skip
    assert (city.uses, city.readers) == ({"exposure board"}, frozenset())
    assert (model.parents, model.source, model.checks) == ({"raw/second/sales"}, "dbt/models/marts/fct_sales.sql", 0)
    assert assets["marts/days"].uses == {"time spine"}
    assert "daily_dbt_build" in read_schedules(shop)


def test_the_report_has_the_most_money_first_and_of_one_job_says_nothing_that_needs_all():
    off = Instigator("schedule", "daily", "here", is_on=False, changed_at=NOW - 90 * DAY)
    history = History(NOW, 14, (often_started(0.5),), (off,))

    whole, part = (judge(history, SHOP, {"daily"}, PRICES, is_whole=is_whole) for is_whole in (True, False))

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
    assert judge(History(NOW, 14), {}, {}, PRICES).advice == []
