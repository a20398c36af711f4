"""Which columns a query's columns come from."""

import pytest

from pipeline.transform.lineage import column_lineage

RELATIONS = {
    ("raw", "trips"): ("id", "zone", "fare", "tip"),
    ("raw", "rides"): ("ride_id", "station"),
    ("raw", "zones"): ("zone", "borough"),
}


def origins(sql: str) -> dict[str, list[str]]:
    """Column → its origins as ``relation.column``."""
    found = column_lineage(sql, RELATIONS)
    return {column: [f"{origin.relation}.{origin.column}" for origin in of] for column, of in found.items()}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select id as trip_id, 1 as one from lake.raw.trips", {"trip_id": ["trips.id"], "one": []}),
        ("select * exclude (tip) replace (fare / 2 as fare) from lake.raw.trips",
         {"id": ["trips.id"], "zone": ["trips.zone"], "fare": ["trips.fare"]}),
        ("with t as (select id, fare + tip as total from lake.raw.trips) select sum(total) as total, count(*) as n from t",
         {"total": ["trips.fare", "trips.tip"], "n": []}),
        # a join or a filter decides which rows there are, and is no origin of a value
        ("select t.id, borough from lake.raw.trips t join lake.raw.zones z on z.zone = t.zone where fare > 0",
         {"id": ["trips.id"], "borough": ["zones.borough"]}),
        ("select id, zone from lake.raw.trips union all select ride_id, station from lake.raw.rides",
         {"id": ["rides.ride_id", "trips.id"], "zone": ["rides.station", "trips.zone"]}),
        ("select zone, id from lake.raw.trips union all by name select ride_id as id, station from lake.raw.rides",
         {"zone": ["trips.zone"], "id": ["rides.ride_id", "trips.id"], "station": ["rides.station"]}),
        ("from lake.raw.zones", {"zone": ["zones.zone"], "borough": ["zones.borough"]}),
        ("select row_number() over (partition by zone order by fare) as n from lake.raw.trips",
         {"n": ["trips.fare", "trips.zone"]}),
    ],
)  # fmt: skip
def test_each_column_has_the_columns_it_is_made_from(sql: str, expected: dict[str, list[str]]) -> None:
    assert origins(sql) == expected


@pytest.mark.parametrize("sql", ["", "select from where", "select (", "call something()"])
def test_what_cannot_be_read_has_no_lineage(sql: str) -> None:
    assert column_lineage(sql, RELATIONS) == {}
