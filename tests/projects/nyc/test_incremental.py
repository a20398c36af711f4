"""Trips are rebuilt by month: a changed file takes its old rows out of facts and quarantine, others stay as they are.

The tests share a lake; each changes other months than the rest.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.lake.connection import Lake
from pipeline.operate.database import stop_embedded, with_database
from pipeline.projects.nyc.generate import generate
from pipeline.settings import Settings
from tests.projects.nyc.conftest import dbt, load_all

TRIPS_TABLES = ("fct_trips", "quarantined_trips")
SELECTED = ("-s", *TRIPS_TABLES, "trip_reconciliation")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder, first_month="2021-01", trips_per_month=260)
    return folder


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = Settings(state_dir=tmp_path_factory.mktemp("state"))
    settings = with_database(home)
    load_all(settings, data)
    dbt(settings, "run")
    yield settings
    stop_embedded(home)


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with Lake.open(settings) as lake:
        return lake.query(sql)


def unbalanced(settings: Settings) -> list[tuple[Any, ...]]:
    return query(settings, "SELECT * FROM marts.trip_reconciliation WHERE rows_in <> facts + quarantined")


def rows_by_month(settings: Settings, table: str) -> dict[tuple[str, str], tuple[int, object]]:
    """(service, month) → how many trips, and a sum that any change of one would change."""
    rows = query(settings, f"SELECT service, _month, count(*), sum(hash(t)::HUGEINT) FROM marts.{table} t GROUP BY ALL")
    return {(service, month): (count, check) for service, month, count, check in rows}


def changed_months(before: dict[Any, Any], after: dict[Any, Any]) -> set[tuple[str, str]]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def rewrite(path: Path, condition: str) -> None:
    """Replace the file by those of its rows that meet *condition*, each once."""
    copy = path.with_suffix(".new")
    if path.suffix == ".csv":
        duckdb.execute(
            f"COPY (SELECT DISTINCT * FROM read_csv('{path}', all_varchar = true) WHERE {condition}) TO '{copy}' (FORMAT csv, HEADER)"
        )
    else:
        duckdb.execute(f"COPY (SELECT DISTINCT * FROM '{path}' WHERE {condition}) TO '{copy}' (FORMAT parquet)")
    copy.replace(path)


def test_a_replaced_file_replaces_its_month_and_no_other(built: Settings, data: Path, tmp_path: Path):
    before = {table: rows_by_month(built, table) for table in TRIPS_TABLES}
    generate(tmp_path, first_month="2021-01", last_month="2021-01", trips_per_month=400, seed=2)
    (tmp_path / "green_tripdata_2021-01.parquet").replace(data / "green_tripdata_2021-01.parquet")
    load_all(built, data)

    dbt(built, "run", *SELECTED)

    for table in TRIPS_TABLES:
        assert changed_months(before[table], rows_by_month(built, table)) == {("green_taxi", "2021-01")}
    assert query(
        built, "SELECT rows_in FROM marts.trip_reconciliation WHERE service = 'green_taxi' AND month = '2021-01'"
    ) == [(201,)]
    assert unbalanced(built) == []


def test_quarantined_trips_of_a_corrected_file_are_gone(built: Settings, data: Path):
    month = ("citibike", "2021-02")
    assert month in rows_by_month(built, "quarantined_trips")
    rewrite(data / "JC-202102-citibike-tripdata.csv", "ended_at > started_at AND ended_at[:10] = started_at[:10]")
    load_all(built, data)

    dbt(built, "run", *SELECTED)

    assert month not in rows_by_month(built, "quarantined_trips")
    assert rows_by_month(built, "fct_trips")[month][0] > 200
    assert unbalanced(built) == []


def test_facts_of_a_month_that_is_all_dirt_are_gone(built: Settings, data: Path):
    month = ("yellow_taxi", "2021-02")
    assert month in rows_by_month(built, "fct_trips")
    rewrite(data / "yellow_tripdata_2021-02.parquet", "fare_amount < 0")
    load_all(built, data)

    dbt(built, "run", *SELECTED)

    assert month not in rows_by_month(built, "fct_trips")
    assert unbalanced(built) == []


def test_rows_taken_out_of_raw_leave_the_marts(built: Settings):
    query(built, "DELETE FROM raw.tlc__fhv_taxi WHERE _month = '2021-01'")

    dbt(built, "run", *SELECTED)

    for table in TRIPS_TABLES:
        assert ("fhv_taxi", "2021-01") not in rows_by_month(built, table)
    assert unbalanced(built) == []


def test_weather_that_comes_later_reaches_the_trips_of_its_month_only(built: Settings):
    query(
        built,
        "CREATE TABLE raw.open_meteo__hourly (date VARCHAR, hourly JSON, _loaded_at TIMESTAMPTZ, _run_id VARCHAR)",
    )
    hours = [f"2021-03-{day:02}T{hour:02}:00" for day in range(1, 32) for hour in range(24)]
    values = {
        "time": hours,
        **{name: [1.5] * len(hours) for name in ("precipitation", "rain", "cloud_cover", "wind_speed_10m")},
    }
    values |= {"snowfall": [0.0] * len(hours), "wind_direction_10m": [270] * len(hours)}
    values |= {"temperature_2m": [10.0] * (len(hours) - 24) + [None] * 24}  # type: ignore[list-item]
    query(built, f"INSERT INTO raw.open_meteo__hourly VALUES ('2021-03-01', '{json.dumps(values)}', now(), 'test')")
    before = rows_by_month(built, "fct_trips")

    dbt(built, "run", "-s", "stg_open_meteo__hourly", "stg_weather__hourly", "fct_trips")

    changed = changed_months(before, rows_by_month(built, "fct_trips"))
    assert {month for _, month in changed} == {"2021-03"}
    weather = query(
        built,
        "SELECT origin, condition, count(*) FROM staging.stg_weather__hourly WHERE hour_utc BETWEEN '2021-03-08' AND '2021-03-14 23:00' GROUP BY ALL",
    )
    assert weather == [("api", "rain", 168)]
    assert query(
        built,
        "SELECT DISTINCT temperature_c FROM marts.fct_trips WHERE started_hour_utc BETWEEN '2021-03-08' AND '2021-03-14 23:00'",
    ) == [(10.0,)]


def test_a_run_with_nothing_new_changes_no_row(built: Settings):
    dbt(built, "run", *SELECTED)
    ((before,),) = query(built, "SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")

    dbt(built, "run", *SELECTED)

    ((after,),) = query(built, "SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
    assert after > before
    for table in TRIPS_TABLES:
        assert query(built, f"FROM ducklake_table_changes('lake', 'marts', '{table}', {before + 1}, {after})") == []


def test_a_killed_run_leaves_the_tables_whole_and_the_next_one_finishes(built: Settings, data: Path):
    before = {table: rows_by_month(built, table) for table in TRIPS_TABLES}
    rewrite(data / "green_tripdata_2021-02.parquet", "VendorID = 2")
    load_all(built, data)
    command = [Path(sys.executable).with_name("dbt"), "run", "--no-use-colors", "--threads", "1", *SELECTED]
    environment = {**os.environ, **built.child_environment(), "PYTHONUNBUFFERED": "1"}

    with subprocess.Popen(command, env=environment, cwd=built.state_dir, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any("START sql incremental model marts.fct_trips" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    after_kill = rows_by_month(built, "fct_trips")
    dbt(built, "run", *SELECTED)

    assert changed_months(before["fct_trips"], after_kill) <= {("green_taxi", "2021-02")}
    for table in TRIPS_TABLES:
        assert changed_months(before[table], rows_by_month(built, table)) == {("green_taxi", "2021-02")}
    assert unbalanced(built) == []


def test_after_all_that_the_tables_are_what_a_full_build_makes(built: Settings):
    dbt(built, "run", *SELECTED)
    incremental = {table: rows_by_month(built, table) for table in TRIPS_TABLES}

    dbt(built, "run", "--full-refresh", *SELECTED)

    assert {table: rows_by_month(built, table) for table in TRIPS_TABLES} == incremental
