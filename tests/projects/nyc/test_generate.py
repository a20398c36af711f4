"""The generator writes what the providers write: names, columns, types, line ends and dirt."""

import csv
import re
from datetime import date
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from pipeline.projects.nyc.generate import generate
from pipeline.projects.nyc.weather import API_FILE

HISTORY_FILE = "open_meteo_nyc_hourly_2020_2021.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder, trips_per_month=600)
    return folder


def count(data: Path, file: str, condition: str) -> int:
    (found,) = duckdb.execute(f"SELECT count(*) FROM '{data / file}' WHERE {condition}").fetchone() or (0,)
    return int(found)


def test_the_same_arguments_give_the_same_bytes_and_touch_nothing_the_second_time(data: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}

    again = generate(data, trips_per_month=600)
    elsewhere = generate(tmp_path / "made", trips_per_month=600)

    assert {path: path.stat().st_mtime_ns for path in again} == before
    assert {path.name: path.read_bytes() for path in elsewhere} == {path.name: path.read_bytes() for path in again}


def test_another_seed_gives_other_trips(data: Path, tmp_path: Path):
    generate(tmp_path, first_month="2021-01", last_month="2021-01", trips_per_month=600, seed=2)

    name = "green_tripdata_2021-01.parquet"
    assert (tmp_path / name).read_bytes() != (data / name).read_bytes()


def test_each_month_has_a_file_of_each_kind(data: Path):
    months = ["2020-11", "2020-12", "2021-01", "2021-02", "2021-03"]
    monthly = [f"{kind}_tripdata_{month}.parquet" for kind in ("yellow", "green", "fhv") for month in months]
    bikes = [f"JC-{month.replace('-', '')}-citibike-tripdata.csv" for month in months]

    assert {path.name for path in data.iterdir()} == {*monthly, *bikes, "taxi_zone_lookup.csv", HISTORY_FILE, API_FILE}


def test_months_outside_one_year_are_counted_right(tmp_path: Path):
    files = generate(tmp_path, first_month="2020-12", last_month="2021-01", trips_per_month=60)

    assert sorted(path.name for path in files if path.name.startswith("JC-")) == [
        "JC-202012-citibike-tripdata.csv",
        "JC-202101-citibike-tripdata.csv",
    ]


def test_citi_bike_changes_its_format_in_february_2021(data: Path):
    old = (data / "JC-202101-citibike-tripdata.csv").read_bytes().split(b"\n")
    new = (data / "JC-202102-citibike-tripdata.csv").read_bytes().split(b"\n")

    assert old[0].startswith(b'"tripduration","starttime","stoptime","start station id","start station name"')
    assert re.match(rb'\d+,"2021-01-01 \d\d:\d\d:\d\d\.\d{4}","2021-01-01 [\d:.]+",\d{4},"', old[1])
    assert not any(line.endswith(b"\r") for line in old)
    assert new[0].startswith(b"ride_id,rideable_type,started_at,ended_at,start_station_name,start_station_id")
    assert re.match(rb"[0-9A-F]{16},docked_bike,2021-02-01 \d\d:\d\d:\d\d,2021-", new[1])
    assert all(line.endswith(b"\r") for line in new[:-1])


@pytest.mark.parametrize("name", ["yellow_tripdata_2021-01.parquet", "green_tripdata_2021-01.parquet", "fhv_tripdata_2021-01.parquet", "taxi_zone_lookup.csv", "JC-202101-citibike-tripdata.csv", "JC-202102-citibike-tripdata.csv"])  # fmt: skip
def test_columns_and_types_are_the_providers(data: Path, provider_files: Path, name: str):
    pattern = name.replace("2021-01.parquet", "*.parquet")
    real = sorted(provider_files.glob(pattern))[0] if pattern != name else provider_files / name

    assert columns(data / name) == columns(real)


