"""Column profiles, against what the tables hold."""

import pytest

from pipeline.errors import LakeRejected
from pipeline.lake.connection import Lake
from pipeline.lake.profile import MAX_TEXT, SAMPLE_ROWS, ColumnProfile, TopValue, profile


def columns(lake: Lake, name: str) -> dict[str, ColumnProfile]:
    return {column.name: column for column in profile(lake, name).columns}


def test_a_small_table_is_profiled_exactly(lake: Lake) -> None:
    lake.query(
        "CREATE TABLE t AS SELECT range AS id, CASE WHEN range % 10 = 0 THEN NULL ELSE 'zone ' || range % 3 END AS zone, "
        "DATE '2021-01-01' + range::INT AS day, range % 2 = 0 AS is_even FROM range(100)"
    )

    found = profile(lake, "t")
    by_name = columns(lake, "t")

    assert (found.name, found.rows, found.sampled_rows) == ("main.t", 100, 100)
    assert (by_name["id"].nulls, by_name["id"].minimum, by_name["id"].maximum) == (0, "0", "99")
    assert [abs(int(value) - expected) <= 2 for value, expected in zip(by_name["id"].quantiles, (5, 25, 50, 75, 95), strict=True)] == [True] * 5  # fmt: skip
    zone = by_name["zone"]
    assert (zone.nulls, zone.distinct, zone.minimum, zone.maximum, zone.quantiles) == (10, 3, "zone 0", "zone 2", ())
    assert zone.top_values == (TopValue("zone 2", 30), TopValue("zone 1", 30), TopValue("zone 0", 30))
    assert (by_name["day"].minimum, by_name["day"].maximum) == ("2021-01-01", "2021-04-10")
    assert by_name["day"].quantiles[2].startswith("2021-02-")
    assert by_name["is_even"].top_values == (TopValue("true", 50), TopValue("false", 50))


def test_every_type_of_the_lake_has_a_profile(lake: Lake) -> None:
    lake.query(
        """CREATE TABLE t AS SELECT 1::TINYINT a, 1::UBIGINT b, 1::HUGEINT c, 1.5::FLOAT d, 1.25::DECIMAL(10, 2) e,
        TIME '10:00' f, TIMESTAMPTZ '2021-01-01 00:00:00+00' g, INTERVAL 1 DAY h, 'x'::BLOB i, [1, 2] j, {'k': 1} k,
        MAP {'k': 1} l, '{"k": 1}'::JSON m, uuid() n, TIMESTAMP_S '2021-01-01' o, TIMESTAMP_NS '2021-01-01' p,
        TIMETZ '10:00:00+00' q, 1::UTINYINT r, 1::USMALLINT s, 1::UINTEGER t, [{'x': 1.5::DOUBLE}] u, NULL::DOUBLE v,
        [DATE '2021-01-01'] w, 1 AS "odd ""name", 5 AS "select" """
    )

    found = columns(lake, "t")

    assert len(found) == 25
    assert {name for name, column in found.items() if column.nulls} == {"v"}
    assert {name for name, column in found.items() if column.minimum is None} == set("ijklmuvw")
    assert {name for name, column in found.items() if column.quantiles} == {*"abcdefgoprst", 'odd "name', "select"}
    assert found["k"].top_values == (TopValue("{'k': 1}", 1),)
    assert found["g"].maximum == "2021-01-01 00:00:00+00"


def test_nan_and_infinities_are_counted_apart(lake: Lake) -> None:
    lake.query(
        "CREATE TABLE t AS SELECT unnest(['NaN', 'inf', '-inf', '1', '3', NULL])::DOUBLE AS x, "
        "unnest(['infinity', '2021-01-01', '2021-01-03', NULL, NULL, NULL])::TIMESTAMP AS at"
    )

    found = columns(lake, "t")

    assert (found["x"].nulls, found["x"].not_finite, found["x"].minimum, found["x"].maximum) == (1, 3, "1.0", "3.0")
    assert (found["at"].nulls, found["at"].not_finite, found["at"].maximum) == (3, 1, "2021-01-03 00:00:00")
    assert all(1 <= float(value) <= 3 for value in found["x"].quantiles)


def test_values_are_cut_and_few_so_that_the_answer_stays_small(lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT repeat('x', 100000) || range AS long FROM range(100)")

    (long,) = profile(lake, "t", top=3).columns

    assert {len(long.minimum or ""), len(long.maximum or ""), *(len(top.value) for top in long.top_values)} == {
        MAX_TEXT
    }
    assert long.top_values == (TopValue("x" * MAX_TEXT, 100),)


def test_a_big_table_has_estimates_of_its_frequent_values_only(lake: Lake) -> None:
    lake.query(
        "CREATE TABLE t AS SELECT range AS id, CASE WHEN range % 4 = 0 THEN 'rare' ELSE 'frequent' END AS kind FROM range(500000)"
    )

    found = profile(lake, "t")
    by_name = {column.name: column for column in found.columns}

    assert found.rows == 500_000
    assert 0.9 * SAMPLE_ROWS < found.sampled_rows < 1.1 * SAMPLE_ROWS
    assert [value.value for value in by_name["kind"].top_values] == ["frequent", "rare"]
    assert by_name["kind"].top_values[0].rows == pytest.approx(375_000, rel=0.05)
    assert by_name["id"].top_values == ()
    assert by_name["id"].distinct == pytest.approx(500_000, rel=0.2)


def test_a_wide_table_an_empty_one_and_a_view_are_no_exception(lake: Lake) -> None:
    lake.query(
        "CREATE TABLE wide AS SELECT " + ", ".join(f"range + {n} AS c{n}" for n in range(200)) + " FROM range(1000)"
    )
    lake.query("CREATE TABLE nothing(a INTEGER, b VARCHAR[])")
    lake.query("CREATE VIEW narrow AS SELECT c0 FROM wide WHERE c0 < 10")

    assert [(column.minimum, column.maximum) for column in profile(lake, "wide").columns] == [
        (str(n), str(n + 999)) for n in range(200)
    ]
    empty = profile(lake, "nothing")
    assert (empty.rows, [(column.nulls, column.minimum, column.top_values) for column in empty.columns]) == (
        0,
        [(0, None, ())] * 2,
    )
    view = profile(lake, "narrow")
    assert (view.rows, view.columns[0].maximum) == (10, "9")


def test_a_missing_table_is_named(lake: Lake) -> None:
    with pytest.raises(LakeRejected, match="there is no such table"):
        profile(lake, "raw.nothing")
