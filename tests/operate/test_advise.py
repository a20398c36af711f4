"""`millrace advise` as a person meets it: a real project, real runs in a real PostgreSQL, the command's own output."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.operate.asset_use import read_assets
from pipeline.operate.instance import open_instance
from pipeline.operate.run import run
from pipeline.settings import Settings
from tests.operate.test_history import GIB, cluster, launched

MILLRACE = str(Path(sys.executable).with_name("millrace"))
EXPOSURE = """\
exposures:
  - {name: board, type: dashboard, owner: {name: team, email: a@b.c}, depends_on: [ref('dim_city')]}
"""


@dg.asset(key=["marts", "hungry"])
def hungry() -> None: ...


HUNGRY = dg.Definitions(
    assets=[hungry], jobs=[dg.define_asset_job("daily_dbt_build", [hungry])], executor=dg.in_process_executor
)


def millrace(settings: Settings, folder: Path, *arguments: str) -> str:
    assert settings.database_url
    environment = {
        **os.environ,
        "MILLRACE_PROJECT_DIR": str(settings.project_dir),
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_DBT_PARSED_DIR": str(settings.dbt_parsed_dir),
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
        "MILLRACE_INSTANCE_DIR": str(folder),
        "MILLRACE_PRICE_CURRENCY": "EUR",
    }
    done = subprocess.run(
        [MILLRACE, "advise", *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def history(project: Settings, tmp_path: Path) -> tuple[Settings, Path]:
    """One run of the whole project, here, and five small ones of the daily job in pods of 2 GiB; the cluster's folder."""
    (project.project_dir / "dbt" / "models" / "exposures.yml").write_text(EXPOSURE)
    summary = run(project, report=lambda _: None, log=lambda _: None)
    assert summary.succeeded, summary.errors
    with open_instance(project) as instance:
        for _ in range(5):
            sample = {"peak": 300 << 20, "working_set": 200 << 20, "limit": 2 * GIB, "cpu_seconds": 1.0}
            launched(
                instance, "daily_dbt_build", sample, tags={"millrace/memory": "2Gi"}, starting=8, definitions=HUNGRY
            )
    folder = tmp_path / "cluster"
    cluster(project.model_copy(update={"instance_dir": folder}))
    return project, folder


def test_advice_is_given_on_real_runs_as_json_and_as_a_table(history: tuple[Settings, Path]):
    found: dict[str, Any] = json.loads(millrace(*history, "--json"))
    table = millrace(*history)
    part = json.loads(millrace(*history, "--json", "--job", "daily_dbt_build"))

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


def test_who_reads_an_asset_is_known_from_the_project(project: Settings):
    (project.project_dir / "dbt" / "models" / "exposures.yml").write_text(EXPOSURE)

    assets = read_assets(project)

    sales, city, model = assets["raw/second/sales"], assets["marts/dim_city"], assets["marts/fct_sales"]
    assert (sales.readers, sales.is_partitioned, sales.holds_back, sales.source) == (
        {"marts/fct_sales"}, True, True, "sources/second.yaml",
    )  # fmt: skip
    assert (city.uses, city.readers) == ({"exposure board"}, frozenset())
    assert (model.parents, model.source, model.checks) == ({"raw/second/sales"}, "dbt/models/marts/fct_sales.sql", 0)


def test_a_time_spine_counts_as_read(tmp_path: Path, settings: Settings, parsed: Path):
    assets = read_assets(settings.model_copy(update={"dbt_parsed_dir": parsed}))

    assert assets["marts/metricflow_time_spine"].uses == {"time spine"}
