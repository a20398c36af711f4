"""The dbt project on generated data in a real lake: one build, then what a reader of the tables sees."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.lake.connection import Lake
from pipeline.operate.database import stop_embedded, with_database
from pipeline.projects.nyc.generate import generate
from pipeline.settings import Settings
from tests.projects.nyc.conftest import dbt, load_all, node_results

TRIPS = 600
MODELS = {
    "staging": [
        "int_trips", "stg_citibike__trips", "stg_open_meteo__hourly", "stg_tlc__fhv_taxi", "stg_tlc__green_taxi",
        "stg_tlc__yellow_taxi", "stg_weather__hourly",
    ],
    "marts": [
        "dim_date", "dim_location", "dim_time", "dim_weather", "fct_hourly_mobility", "fct_trips",
        "metricflow_time_spine", "quarantined_trips", "trip_reconciliation",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A platform of this module's own with the demonstration's months loaded and modelled."""
    data = tmp_path_factory.mktemp("data")
    generate(data, trips_per_month=TRIPS)
    home = Settings(state_dir=tmp_path_factory.mktemp("state"))
    settings = with_database(home)
    load_all(settings, data)
    dbt(settings, "build")
    yield settings
    stop_embedded(home)


@pytest.fixture
def marts(built: Settings) -> Iterator[Lake]:
    with Lake.open(built, read_only=True) as lake:
        yield lake


@pytest.fixture(scope="module")
def manifest(built: Settings) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((built.dbt_target_path / "manifest.json").read_text())


def test_every_model_and_test_passes_without_the_optional_connector(built: Settings):
    results = node_results(built)

    assert set(results.values()) <= {"success", "pass"}
    assert sum(name.startswith("model.") for name in results) == 16
    assert sum(name.startswith("unit_test.") for name in results) == 6


def test_models_are_in_the_schemas_staging_and_marts_and_nowhere_else(marts: Lake):
    found = marts.query(
        """SELECT table_schema, list(table_name ORDER BY table_name) FROM information_schema.tables
        WHERE table_catalog = 'lake' AND table_schema NOT IN ('raw', 'ingest') GROUP BY table_schema"""
    )

    assert dict(found) == MODELS


def test_every_column_of_every_model_is_described(marts: Lake, manifest):
    described = {
        (node["schema"], node["name"], column["name"])
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model"
        for column in node["columns"].values()
        if column["description"]
    }
    present = marts.query(
        """SELECT table_schema, table_name, column_name FROM information_schema.columns
        WHERE table_catalog = 'lake' AND table_schema IN ('staging', 'marts')"""
    )

    assert set(present) == described


def test_every_model_has_an_owner_a_group_and_a_description(manifest):
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]

    assert len(models) == 16
    for model in models:
        assert model["config"]["meta"]["dagster"]["owners"] == ["team:mobility"]
        assert model["group"] == "mobility"
        assert model["description"]


def test_descriptions_are_in_the_lake(marts: Lake):
    comments = dict(
        marts.query(
            "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'fct_trips' AND comment IS NOT NULL"
        )
    )

    assert comments["started_at_utc"] == "Start, UTC."


def test_rows_in_are_facts_and_quarantined_trips_by_reason(marts: Lake):
    months = ["2020-11", "2020-12", "2021-01", "2021-02", "2021-03"]
    per_month = {
        "citibike": TRIPS + 1,
        "fhv_taxi": TRIPS // 4 + 1,
        "green_taxi": TRIPS // 2 + 1,
        "yellow_taxi": TRIPS + 1,
    }

    rows_in = marts.query("SELECT service, month, rows_in FROM marts.trip_reconciliation ORDER BY ALL")
    accounted = marts.query(
        """SELECT service, _month, count(*) FROM (
            SELECT service, _month, trip_id FROM marts.fct_trips
            UNION SELECT service, _month, trip_id FROM marts.quarantined_trips
        ) GROUP BY ALL ORDER BY ALL"""
    )

    assert rows_in == [(service, month, rows) for service, rows in per_month.items() for month in months]
    assert accounted == rows_in


def test_each_kind_of_dirt_is_refused_for_its_reason(marts: Lake):
    found = dict(
        marts.query(
            "SELECT refused_reason, list(DISTINCT service ORDER BY service) FROM marts.quarantined_trips GROUP BY ALL"
        )
    )

    cabs, taxis = ["green_taxi", "yellow_taxi"], ["fhv_taxi", "green_taxi", "yellow_taxi"]
    assert found == {
        "duplicate": ["citibike", *taxis],
        "missing_time": ["fhv_taxi"],
        "outside_month": taxis,
        "ends_before_start": ["citibike", *taxis],
        "over_a_day": ["citibike", *taxis],
        "negative_fare": cabs,
        "zero_distance": cabs,
        "implausible_distance": cabs,
    }