def columns(path: Path) -> list[tuple[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="") as handle:
            return [(name, "") for name in next(csv.reader(handle))]
    schema = pq.read_schema(path)
    return [(field.name, str(field.type).replace("large_", "")) for field in schema]


def test_the_column_nobody_fills_is_of_parquets_null_type(data: Path):
    assert str(pq.read_schema(data / "green_tripdata_2021-01.parquet").field("ehail_fee").type) == "null"


def test_zones_are_the_265_of_the_tlc(data: Path, provider_files: Path):
    name = "taxi_zone_lookup.csv"

    assert (data / name).read_text().splitlines() == (provider_files / name).read_text().splitlines()
    assert (data / name).read_bytes().count(b"\r\n") == 266


@pytest.mark.parametrize(
    ("file", "condition"),
    [
        ("yellow_tripdata_2021-01.parquet", "fare_amount < 0 AND total_amount < 0"),
        ("yellow_tripdata_2021-01.parquet", "trip_distance = 0"),
        ("yellow_tripdata_2021-01.parquet", "trip_distance > 80000"),
        ("yellow_tripdata_2021-01.parquet", "passenger_count = 0"),
        ("yellow_tripdata_2021-01.parquet", "passenger_count IS NULL AND payment_type = 0"),
        ("yellow_tripdata_2021-01.parquet", "year(tpep_pickup_datetime) = 2009"),
        ("yellow_tripdata_2021-01.parquet", "tpep_pickup_datetime::DATE = '2020-12-31'"),
        ("yellow_tripdata_2021-01.parquet", "PULocationID = 264"),
        ("yellow_tripdata_2021-01.parquet", "PULocationID = 265"),
        ("yellow_tripdata_2021-01.parquet", "tpep_dropoff_datetime - tpep_pickup_datetime > INTERVAL 1 DAY"),
        ("yellow_tripdata_2021-01.parquet", "tpep_dropoff_datetime < tpep_pickup_datetime"),
        ("green_tripdata_2021-01.parquet", "passenger_count IS NULL AND trip_type IS NULL"),
        ("green_tripdata_2021-01.parquet", "year(lpep_pickup_datetime) = 2009"),
        ("fhv_tripdata_2021-01.parquet", "dropOff_datetime IS NULL"),
        ("fhv_tripdata_2021-01.parquet", "PUlocationID IS NULL"),
        ("fhv_tripdata_2021-01.parquet", "DOlocationID = 0"),
        ("JC-202101-citibike-tripdata.csv", "tripduration > 86400"),
        ("JC-202102-citibike-tripdata.csv", "end_station_id IS NULL"),
        ("JC-202102-citibike-tripdata.csv", "ended_at <= started_at"),
        (HISTORY_FILE, "isnan(temp::DOUBLE)"),
    ],
)
def test_the_dirt_of_real_files_is_there(data: Path, file: str, condition: str):
    found = count(data, file, condition)

    assert 0 < found < count(data, file, "true") * 0.6


@pytest.mark.parametrize("name", ["JC-202102-citibike-tripdata.csv", "yellow_tripdata_2021-02.parquet"])
def test_some_whole_rows_come_twice(data: Path, name: str):
    (distinct,) = duckdb.execute(f"SELECT count(*) FROM (SELECT DISTINCT * FROM '{data / name}')").fetchone() or (0,)

    assert distinct == count(data, name, "true") - 1


def test_local_times_show_both_changes_of_the_clocks(data: Path):
    bikes = f"read_csv('{data}/JC-202011-citibike-tripdata.csv')"
    ((backwards,),) = duckdb.execute(
        f"SELECT count(*) FROM {bikes} WHERE stoptime < starttime AND tripduration > 0 AND starttime < '2020-11-01 02:00'"
    ).fetchall()
    cabs = "yellow_tripdata_2021-03.parquet"

    assert backwards > 0  # from the first to the second pass of the repeated hour
    assert count(data, cabs, "date_trunc('hour', tpep_pickup_datetime) = '2021-03-14 02:00'") == 0
    assert count(data, cabs, "date_trunc('hour', tpep_pickup_datetime) = '2021-03-14 03:00'") >= 6


def test_the_bulk_weather_ends_in_a_week_of_nan_and_the_api_has_it_all(data: Path):
    with (data / HISTORY_FILE).open() as history, (data / API_FILE).open() as api:
        hours, answers = list(csv.reader(history))[1:], {row["time"]: row for row in csv.DictReader(api)}

    assert [hour[1] for hour in hours[-168:]] == ["NaN"] * 168
    assert hours[0][0] == "2020-10-31T00:00"
    assert hours[-1][0] == "2021-03-14T23:00"
    assert all(float(hour[1]) == float(answers[hour[0]]["temperature_2m"]) for hour in hours[:-168])
    assert max(answers) == "2021-04-01T23:00"
    assert len(answers) == (date(2021, 4, 2) - date(2020, 10, 31)).days * 24
