"""Small data in exactly the providers' formats, with their real dirt; none of it is a provider's.

The same arguments give the same bytes. Trips are made in UTC and written as New York local time, as the
providers do it, so the hour that autumn repeats and the hour that spring skips look as they do in real files.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from pipeline.projects.nyc.taxi_zones import zone_rows
from pipeline.projects.nyc.weather import weather_files

T = TypeVar("T")
NEW_YORK = ZoneInfo("America/New_York")
HOUR = timedelta(hours=1)
FIRST_NEW_FORMAT = date(2021, 2, 1)  # Citi Bike's second generation of headers

# Number until 2021-01, id since, name, latitude, longitude.
STATIONS = [
    (3186, "JC005", "Grove St PATH", 40.7196, -74.0431), (3202, "JC066", "Newport PATH", 40.7272, -74.0337),
    (3195, "JC056", "Sip Ave", 40.7309, -74.0638), (3203, "JC009", "Hamilton Park", 40.7276, -74.0442),
    (3639, "JC104", "Harborside", 40.7193, -74.0342), (3209, "JC023", "Brunswick St", 40.7242, -74.0507),
    (3278, "JC072", "Morris Canal", 40.7124, -74.0385), (3213, "JC035", "Van Vorst Park", 40.7185, -74.0477),
    (3276, "JC013", "Marin Light Rail", 40.7146, -74.0428), (3792, "JC014", "Columbus Drive", 40.7184, -74.0389),
    (3211, "4953.04", "Newark Ave", 40.7215, -74.0463), (3225, "JC103", "Journal Square", 40.7337, -74.0625),
]  # fmt: skip
OLD_HEADER = [
    "tripduration", "starttime", "stoptime", "start station id", "start station name", "start station latitude",
    "start station longitude", "end station id", "end station name", "end station latitude",
    "end station longitude", "bikeid", "usertype", "birth year", "gender",
]  # fmt: skip
NEW_HEADER = [
    "ride_id", "rideable_type", "started_at", "ended_at", "start_station_name", "start_station_id",
    "end_station_name", "end_station_id", "start_lat", "start_lng", "end_lat", "end_lng", "member_casual",
]  # fmt: skip


def generate(
    directory: Path,
    *,
    first_month: str = "2020-11",
    last_month: str = "2021-03",
    trips_per_month: int = 4000,
    seed: int = 20210101,
) -> list[Path]:
    """Write every source's files into *directory* and return them; a file that is already right is not touched.

    Months are YYYY-MM, both included. Yellow cabs and bikes get *trips_per_month* rows a month, green cabs a half
    and for-hire vehicles a quarter. The default months hold both changes of the clocks, and both formats of
    Citi Bike. From 250 trips on, each month has each kind of dirt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    months = list(_months(first_month, last_month))
    written = []
    for month in months:
        for name, make, count in (
            (f"JC-{month:%Y%m}-citibike-tripdata.csv", _bikes, trips_per_month),
            (f"yellow_tripdata_{month:%Y-%m}.parquet", _yellow, trips_per_month),
            (f"green_tripdata_{month:%Y-%m}.parquet", _green, trips_per_month // 2),
            (f"fhv_tripdata_{month:%Y-%m}.parquet", _for_hire, trips_per_month // 4),
        ):
            written.append(_write(directory / name, make(Random(f"{seed}/{name}"), month, count)))  # noqa: S311  (test data)
    zones = [["LocationID", "Borough", "Zone", "service_zone"], *zone_rows()]
    written.append(_write(directory / "taxi_zone_lookup.csv", _csv(zones, quoting=csv.QUOTE_NONNUMERIC, end="\r\n")))
    for name, rows in weather_files(Random(f"{seed}/weather"), months[0], months[-1]).items():  # noqa: S311
        written.append(_write(directory / name, _csv(rows, end="\n")))
    return written


def _months(first: str, last: str) -> Iterator[date]:
    month = date.fromisoformat(f"{first}-01")
    while f"{month:%Y-%m}" <= last:
        yield month
        month = _next(month)


def _next(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


def _write(path: Path, content: bytes) -> Path:
    if not path.exists() or path.read_bytes() != content:  # a new time stamp would look like a new file
        path.write_bytes(content)
    return path


def _csv(rows: Iterable[Iterable[Any]], *, quoting: Any = csv.QUOTE_MINIMAL, end: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator=end).writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]], columns: str) -> bytes:
    """*columns* is "name type" pairs, separated by commas, of the provider's schema."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {"i32": pa.int32(), "i64": pa.int64(), "f64": pa.float64(), "str": pa.string(), "null": pa.null(), "time": pa.timestamp("us")}  # fmt: skip
    fields = [column.split() for column in columns.split(",")]
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, types[kind]) for name, kind in fields]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Trip:
    """What all kinds of trips share. `slot` counts from 0 in every file: dirt falls on certain slots."""

    slot: int
    started: datetime
    ended: datetime
    seconds: int


def _rows(
    random: Random, month: date, count: int, make: Callable[[Random, _Trip], T], *, is_taxi: bool = True
) -> list[T]:
    """What *make* gives for each trip of the month, by start, with a few whole rows sent twice at the end."""
    midnight = datetime(month.year, month.month, 1, tzinfo=NEW_YORK)
    days = (_next(month) - month).days
    change = _clock_change(midnight, days)
    weights = [2, 2, 1, 1, 1, 2, 3, 5, 6, 5, 5, 5, 6, 6, 6, 7, 7, 8, 8, 6, 5, 4, 3, 3]  # trips by hour of the day
    trips = []
    for slot, hour in enumerate(random.choices(range(24), weights, k=count)):
        wall = midnight + timedelta(days=random.randrange(days), hours=hour, seconds=random.randrange(3600))
        if is_taxi and slot == 0:
            wall = datetime(2009, 1, 1, 0, 3, 25, tzinfo=NEW_YORK)  # a meter whose clock was reset
        elif is_taxi and slot == 1:
            wall = midnight - timedelta(minutes=15)
        elif change and 8 <= slot < 40:  # every five minutes around the change
            wall = (change + timedelta(minutes=5 * (slot - 24), seconds=random.randrange(60))).astimezone(NEW_YORK)
        seconds = 90 + int(random.expovariate(1 / 700))
        if slot % 900 == 40:
            seconds = 86_400 + random.randrange(400_000)
        elif slot % 900 == 41:
            seconds = -random.randrange(1, 90)
        elif slot % 900 == 42:
            seconds = 0
        begun = wall.astimezone(UTC)
        trips.append(_Trip(slot, _local(begun), _local(begun + timedelta(seconds=seconds)), seconds))
    rows = [make(random, trip) for trip in trips]
    order = sorted(range(count), key=lambda slot: trips[slot].started)
    return [rows[slot] for slot in (*order, *range(43, count, 1500))]


def _clock_change(midnight: datetime, days: int) -> datetime | None:
    start = midnight.astimezone(UTC)
    for hour in (start + HOUR * n for n in range(24 * days)):
        if hour.astimezone(NEW_YORK).utcoffset() != (hour - HOUR).astimezone(NEW_YORK).utcoffset():
            return hour
    return None


def _local(instant: datetime) -> datetime:
    return instant.astimezone(NEW_YORK).replace(tzinfo=None)


def _bikes(random: Random, month: date, count: int) -> bytes:
    if month < FIRST_NEW_FORMAT:
        rows = _rows(random, month, count, _old_ride, is_taxi=False)
        return _csv([OLD_HEADER, *rows], quoting=csv.QUOTE_NONNUMERIC, end="\n")
    return _csv([NEW_HEADER, *_rows(random, month, count, _new_ride, is_taxi=False)], end="\r\n")


def _old_ride(random: Random, trip: _Trip) -> list[Any]:
    start, end = random.choice(STATIONS), random.choice(STATIONS)
    kind = random.choices(["Subscriber", "Customer"], [4, 1])[0]
    times = [f"{time:%Y-%m-%d %H:%M:%S}.{random.randrange(1000):03}0" for time in (trip.started, trip.ended)]
    stations = [start[0], *start[2:], end[0], *end[2:]]
    year = 1969 if kind == "Customer" else random.randrange(1950, 2004)  # 1969: not given
    return [trip.seconds, *times, *stations, random.randrange(14_000, 50_000), kind, year, random.randrange(3)]


def _new_ride(random: Random, trip: _Trip) -> list[Any]:
    start, end = random.choice(STATIONS), random.choice(STATIONS)
    to: tuple[Any, ...] = ("", "", "", "") if trip.slot % 90 == 44 else (end[2], end[1], *end[3:])
    times = [trip.started, trip.ended]
    kind = random.choice(["member", "member", "casual"])
    ride_id = f"{random.getrandbits(64):016X}"
    return [ride_id, "docked_bike", *times, start[2], start[1], *to[:2], *start[3:], *to[2:], kind]


def _meter(random: Random, trip: _Trip) -> dict[str, Any]:
    """The columns of a metered trip that yellow and green cabs share."""
    sign = -1 if trip.slot % 110 == 45 else 1  # a correction: the trip with its signs turned
    miles = (
        0.0 if trip.slot % 60 == 46 else round(0.3 + max(trip.seconds, 0) % 20_000 / 380 * random.uniform(0.6, 1.6), 2)
    )
    fare = round(2.5 + 2.5 * miles, 1)
    by_card = random.random() < 0.6
    row: dict[str, Any] = {
        "VendorID": random.choice([1, 2, 2]),
        "store_and_fwd_flag": "Y" if trip.slot % 100 == 0 else "N",
        "RatecodeID": random.choices([1.0, 2.0, 5.0, 99.0], [95, 2, 2, 1])[0],
        "PULocationID": _zone(random, trip.slot),
        "DOLocationID": _zone(random, trip.slot + 30),
        "passenger_count": 0.0 if trip.slot % 48 == 47 else random.choice([1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 6.0]),
        "trip_distance": 85_000 + miles if trip.slot % 1300 == 48 else miles,
        "fare_amount": sign * fare,
        "extra": sign * random.choice([0.0, 0.5, 1.0, 2.5]),
        "mta_tax": sign * 0.5,
        "tip_amount": round(fare * random.uniform(0.1, 0.3), 2) if by_card and sign > 0 else 0.0,
        "tolls_amount": 6.12 if random.random() < 0.04 and sign > 0 else 0.0,
        "improvement_surcharge": sign * 0.3,
        "congestion_surcharge": sign * random.choice([0.0, 2.5]),
        "payment_type": 1 if by_card else random.choice([2, 2, 2, 3, 4]),
    }
    parts = (
        "fare_amount",
        "extra",
        "mta_tax",
        "tip_amount",
        "tolls_amount",
        "improvement_surcharge",
        "congestion_surcharge",
    )
    return row | {"total_amount": round(sum(row[part] for part in parts), 2)}


def _zone(random: Random, slot: int) -> int:
    if slot % 97 == 49:
        return 264
    return 265 if slot % 180 == 50 else random.randrange(1, 264)


def _yellow(random: Random, month: date, count: int) -> bytes:
    return _parquet(
        _rows(random, month, count, _yellow_trip),
        "VendorID i64,tpep_pickup_datetime time,tpep_dropoff_datetime time,passenger_count f64,trip_distance f64,"
        "RatecodeID f64,store_and_fwd_flag str,PULocationID i64,DOLocationID i64,payment_type i64,fare_amount f64,"
        "extra f64,mta_tax f64,tip_amount f64,tolls_amount f64,improvement_surcharge f64,total_amount f64,"
        "congestion_surcharge f64,airport_fee f64",
    )


def _yellow_trip(random: Random, trip: _Trip) -> dict[str, Any]:
    row = _meter(random, trip) | {"tpep_pickup_datetime": trip.started, "tpep_dropoff_datetime": trip.ended}
    if trip.slot % 14 == 9:  # dispatched by an app: the meter's entries are missing
        row |= dict.fromkeys(("passenger_count", "RatecodeID", "store_and_fwd_flag", "congestion_surcharge"))
        row |= {"payment_type": 0}
    return row


def _green(random: Random, month: date, count: int) -> bytes:
    return _parquet(
        _rows(random, month, count, _green_trip),
        "VendorID i64,lpep_pickup_datetime time,lpep_dropoff_datetime time,store_and_fwd_flag str,RatecodeID f64,"
        "PULocationID i64,DOLocationID i64,passenger_count f64,trip_distance f64,fare_amount f64,extra f64,mta_tax f64,"
        "tip_amount f64,tolls_amount f64,ehail_fee null,improvement_surcharge f64,total_amount f64,payment_type f64,"
        "trip_type f64,congestion_surcharge f64",
    )


def _green_trip(random: Random, trip: _Trip) -> dict[str, Any]:
    row = _meter(random, trip) | {"lpep_pickup_datetime": trip.started, "lpep_dropoff_datetime": trip.ended}
    row |= {"trip_type": random.choices([1.0, 2.0], [97, 3])[0]}
    if random.random() < 0.47:
        row |= dict.fromkeys(("store_and_fwd_flag", "RatecodeID", "passenger_count", "payment_type", "trip_type"))
        row |= {"congestion_surcharge": None}
    return row


def _for_hire(random: Random, month: date, count: int) -> bytes:
    return _parquet(
        _rows(random, month, count, _for_hire_trip),
        "dispatching_base_num str,pickup_datetime time,dropOff_datetime time,PUlocationID f64,DOlocationID f64,"
        "SR_Flag i32,Affiliated_base_number str",
    )


def _for_hire_trip(random: Random, trip: _Trip) -> dict[str, Any]:
    from_zone, to_zone = float(_zone(random, trip.slot)), float(_zone(random, trip.slot + 30))
    return {
        "dispatching_base_num": f"B{random.randrange(1, 3000):05}",
        "pickup_datetime": trip.started,
        "dropOff_datetime": None if trip.slot % 5 == 4 else trip.ended,
        "PUlocationID": None if random.random() < 0.38 else from_zone,
        "DOlocationID": 0.0 if trip.slot % 150 == 51 else None if random.random() < 0.38 else to_zone,
        "SR_Flag": 1 if random.random() < 0.05 else None,
    }