def test_trips_with_an_unknown_place_stay_and_are_flagged(marts: Lake):
    rows = marts.query(
        """SELECT service, count(*) FILTER (WHERE start_location_id IN ('tlc:264', 'tlc:265')) > 0,
            count(*) FILTER (WHERE end_location_id IS NULL) > 0,
            bool_and(has_unknown_location) FILTER (WHERE end_location_id IS NULL OR start_location_id IN ('tlc:264', 'tlc:265'))
        FROM marts.fct_trips GROUP BY ALL ORDER BY ALL"""
    )

    assert rows == [
        ("citibike", False, True, True),
        ("fhv_taxi", True, True, True),
        ("green_taxi", True, False, True),
        ("yellow_taxi", True, False, True),
    ]


def test_trips_over_a_change_of_the_clocks_last_as_long_as_the_bike_says(marts: Lake):
    rows = marts.query(
        """SELECT fact.duration_seconds, raw.tripduration, fact.ended_at_local < fact.started_at_local
        FROM marts.fct_trips AS fact JOIN raw.citibike__trips AS raw USING (_file, _row)
        WHERE fact.is_time_ambiguous AND fact._month = '2020-11'"""
    )

    assert len(rows) > 15
    assert any(backwards for *_, backwards in rows)
    # A trip within one pass cannot tell which; one over an hour may be read an hour shorter.
    assert all(abs(duration - recorded) <= 1 for duration, recorded, _ in rows if recorded < 3600)


def test_weather_is_that_of_the_utc_hour_in_which_the_trip_started(marts: Lake):
    (measured, matching) = marts.query(
        """SELECT count(temperature_c), count(*) FILTER (
            WHERE temperature_c = (SELECT temp FROM raw.weather__hourly WHERE time = date_trunc('hour', started_at_utc)))
        FROM marts.fct_trips"""
    )[0]

    assert measured == matching > 5_000
    assert marts.query("SELECT DISTINCT weather_id FROM marts.fct_trips WHERE temperature_c IS NULL") == [
        ("unknown/unknown",)
    ]


def test_hourly_mobility_adds_up_to_the_trips(marts: Lake):
    by_trip = marts.query(
        "SELECT service, count(*), round(sum(total_usd), 2), count(DISTINCT started_hour_utc) FROM marts.fct_trips GROUP BY ALL ORDER BY ALL"
    )
    by_hour = marts.query(
        "SELECT service, sum(trips)::BIGINT, round(sum(total_usd), 2), count(*) FROM marts.fct_hourly_mobility GROUP BY ALL ORDER BY ALL"
    )

    assert by_hour == by_trip


def test_stations_and_zones_are_one_dimension(marts: Lake):
    rows = marts.query(
        "SELECT kind, count(*), count(name), count(borough), count(latitude) FROM marts.dim_location GROUP BY ALL ORDER BY ALL"
    )

    assert rows == [("bike_station", 24, 24, 0, 24), ("taxi_zone", 265, 265, 265, 0)]


def test_plain_dbt_parses_with_no_environment_but_its_folders(built: Settings, tmp_path: Path):
    folders = {
        name: value
        for name, value in built.child_environment().items()
        if name.endswith(("PROJECT_DIR", "PROFILES_DIR"))
    }

    result = subprocess.run(
        [Path(sys.executable).with_name("dbt"), "parse"],
        env={**folders, "PATH": os.environ["PATH"], "DBT_TARGET_PATH": str(tmp_path), "DBT_LOG_PATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stdout
    assert "WARNING" not in result.stdout
    assert "eprecat" not in result.stdout


def test_two_dbt_processes_run_at_once(built: Settings, tmp_path: Path):
    command = [Path(sys.executable).with_name("dbt"), "run", "--no-use-colors", "-s"]
    environment = {**os.environ, **built.child_environment()}

    running = [
        subprocess.Popen(
            [*command, model], env=environment | {"DBT_TARGET_PATH": str(tmp_path / model)}, cwd=tmp_path,
            stdout=subprocess.PIPE, text=True,
        )
        for model in ("dim_time", "dim_weather")
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in running]

    assert [process.returncode for process in running] == [0, 0], outputs
