"""The bundled project on real provider files: all rows loaded, every row accounted for, figures recomputed."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline.lake.connection import Lake
from pipeline.operate.database import stop_embedded, with_database
from pipeline.settings import Settings
from tests.projects.nyc.conftest import dbt, load_all, node_results

# The provider's name → the file at hand; slices are given the month that most of their rows are of.
NAMES = {
    "JC-202101-citibike-tripdata.csv": "JC-202101-citibike-tripdata.csv",
    "JC-202102-citibike-tripdata.csv": "JC-202102-citibike-tripdata.csv",
    "JC-202103-citibike-tripdata.csv": "JC-202103-citibike-tripdata.csv",
    "yellow_tripdata_2021-01.parquet": "yellow_tripdata_2021-01_first22792rows.parquet",
    "green_tripdata_2021-01.parquet": "green_tripdata_2021-01.parquet",
    "fhv_tripdata_2020-11.parquet": "fhv_tripdata_firstrows_2017-2020.parquet",
    "taxi_zone_lookup.csv": "taxi_zone_lookup.csv",
    "open_meteo_nyc_hourly_2016_2022.csv": "open_meteo_nyc_hourly_2016_2022.csv",
}
ROWS = {
    "raw.citibike__trips": 11_624 + 4_881 + 17_123,
    "raw.tlc__yellow_taxi": 22_792,
    "raw.tlc__green_taxi": 76_518,
    "raw.tlc__fhv_taxi": 685,
    "raw.tlc__zones": 265,
    "raw.weather__hourly": 59_760,
}


@pytest.fixture(scope="module")
def folder(provider_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real files under the names their providers publish them by."""
    folder = tmp_path_factory.mktemp("provider")
    for name, file in NAMES.items():
        (folder / name).symlink_to(provider_files / file)
    return folder


@pytest.fixture(scope="module")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A platform of this module's own with the real files loaded and modelled."""
    home = Settings(state_dir=tmp_path_factory.mktemp("state"))
    settings = with_database(home)
    assert load_all(settings, folder) == ROWS
    dbt(settings, "build")
    yield settings
    stop_embedded(home)


@pytest.fixture
def marts(built: Settings) -> Iterator[Lake]:
    with Lake.open(built, read_only=True) as lake:
        yield lake


@pytest.fixture
def files(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Valid trips and hours of weather straight from the files, by SQL that shares nothing with the models."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")  # so that ::TIMESTAMPTZ reads a time as local
        for color, letter in (("yellow", "t"), ("green", "l")):
            connection.execute(
                f"""CREATE VIEW {color} AS
                SELECT *, {letter}pep_pickup_datetime AS started FROM '{folder}/{color}_tripdata_2021-01.parquet'
                WHERE {letter}pep_pickup_datetime >= '2021-01-01' AND {letter}pep_pickup_datetime < '2021-02-01'
                    AND {letter}pep_dropoff_datetime > {letter}pep_pickup_datetime
                    AND {letter}pep_dropoff_datetime <= {letter}pep_pickup_datetime + INTERVAL 1 DAY
                    AND fare_amount >= 0 AND total_amount >= 0 AND trip_distance > 0 AND trip_distance <= 300"""
            )
        connection.execute(
            f"""CREATE VIEW bikes AS
            FROM (
                SELECT starttime AS started, stoptime AS ended, usertype = 'Subscriber' AS is_member,
                    "start station name" AS station
                FROM read_csv('{folder}/JC-202101-citibike-tripdata.csv')
                UNION ALL
                SELECT started_at, ended_at, member_casual = 'member', start_station_name
                FROM read_csv('{folder}/JC-20210[23]-citibike-tripdata.csv')
            )
            WHERE ended::TIMESTAMPTZ > started::TIMESTAMPTZ
                AND epoch(ended::TIMESTAMPTZ) - epoch(started::TIMESTAMPTZ) < 86401"""
        )
        connection.execute(
            f"""CREATE VIEW weather AS
            SELECT timezone('UTC', time) AS hour, temp, "precipitation (mm)" AS rain
            FROM read_csv('{folder}/open_meteo_nyc_hourly_2016_2022.csv', types = {{'temp': 'DOUBLE', 'precipitation (mm)': 'DOUBLE'}})
            WHERE NOT isnan(temp)"""
        )
        yield connection


def test_every_node_passes(built: Settings):
    assert set(node_results(built).values()) <= {"success", "pass"}


def test_every_row_is_a_fact_or_quarantined_for_one_reason(marts: Lake):
    rows = marts.query("SELECT service, month, rows_in, facts, quarantined FROM marts.trip_reconciliation ORDER BY ALL")

    assert [row[:3] for row in rows] == [
        ("citibike", "2021-01", 11_624),
        ("citibike", "2021-02", 4_881),
        ("citibike", "2021-03", 17_123),
        ("fhv_taxi", "2020-11", 685),
        ("green_taxi", "2021-01", 76_518),
        ("yellow_taxi", "2021-01", 22_792),
    ]
    assert all(rows_in == facts + quarantined for *_, rows_in, facts, quarantined in rows)
    assert marts.scalar("SELECT count(*) FROM marts.quarantined_trips") == sum(row[4] for row in rows)


