"""Trips are rebuilt by month: a changed file takes its old rows out of facts and quarantine, others stay as they are.

The tests share a lake and run in the order they stand in.
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


@pytest.fixture(scope="module")
def reloaded(
    built: Settings, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, set[tuple[str, str]]]:
    """The lake after four months changed, each in its way, and one run; with the months whose trips are now others."""
    before = {table: rows_by_month(built, table) for table in TRIPS_TABLES}
    other = tmp_path_factory.mktemp("other")
    generate(other, first_month="2021-01", last_month="2021-01", trips_per_month=400, seed=2)
    (other / "green_tripdata_2021-01.parquet").replace(data / "green_tripdata_2021-01.parquet")
    rewrite(data / "JC-202102-citibike-tripdata.csv", "ended_at > started_at AND ended_at[:10] = started_at[:10]")
    rewrite(data / "yellow_tripdata_2021-02.parquet", "fare_amount < 0")
    load_all(built, data)
    query(built, "DELETE FROM raw.tlc__fhv_taxi WHERE _month = '2021-01'")

    dbt(built, "run", *SELECTED)

    return built, {key for table in TRIPS_TABLES for key in changed_months(before[table], rows_by_month(built, table))}


def test_changed_files_replace_their_months_and_no_other(reloaded: tuple[Settings, set[tuple[str, str]]]):
    settings, changed = reloaded

    assert changed == {
        ("green_taxi", "2021-01"),
        ("citibike", "2021-02"),
        ("yellow_taxi", "2021-02"),
        ("fhv_taxi", "2021-01"),
    }
    assert query(
        settings, "SELECT rows_in FROM marts.trip_reconciliation WHERE service = 'green_taxi' AND month = '2021-01'"
    ) == [(201,)]
    assert query(settings, "SELECT * FROM marts.trip_reconciliation WHERE rows_in <> facts + quarantined") == []


@pytest.mark.parametrize(
    ("month", "has_facts", "has_quarantined"),
    [
        pytest.param(("citibike", "2021-02"), True, False, id="a corrected file has nothing in quarantine"),
        pytest.param(("yellow_taxi", "2021-02"), False, True, id="a file that is all dirt has no facts"),
        pytest.param(("fhv_taxi", "2021-01"), False, False, id="rows taken out of raw are nowhere"),
    ],
)
def test_rows_that_a_month_lost_are_gone(
    reloaded: tuple[Settings, set[tuple[str, str]]], month: tuple[str, str], has_facts: bool, has_quarantined: bool
):
    settings, _ = reloaded

    assert (month in rows_by_month(settings, "fct_trips")) is has_facts
    assert (month in rows_by_month(settings, "quarantined_trips")) is has_quarantined


def test_weather_that_comes_later_reaches_the_trips_of_its_month_only(reloaded: tuple[Settings, set[tuple[str, str]]]):
    built, _ = reloaded
    query(
        built,
        "CREATE TABLE raw.open_meteo__hourly (date VARCHAR, hourly JSON, _loaded_at TIMESTAMPTZ, _run_id VARCHAR)",
    )
    hours = [f"2021-03-{day:02}T{hour:02}:00" for day in range(2, 32) for hour in range(24)]
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


def test_after_all_that_the_tables_are_what_a_full_build_makes(built: Settings):
    incremental = {table: rows_by_month(built, table) for table in TRIPS_TABLES}

    dbt(built, "run", "--full-refresh", *SELECTED)

    assert {table: rows_by_month(built, table) for table in TRIPS_TABLES} == incremental
