"""What Dagster loads of the bundled project: keys, owners, checks, jobs, schedules."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipeline.settings import Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory, parsed: Path) -> dg.Definitions:
    from pipeline.definitions import build

    return build(Settings(state_dir=tmp_path_factory.mktemp("definitions"), dbt_parsed_dir=parsed))


def test_every_stream_and_model_is_an_asset_with_owner_group_and_kind(definitions: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}

    expected = {
        "raw/citibike/trips", "raw/tlc/yellow_taxi", "raw/tlc/green_taxi", "raw/tlc/fhv_taxi", "raw/tlc/zones",
        "raw/weather/hourly", "raw/open_meteo/hourly", "health/sources",
        "health/database", "health/lake", "health/webserver", "health/daemon", "health/code_location", "health/exporter",
        "staging/stg_citibike__trips", "staging/stg_tlc__yellow_taxi", "staging/stg_tlc__green_taxi",
        "staging/stg_tlc__fhv_taxi", "staging/stg_weather__hourly",
        "marts/dim_date", "marts/dim_time", "marts/dim_weather", "marts/dim_location",
        "marts/fct_trips", "marts/fct_hourly_mobility", "marts/metricflow_time_spine",
    }  # fmt: skip
    assert expected <= specs.keys()
    for name, spec in specs.items():
        assert spec.owners, name
        assert spec.group_name == name.split("/")[0], name
        assert spec.kinds, name
        assert spec.description, name
    assert specs["raw/citibike/trips"].metadata["max_age_hours"] == 1100  # by which the exporter tells that it is late
    assert "max_age_hours" not in specs["raw/tlc/zones"].metadata


def test_lineage_leads_from_every_trip_source_to_the_facts(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()

    upstream = {key.to_user_string() for key in dg.AssetSelection.assets("marts/fct_trips").upstream().resolve(graph)}

    assert {
        "raw/citibike/trips", "raw/tlc/yellow_taxi", "raw/tlc/green_taxi", "raw/tlc/fhv_taxi", "raw/weather/hourly",
        "raw/open_meteo/hourly", "staging/stg_weather__hourly",
    } <= upstream  # fmt: skip


def test_checks_of_sources_and_of_dbt_are_there_and_the_right_ones_block(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    blocking = {
        f"{key.asset_key.to_user_string()}: {key.name}" for key in graph.asset_check_keys if graph.get(key).blocking
    }
    names = {key.name for key in graph.asset_check_keys if key.asset_key.path[0] == "raw"}

    assert "raw/tlc/zones: primary_key_is_unique" in blocking
    assert "raw/tlc/yellow_taxi: row_count_is_within_range" in blocking
    assert {"primary_key_is_unique", "row_count_is_within_range", "is_fresh", "schema_is_unchanged"} <= names
    assert not any("is_fresh" in name for name in blocking)
    assert sum(key.asset_key.path[0] == "marts" for key in graph.asset_check_keys) > 10


def test_file_sources_are_partitioned_by_month_and_backfilled_in_one_run(definitions: dg.Definitions) -> None:
    asset = definitions.resolve_assets_def(dg.AssetKey(["raw", "tlc", "yellow_taxi"]))

    assert isinstance(asset.partitions_def, dg.TimeWindowPartitionsDefinition)
    assert asset.partitions_def.fmt == "%Y-%m"
    assert asset.backfill_policy == dg.BackfillPolicy.single_run()


def test_the_backfill_policy_is_a_setting(tmp_path: Path, parsed: Path) -> None:
    from pipeline.definitions import build

    definitions = build(Settings(state_dir=tmp_path, dbt_parsed_dir=parsed, partitions_per_run=6))

    asset = definitions.resolve_assets_def(dg.AssetKey(["raw", "tlc", "yellow_taxi"]))
    assert asset.backfill_policy == dg.BackfillPolicy.multi_run(6)


def test_schedules_are_on_in_utc_but_that_of_the_services_health(definitions: dg.Definitions) -> None:
    schedules = {item.name: item for item in definitions.schedules or []}

    assert {name: item.cron_schedule for name, item in schedules.items()} == {
        "daily_dbt_build": "0 2 * * *",
        "maintain_lake": "0 4 * * 0",
        "purge_history": "0 3 * * *",
        "monitor_health": "*/15 * * * *",
    }
    for item in schedules.values():
        assert item.execution_timezone == "UTC"
    off = {name for name, item in schedules.items() if item.default_status == dg.DefaultScheduleStatus.STOPPED}
    assert off == {"monitor_health"}


def test_the_health_of_services_is_a_job_of_its_own_and_no_part_of_the_daily_build(definitions: dg.Definitions) -> None:
    keys = {
        name: {key.to_user_string() for key in definitions.resolve_job_def(name).asset_layer.selected_asset_keys}
        for name in ("daily_dbt_build", "monitor_health")
    }

    services = {f"health/{name}" for name in ("database", "lake", "webserver", "daemon", "code_location", "exporter")}
    assert keys["monitor_health"] == services
    assert "health/sources" in keys["daily_dbt_build"]
    assert not keys["daily_dbt_build"] & services


def test_only_tables_that_others_replace_have_a_pool(definitions: dg.Definitions) -> None:
    pools = {
        asset.key.to_user_string() if len(asset.keys) == 1 else asset.node_def.name: asset.node_def.pool
        for asset in definitions.resolve_asset_graph().assets_defs
        if asset.is_executable and not isinstance(asset, dg.AssetChecksDefinition)
    }

    assert {name: pool for name, pool in pools.items() if pool} == {
        "dbt_build": "dbt",
        "raw/open_meteo/hourly": "connector_open_meteo",
    }


def test_definitions_validate_with_no_environment_set(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "pipeline.definitions"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "BetaWarning" not in done.stderr


def project_with(tmp_path: Path, parsed: Path, limits: str) -> Settings:
    """A new project whose millrace.yaml has *limits*."""
    from pipeline.operate.scaffold import write_project

    write_project(tmp_path / "shop")
    (tmp_path / "shop" / "millrace.yaml").write_text(f"name: shop\nlimits:\n{limits}\n")
    return Settings(project_dir=tmp_path / "shop", state_dir=tmp_path / "state", dbt_parsed_dir=parsed)


def test_limits_of_a_project_are_tags_of_its_assets_and_jobs(tmp_path: Path, parsed: Path) -> None:
    from pipeline.definitions import build

    settings = project_with(
        tmp_path,
        parsed,
        "  - {assets: 'raw/*', memory: 4Gi}\n  - {assets: raw/example/cities, cpu: '2'}\n  - {assets: 'marts/*', memory: 3Gi}\n  - {job: maintain_lake, memory: 6Gi}",
    )
    definitions = build(settings)
    tags = {spec.key.to_user_string(): spec.tags for spec in definitions.resolve_all_asset_specs()}

    assert tags["raw/example/cities"].items() >= {"millrace/memory": "4Gi", "millrace/cpu": "2"}.items()
    assert tags["marts/dim_city"]["millrace/memory"] == "3Gi"
    assert "millrace/memory" not in tags["staging/stg_example__cities"]
    assert definitions.resolve_job_def("maintain_lake").tags == {"millrace/memory": "6Gi"}
    assert definitions.resolve_job_def("daily_dbt_build").tags == {}


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("{assets: raw/nothing, memory: 1Gi}", "no asset is called raw/nothing"),
        (
            "{job: nothing, memory: 1Gi}",
            "there is no job nothing; there are daily_dbt_build, maintain_lake, purge_history",
        ),
        ("{assets: 'raw/*'}", "give `memory`, `cpu` or both"),
        ("{memory: 1Gi}", "give either `assets` or `job`"),
        ("{assets: 'raw/*', memory: 4 GB}", "limits.0.memory"),
    ],
)
def test_a_limit_that_cannot_hold_is_refused(tmp_path: Path, parsed: Path, limit: str, says: str) -> None:
    from pipeline.definitions import build
    from pipeline.errors import ConfigError

    with pytest.raises(ConfigError, match=says):
        build(project_with(tmp_path, parsed, f"  - {limit}"))