def test_dirt_known_from_the_files_is_in_quarantine(marts: Lake):
    reasons = dict(
        marts.query(
            """SELECT service || ' ' || _month || ' ' || refused_reason, count(*)
            FROM marts.quarantined_trips WHERE service <> 'fhv_taxi' GROUP BY ALL"""
        )
    )

    assert reasons == {
        "citibike 2021-01 over_a_day": 6,
        "citibike 2021-02 ends_before_start": 4,
        "citibike 2021-02 over_a_day": 14,
        "citibike 2021-03 ends_before_start": 9,
        "citibike 2021-03 over_a_day": 16,
        "green_taxi 2021-01 outside_month": 3,
        "green_taxi 2021-01 ends_before_start": 66,
        "green_taxi 2021-01 negative_fare": 134,
        "green_taxi 2021-01 zero_distance": 2_437,
        "green_taxi 2021-01 implausible_distance": 55,
        "yellow_taxi 2021-01 outside_month": 16,
        "yellow_taxi 2021-01 ends_before_start": 10,
        "yellow_taxi 2021-01 negative_fare": 199,
        "yellow_taxi 2021-01 zero_distance": 328,
    }


def test_the_week_of_nan_is_null_and_unknown(marts: Lake):
    rows = marts.query(
        """SELECT count(*), count(temperature_c), min(hour_utc) FILTER (WHERE condition = 'unknown'),
            count(*) FILTER (WHERE condition = 'unknown') FROM staging.stg_weather__hourly"""
    )

    assert [str(value) for value in rows[0]] == ["59760", "59592", "2022-10-16 00:00:00", "168"]


_BY_HOUR = "date_trunc('hour', started::TIMESTAMPTZ)"
_WEEKEND_OR_HOLIDAY = "isodow(started) > 5 OR started::DATE IN ('2021-01-01', '2021-01-18', '2021-02-15')"
FIGURES = {
    "bike trips": (
        "SELECT count(*) FROM bikes",
        "SELECT count(*) FROM marts.fct_trips WHERE service = 'citibike'",
    ),
    "hours that members rode": (
        "SELECT sum(floor(epoch(ended::TIMESTAMPTZ) - epoch(started::TIMESTAMPTZ))) / 3600 FROM bikes WHERE is_member",
        "SELECT sum(duration_seconds) / 3600 FROM marts.fct_trips WHERE rider_type = 'member'",
    ),
    "yellow revenue": (
        "SELECT sum(total_amount) FROM yellow",
        "SELECT sum(total_usd) FROM marts.fct_hourly_mobility WHERE service = 'yellow_taxi'",
    ),
    "yellow tips paid by card": (
        "SELECT avg(tip_amount) FROM yellow WHERE payment_type = 1",
        "SELECT avg(tip_usd) FROM marts.fct_trips WHERE service = 'yellow_taxi' AND payment_type = 'credit_card'",
    ),
    "green miles": (
        "SELECT sum(trip_distance) FROM green",
        "SELECT sum(distance_miles) FROM marts.fct_hourly_mobility WHERE service = 'green_taxi'",
    ),
    "green trips by hour of the day": (
        "SELECT list(n ORDER BY h) FROM (SELECT hour(started) AS h, count(*) AS n FROM green GROUP BY h)",
        """SELECT list(n ORDER BY h) FROM (
            SELECT hour_of_day AS h, count(*) AS n FROM marts.fct_trips WHERE service = 'green_taxi' GROUP BY h)""",
    ),
    "busiest green pick-up zone": (
        """SELECT z.Zone || ' ' || count(*) FROM green JOIN zones z ON z.LocationID = green.PULocationID
            GROUP BY z.LocationID, z.Zone ORDER BY count(*) DESC LIMIT 1""",
        """SELECT name || ' ' || count(*) FROM marts.fct_trips JOIN marts.dim_location ON start_location_id = location_id
            WHERE service = 'green_taxi' GROUP BY location_id, name ORDER BY count(*) DESC LIMIT 1""",
    ),
    "busiest station": (
        "SELECT station || ' ' || count(*) FROM bikes GROUP BY station ORDER BY count(*) DESC LIMIT 1",
        """SELECT name || ' ' || count(*) FROM marts.fct_trips JOIN marts.dim_location ON start_location_id = location_id
            WHERE service = 'citibike' GROUP BY name ORDER BY count(*) DESC LIMIT 1""",
    ),
    "bike trips in the wet": (
        f"SELECT count(*) FROM bikes JOIN weather ON hour = {_BY_HOUR} WHERE rain > 0",
        "SELECT count(*) FROM marts.fct_trips WHERE service = 'citibike' AND precipitation_mm > 0",
    ),
    "temperature of a bike trip": (
        f"SELECT avg(temp) FROM bikes JOIN weather ON hour = {_BY_HOUR}",
        "SELECT avg(temperature_c) FROM marts.fct_trips WHERE service = 'citibike'",
    ),
    "temperature of a green trip": (
        f"SELECT avg(temp) FROM green JOIN weather ON hour = {_BY_HOUR}",
        "SELECT sum(temperature_c * trips) / sum(trips) FROM marts.fct_hourly_mobility WHERE service = 'green_taxi'",
    ),
    "bike trips on days off": (
        f"SELECT count(*) FROM bikes WHERE {_WEEKEND_OR_HOLIDAY}",
        """SELECT count(*) FROM marts.fct_trips JOIN marts.dim_date USING (date_day)
            WHERE service = 'citibike' AND NOT is_business_day""",
    ),
    "most bike trips in an hour": (
        f"SELECT max(n) FROM (SELECT count(*) AS n FROM bikes GROUP BY {_BY_HOUR})",
        "SELECT max(trips) FROM marts.fct_hourly_mobility WHERE service = 'citibike'",
    ),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_of_the_marts_is_what_the_files_say(
    figure: str, files: duckdb.DuckDBPyConnection, marts: Lake, folder: Path
):
    files.execute(f"CREATE VIEW zones AS FROM read_csv('{folder}/taxi_zone_lookup.csv')")
    from_files, from_marts = FIGURES[figure]

    (expected,) = files.execute(from_files).fetchone() or (None,)

    assert expected
    found = marts.scalar(from_marts)
    assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)
